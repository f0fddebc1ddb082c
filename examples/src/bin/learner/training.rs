//! The training: data loaders, metrics and burn's `Learner`.

use std::io::IsTerminal;
use std::path::Path;

use burn::data::dataloader::DataLoaderBuilder;
use burn::data::dataloader::batcher::Batcher;
use burn::data::dataset::Dataset;
use burn::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
use burn::optim::AdamWConfig;
use burn::tensor::ElementConversion;
use burn::train::metric::{AccuracyMetric, LossMetric};
use burn::train::{Learner, SupervisedTraining};
use moe_layers::metrics::RoutingMetric;
use moe_layers::{AutodiffMoeBackend, MoeBackend, RoutingStats};

use crate::dataset::{PointBatch, PointBatcher, Spiral};
use crate::lines::Lines;
use crate::model::Classifier;

pub(crate) const EPOCHS: usize = 10;
const BATCH: usize = 64;
const TRAINING: Spiral = Spiral { len: 6400, seed: 1 };
const VALIDATION: Spiral = Spiral { len: 1024, seed: 2 };
const LEARNING_RATE: f64 = 1e-2;

/// Trains for [`EPOCHS`] and returns the model. burn writes its logs into `directory`; the dashboard shows where there is a terminal, and
/// lines where there is none.
pub(crate) fn train<B: AutodiffMoeBackend>(directory: &Path, device: &B::Device) -> Classifier<B::InnerBackend> {
    B::seed(device, 0);
    let loader = DataLoaderBuilder::new(PointBatcher).batch_size(BATCH).shuffle(0);
    let valid_loader = DataLoaderBuilder::new(PointBatcher).batch_size(VALIDATION.len);
    let metrics = (
        LossMetric::new(),
        AccuracyMetric::new(),
        RoutingMetric::load_ratio(),
        RoutingMetric::dead_experts(),
        RoutingMetric::router_entropy(),
    );
    let training = SupervisedTraining::new(directory, loader.build(TRAINING), valid_loader.build(VALIDATION))
        .metrics(metrics)
        .num_epochs(EPOCHS);
    let training = match std::io::stdout().is_terminal() {
        true => training.summary(),
        false => training.renderer(Lines::default()),
    };
    let steps = EPOCHS * TRAINING.len / BATCH;
    let rate = CosineAnnealingLrSchedulerConfig::new(LEARNING_RATE, steps).init().expect("the rate is in (0, 1]");
    training.launch(Learner::new(Classifier::<B>::new(device), AdamWConfig::new().init(), rate)).model
}

/// Share of `points` whose arm has the largest score, and how they were routed.
pub(crate) fn test<B: MoeBackend>(model: &Classifier<B>, points: Spiral, device: &B::Device) -> (f64, RoutingStats) {
    let points: Vec<_> = points.iter().collect();
    let PointBatch { places, arms } = PointBatcher.batch(points, device);
    let (scores, _, routing) = model.forward(places);
    let [count, _] = scores.dims();
    let right = scores.argmax(1).reshape([count]).equal(arms).int().sum().into_scalar().elem::<f64>();
    (right / count as f64, RoutingStats::from_routing(&routing))
}

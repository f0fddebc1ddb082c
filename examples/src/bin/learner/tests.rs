//! The same tests on every backend that is compiled in: a model is generic, so a test is too.
//!
//! Flex and NdArray are always there. `cargo test -p moe-examples --features wgpu` (or `cuda`) adds a GPU.

use burn::backend::{Autodiff, Flex};
use burn::data::dataloader::batcher::Batcher;
use burn::data::dataset::Dataset;
use burn::module::{AutodiffModule, Module};
use burn::record::{BinBytesRecorder, FullPrecisionSettings, Recorder};
use burn::tensor::backend::Backend;
use burn::tensor::{TensorData, Tolerance};
use burn::train::TrainStep;
use moe_layers::{AutodiffMoeBackend, MoeBackend};

use crate::dataset::{ARMS, PointBatch, PointBatcher, Spiral};
use crate::model::Classifier;
use crate::training;

/// Relative and absolute, f32: sums in another order.
const TOLERANCE: f32 = 1e-5;
/// An odd number, so that no arm has as many points as another.
const POINTS: Spiral = Spiral { len: 101, seed: 7 };

type Bytes = BinBytesRecorder<FullPrecisionSettings>;

/// A model's parameters, as every backend reads them.
fn parameters() -> Vec<u8> {
    let device = Default::default();
    Flex::seed(&device, 5);
    Bytes::new().record(Classifier::<Flex>::new(&device).into_record(), ()).expect("bytes in memory")
}

fn model<B: MoeBackend>(parameters: &[u8]) -> Classifier<B> {
    let device = Default::default();
    let record = Bytes::new().load(parameters.to_vec(), &device).expect("they were just recorded");
    Classifier::new(&device).load_record(record)
}

fn batch<B: Backend>() -> PointBatch<B> {
    PointBatcher.batch(POINTS.iter().collect(), &Default::default())
}

/// Scores `[N, ARMS]` and experts `[N, K]`.
fn outputs<B: MoeBackend>(parameters: &[u8]) -> (TensorData, Vec<i64>) {
    let (scores, _, routing) = model::<B>(parameters).forward(batch::<B>().places);
    (scores.into_data(), routing.experts.into_data().iter::<i64>().collect())
}

fn a_backend_computes_what_flex_computes<B: MoeBackend>() {
    let parameters = parameters();
    let ((expected, experts), (found, same_experts)) = (outputs::<Flex>(&parameters), outputs::<B>(&parameters));
    assert_eq!(same_experts, experts);
    found.convert::<f32>().assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(TOLERANCE, TOLERANCE));
}

/// Scores after one step of gradient descent.
fn stepped<B: AutodiffMoeBackend>(parameters: &[u8]) -> TensorData {
    let model = model::<B>(parameters);
    let gradients = TrainStep::step(&model, batch()).grads;
    let mut optimizer = burn::optim::SgdConfig::new().init();
    let model: Classifier<B> = burn::optim::Optimizer::step(&mut optimizer, 0.1, model, gradients);
    model.valid().forward(batch::<B::InnerBackend>().places).0.into_data()
}

fn a_backend_learns_what_flex_learns<B: AutodiffMoeBackend>() {
    let parameters = parameters();
    let (expected, found) = (stepped::<Autodiff<Flex>>(&parameters), stepped::<B>(&parameters));
    found.convert::<f32>().assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(TOLERANCE, TOLERANCE));
}

/// One test for each property, in a module of the backend's name.
macro_rules! on {
    ($name:ident, $backend:ty) => {
        mod $name {
            #[test]
            fn a_backend_computes_what_flex_computes() {
                super::a_backend_computes_what_flex_computes::<$backend>();
            }

            #[test]
            fn a_backend_learns_what_flex_learns() {
                super::a_backend_learns_what_flex_learns::<burn::backend::Autodiff<$backend>>();
            }
        }
    };
}

on!(flex, burn::backend::Flex);
on!(ndarray, burn::backend::NdArray);
#[cfg(feature = "wgpu")]
on!(wgpu, burn::backend::Wgpu);
#[cfg(feature = "cuda")]
on!(cuda, burn::backend::Cuda);

#[test]
fn a_point_is_a_function_of_seed_and_index() {
    let again = Spiral { len: 200, ..POINTS };
    assert_eq!(POINTS.get(100), again.get(100));
    assert_ne!(POINTS.get(100), Spiral { seed: 8, ..POINTS }.get(100));
    assert_eq!(POINTS.get(POINTS.len), None);
}

#[test]
fn training_beats_chance_and_uses_every_expert() {
    let (device, directory) = (Default::default(), tempfile::tempdir().expect("a place for logs"));
    let model = training::train::<Autodiff<crate::Chosen>>(directory.path(), &device);
    let (accuracy, stats) = training::test(&model, crate::TEST, &device);
    assert!(accuracy > crate::EXPECTED && crate::EXPECTED > 2.0 / ARMS as f64, "{accuracy}");
    assert_eq!(stats.dead_experts, 0);
    assert!(directory.path().join("valid").is_dir(), "burn logs every metric");
}

//! Properties of whole runs of vision models.

use std::path::Path;

use burn::backend::{Autodiff, Flex};
use excitation_optim::Variant;
use moe_models::lm::RouterKind;
use moe_models::vit::Pooling;

use super::tests::{Silent, copy_run, losses, new_dir};
use super::{Summary, Trainee, train_vit, train_vit_on};
use crate::images::{ImageBatch, ImageData, ImageSet, VitTrainConfig};
use crate::model::Learns;
use crate::parallel::Party;
use crate::run::Run;

type AD = Autodiff<Flex>;

/// Two layers, the second with four experts, two per token; 12 steps of 2 x 3 images of 4 tokens.
fn config() -> VitTrainConfig {
    let mut config = VitTrainConfig::preset("tiny").expect("a preset of the program");
    let model = &mut config.model;
    (model.image_size, model.patch_size, model.channels, model.num_classes) = (4, 2, 1, 3);
    (model.d_model, model.num_layers, model.num_heads, model.d_hidden) = (12, 2, 2, 20);
    (model.moe.num_experts, model.moe.top_k, model.moe.d_hidden) = (4, 2, 8);
    config.data.crop_padding = 1;
    let optim = &mut config.optim;
    (optim.lr, optim.min_lr, optim.warmup_steps) = (1e-2, 1e-3, 2);
    let train = &mut config.train;
    (train.steps, train.batch_size, train.grad_accumulation) = (12, 3, 2);
    (train.log_every, train.valid_every, train.valid_batches) = (3, 4, 2);
    (train.checkpoint_every, train.keep_last) = (5, 3);
    config
}

/// Images whose upper, lower or no half is bright.
fn data() -> ImageData {
    let set = |count: usize| {
        let mut set = ImageSet::new(1, 4);
        for index in 0..count {
            let pixel =
                |at: usize| if index % 3 < 2 && at / 8 == index % 3 { 200 } else { (index * 7 + at) as u8 % 60 };
            set.push((0..16).map(pixel), index as u32 % 3);
        }
        set
    };
    let (train, valid) = (set(25), set(9));
    let classes = ["upper", "lower", "none"].map(String::from).to_vec();
    ImageData { standard: train.standard(), train, valid, classes, description: "a test".to_string() }
}

fn run_in(dir: &Path, config: &VitTrainConfig, progress: &mut Silent) -> Summary {
    let mut run = match dir.exists() {
        true => Run::open(dir).expect("the run opens").0,
        false => Run::create(dir, config).expect("the run directory is new"),
    };
    train_vit::<AD>(config, &data(), &mut run, progress, &Default::default()).expect("training")
}

/// A run, and a copy of it that went on from its checkpoint of step 10, have the same records.
fn resumes_bit_for_bit(config: &VitTrainConfig) -> Vec<crate::run::StepRecord> {
    let (_parent, unbroken) = new_dir();
    let (_other, resumed) = new_dir();
    run_in(&unbroken, config, &mut Silent::default());
    copy_run(&unbroken, &resumed);
    std::fs::remove_dir_all(resumed.join("checkpoints/step-00000012")).expect("the last checkpoint");
    let mut progress = Silent::default();
    run_in(&resumed, config, &mut progress);
    assert_eq!(progress.records, [12]);
    let records = losses(&unbroken);
    assert_eq!(losses(&resumed), records);
    records
}

#[test]
fn training_finds_the_classes_and_records_what_is_due() {
    let (_parent, dir) = new_dir();
    let mut config = config();
    (config.train.steps, config.data.flip) = (240, true);
    let summary = run_in(&dir, &config, &mut Silent::default());
    let records = losses(&dir);
    let (first, last) = (&records[0], &records[records.len() - 1]);
    assert!(last.loss < 0.5 * first.loss, "{} -> {}", first.loss, last.loss);
    // A step is 2 x 3 images of 4 tokens, each with 2 experts.
    assert_eq!((last.step, last.tokens, summary.tokens), (240, 240 * 6 * 4, 240 * 6 * 4));
    assert_eq!(last.layers[0].stats.expert_counts.iter().sum::<u64>(), 6 * 4 * 2);
    assert_eq!((last.valid_accuracy, last.valid_bpb), (Some(summary.valid_score), None));
    assert!(summary.valid_score > 0.6, "{summary}");
    assert!(summary.to_string().starts_with("final: steps=240 images=1440 "), "{summary}");
}

#[test]
fn a_resumed_run_repeats_the_unbroken_one_bit_for_bit_with_every_router() {
    use RouterKind::{Default, ExpertChoice, Relu, Sigmoid, Sinkhorn, TopK};
    for router in [TopK, Default, Sigmoid, Sinkhorn, Relu, ExpertChoice] {
        let mut config = config();
        config.model.moe.router = router;
        config.model.pooling = Pooling::ClassToken;
        (config.model.moe.sigmoid.rate, config.model.moe.relu.l1_coef) = (0.05, 1e-3);
        let records = resumes_bit_for_bit(&config);
        let last = &records[records.len() - 1];
        assert_eq!(last.layers[0].default.is_some(), router == Default);
    }
}

#[test]
fn a_resumed_run_repeats_the_unbroken_one_bit_for_bit_without_a_router_and_with_excitation() {
    let mut soft = config();
    soft.model.soft_slots = 2;
    assert!(resumes_bit_for_bit(&soft).iter().all(|record| record.layers.is_empty()));
    let mut excited = config();
    excited.optim.excitation = Some(Variant::ZeroSum);
    let records = resumes_bit_for_bit(&excited);
    let layer = &records[records.len() - 1].layers[0];
    let mean = layer.stats.expert_counts.iter().sum::<u64>() as f64 / 4.0;
    for (factor, &count) in layer.factors.iter().zip(&layer.stats.expert_counts) {
        assert!((factor - count as f64 / mean).abs() < 1e-5, "{layer:?}");
    }
}

#[test]
#[should_panic(expected = "must be [1 or more, 1, 4, 4], got [2, 1, 2, 2]")]
fn the_loss_of_images_of_another_size_panics() {
    let model = config().model.init::<AD>(&Default::default());
    let batch = ImageBatch { values: vec![0.0; 8], labels: vec![0; 2], shape: [2, 1, 2, 2] };
    Learns::<AD>::loss_of(&model, &batch, &Default::default());
}

#[test]
#[should_panic(expected = "not a model: patch_size = 3")]
fn a_trainee_of_a_contradictory_model_panics() {
    let mut config = config();
    config.model.patch_size = 3;
    Trainee::<AD, _>::new_vit(&config, &Default::default());
}

#[test]
#[should_panic(expected = "ExcitationConfig: gamma must be finite and 0 or more, got -1")]
fn a_trainee_with_a_negative_gamma_panics() {
    let mut config = config();
    (config.optim.excitation, config.optim.gamma) = (Some(Variant::ZeroSum), -1.0);
    Trainee::<AD, _>::new_vit(&config, &Default::default());
}

/// The records of a copy of the run in `start` that goes on on this many ranks.
fn on_ranks(start: &Path, config: &VitTrainConfig, num_ranks: usize) -> Vec<crate::run::StepRecord> {
    let (_parent, dir) = new_dir();
    copy_run(start, &dir);
    let (mut run, _) = Run::open(&dir).expect("the run opens");
    let devices = vec![Default::default(); num_ranks];
    train_vit_on::<AD>(config, &data(), &mut run, &mut Silent::default(), Party::Threads(&devices, None))
        .expect("training");
    losses(&dir)
}

#[test]
fn a_vision_model_trains_alike_on_any_number_of_ranks() {
    let mut config = config();
    config.train.batch_size = 4;
    config.model.moe.router = RouterKind::Default;
    // All threads of a program share the generator that draws the first weights.
    let (_parent, start) = new_dir();
    assert!(run_in(&start, &config, &mut Silent { interrupt_at: Some(1), ..Silent::default() }).interrupted);
    let alone = on_ranks(&start, &config, 1);
    for num_ranks in [2, 4] {
        let together = on_ranks(&start, &config, num_ranks);
        assert_eq!(together.len(), alone.len());
        for (found, expected) in together.iter().zip(&alone) {
            let close = |what: &str, found: f64, expected: f64| {
                let error = (found - expected).abs();
                assert!(error <= 1e-3 * expected.abs(), "{what} of {num_ranks} ranks: {found} != {expected}");
            };
            close("loss", found.loss, expected.loss);
            close("gradient norm", found.grad_norm, expected.grad_norm);
            close("held-out loss", found.valid_loss.unwrap_or(1.0), expected.valid_loss.unwrap_or(1.0));
            assert_eq!(found.layers[0].stats.expert_counts, expected.layers[0].stats.expert_counts);
        }
    }
}

#[test]
#[should_panic(expected = "a batch of 3 rows has no part 0 of 2")]
fn images_that_cannot_be_split_evenly_have_no_part() {
    let config = config();
    let data = data();
    let batch = ImageBatch::augmented(&data, &[0, 1, 2], &config.data, (1, 0, 0));
    let _ = <moe_models::vit::Vit<AD> as Learns<AD>>::part_of(&batch, 0, 2);
}

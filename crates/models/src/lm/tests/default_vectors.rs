//! Default vectors in a model: when they move, where they are kept, what switches them.

use burn::module::{AutodiffModule, Module};
use burn::record::{FullPrecisionSettings, NamedMpkBytesRecorder, Recorder};
use burn::tensor::TensorData;
use default_moe::optimizer::HasDefaultVectors;
use default_moe::{DefaultUpdate, Evaluation};

use super::*;

fn config() -> LmConfig {
    with_layers(3).with_moe(LmMoeConfig::new(4, 1, 12).with_router(RouterKind::Default))
}

fn values<B: MoeBackend>(model: &Lm<B>) -> Vec<TensorData> {
    model.default_vectors().iter().map(|vectors| vectors.values.to_data()).collect()
}

fn updates(model: &Lm<AD>) -> Vec<DefaultUpdate<AD>> {
    let layers = model.loss(batch(), targets()).layers;
    layers.into_iter().map(|layer| layer.default_update.expect("a training pass")).collect()
}

fn trained() -> Lm<AD> {
    let mut model = model::<AD>(&config());
    model.absorb_updates(&updates(&model));
    model
}

fn logits<B: MoeBackend>(model: &Lm<B>) -> TensorData {
    model.forward(batch()).logits.into_data()
}

#[test]
fn only_absorbing_moves_the_vectors() {
    let mut model = model::<AD>(&config());
    let zeros = values(&model);
    let (first, second) = (updates(&model), updates(&model));
    assert_eq!(values(&model), zeros);
    for (a, b) in first.iter().zip(second) {
        a.clone().into_matrix().into_data().assert_eq(&b.into_matrix().into_data(), true);
    }
    model.absorb_updates(&first);
    assert_ne!(values(&model), zeros);
}

#[test]
fn validation_leaves_no_update() {
    let model = trained();
    let valid = model.valid();
    assert!(valid.loss(batch(), targets()).layers.iter().all(|layer| layer.default_update.is_none()));
    assert_eq!(values(&valid), values(&model));
}

#[test]
fn vectors_of_zeros_say_nothing() {
    let with = model::<Flex>(&config());
    let mut without = with.clone();
    without.blocks.iter_mut().for_each(|block| block.feed_forward.default_vectors = None);
    logits(&with).assert_eq(&logits(&without), true);
}

#[test]
fn evaluation_is_switched_without_training() {
    let model = trained().valid();
    let frozen = logits(&model);
    let mut switched = model.clone();
    switched.set_evaluation(Evaluation::TopK);
    assert_ne!(logits(&switched), frozen);
    switched.set_evaluation(Evaluation::Frozen);
    logits(&switched).assert_eq(&frozen, true);
}

#[test]
fn vectors_survive_a_record() {
    let model = trained().valid();
    let recorder = NamedMpkBytesRecorder::<FullPrecisionSettings>::default();
    let bytes = Recorder::<Flex>::record(&recorder, model.clone().into_record(), ()).expect("a record");
    let record = Recorder::<Flex>::load(&recorder, bytes, &Default::default()).expect("its bytes");
    let loaded = config().init::<Flex>(&Default::default()).load_record(record);
    assert_eq!(values(&loaded), values(&model));
    logits(&loaded).assert_eq(&logits(&model), true);
}

#[test]
fn the_energy_is_measured_on_request_only() {
    let mut model = trained();
    let measured = |model: &Lm<AD>| {
        model.loss(batch(), targets()).layers.iter().filter(|layer| layer.default_energy.is_some()).count()
    };
    assert_eq!(measured(&model), 0);
    model.set_measuring(true);
    assert_eq!(measured(&model), 2);
    model.set_measuring(false);
    assert_eq!(measured(&model), 0);
}

#[test]
#[should_panic(expected = "one update for each layer")]
fn an_update_too_few_panics() {
    let mut model = model::<AD>(&config());
    model.absorb_updates(&updates(&model)[..1]);
}

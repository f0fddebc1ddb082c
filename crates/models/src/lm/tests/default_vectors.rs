//! Default vectors in a model: when they move, where they are kept, what switches them.

use burn::module::{AutodiffModule, Module};
use burn::optim::{GradientsParams, Optimizer, SgdConfig};
use burn::record::{FullPrecisionSettings, NamedMpkBytesRecorder, Recorder};
use burn::tensor::TensorData;
use default_moe::optimizer::{Absorbing, HasDefaultVectors, register};
use default_moe::{DefaultOptions, DefaultUpdate, DefaultVectors, Evaluation, Form, UpdateRule};
use moe_layers::upcycle::Upcycling;

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

/// Of the layers that have them, in order.
fn of_blocks(model: &Lm<AD>) -> Vec<&DefaultVectors<AD>> {
    model.blocks.iter().filter_map(|block| block.feed_forward.default_vectors.as_ref()).collect()
}

/// What the vectors of each layer become by its own update, which is that of no other.
fn expected(model: &Lm<AD>, updates: &[DefaultUpdate<AD>]) -> [TensorData; 2] {
    let moved = of_blocks(model).into_iter().zip(updates).map(|(vectors, update)| vectors.updated(update).into_data());
    let expected: [TensorData; 2] = moved.collect::<Vec<_>>().try_into().expect("two layers with experts");
    assert_ne!(expected[0], expected[1]);
    expected
}

fn assert_moved(model: &Lm<AD>, expected: &[TensorData; 2]) {
    for (vectors, expected) in of_blocks(model).into_iter().zip(expected) {
        vectors.values.to_data().assert_eq(expected, true);
    }
    assert_eq!(values(model), expected);
}

#[test]
fn every_layer_absorbs_its_own_update() {
    let mut model = model::<AD>(&config());
    let updates = updates(&model);
    let expected = expected(&model, &updates);
    model.absorb_updates(&updates);
    assert_moved(&model, &expected);
}

#[test]
fn every_layer_absorbs_its_own_update_among_the_gradients() {
    let model = model::<AD>(&config());
    let updates = updates(&model);
    let expected = expected(&model, &updates);
    let mut grads = GradientsParams::new();
    register(&model, updates, &mut grads);
    let mut optimizer = Absorbing::new(SgdConfig::new().init());
    let model: Lm<AD> = Optimizer::step(&mut optimizer, 0.1, model, grads);
    assert_moved(&model, &expected);
}

#[test]
fn options_are_those_of_the_configuration() {
    let options = DefaultOptions::new().with_beta(0.75).with_rule(UpdateRule::Mean);
    let options = options.with_form(Form::BackwardOnly).with_evaluation(Evaluation::TopK);
    let mut config = config();
    config.moe.default = options.clone();
    let dense = model::<Flex>(&config.clone().with_moe_layers(MoeLayers::None).with_moe(LmMoeConfig::new(4, 1, 12)));
    let upcycled = config.clone().with_moe(LmMoeConfig { d_hidden: 24, ..config.moe.clone() });
    let upcycled = upcycled.upcycle(&dense, Upcycling::Copy).expect("they fit");
    for model in [model::<Flex>(&config), upcycled] {
        let found: Vec<_> = model.default_vectors().into_iter().map(DefaultVectors::options).collect();
        assert_eq!(found, [&options, &options]);
    }
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

//! Accumulation, devices, decay, warm-up and the errors of the first step.

mod common;

use burn::backend::Flex;
use burn::module::{Module, Param, ParamId};
use burn::optim::{AdamWConfig, GradientsAccumulator, GradientsParams, MultiGradientsParams, Optimizer, SgdConfig};
use burn::tensor::activation::softmax;
use burn::tensor::backend::{Backend, DeviceOps};
use burn::tensor::{Int, Tensor};
use common::*;
use excitation_optim::{
    Control, ExcitationConfig, Exciter, ExpertCounts, ExpertLayers, ExpertModule, Variant, register_counts,
};

const EXPERTS: usize = 4;

/// Top-1 experts, each token's output weighted by its probability. Every expert is computed for every token.
#[derive(Module, Debug)]
struct Routed<B: Backend> {
    router: Param<Tensor<B, 2>>,
    experts: Param<Tensor<B, 3>>,
    counts: ExpertCounts<B>,
}

impl<B: Backend> ExpertModule for Routed<B> {
    fn expert_layers(&self, found: &mut ExpertLayers) {
        found.layer("routed", &self.counts).stacked(&self.experts);
    }
}

impl Routed<AD> {
    fn new() -> Self {
        Self {
            router: Param::from_tensor(random([3, EXPERTS])),
            experts: Param::from_tensor(random([EXPERTS, 3, 2])),
            counts: ExpertCounts::new(&Default::default()),
        }
    }

    /// Gradients of the squared outputs summed over `tokens [T, 3]`, with the counts.
    fn gradients(&self, tokens: Tensor<AD, 2>) -> GradientsParams {
        let num_tokens = tokens.dims()[0];
        let probs = softmax(tokens.clone().matmul(self.router.val()), 1);
        let chosen: Tensor<AD, 2, Int> = probs.clone().argmax(1);
        let mask = Tensor::zeros([num_tokens, EXPERTS], &tokens.device()).scatter(
            1,
            chosen.clone(),
            Tensor::ones([num_tokens, 1], &tokens.device()),
            burn::tensor::IndexingUpdateOp::Add,
        );
        let gates: Tensor<AD, 3> = (probs * mask.clone()).transpose().unsqueeze_dim(2);
        let outputs = tokens.unsqueeze::<3>().matmul(self.experts.val());
        let loss = (outputs * gates).sum_dim(0).square().sum();
        let mut grads = GradientsParams::from_grads(loss.backward(), self);
        self.counts.register(&mut grads, mask.inner().sum_dim(0).reshape([EXPERTS]), num_tokens);
        grads
    }
}

fn tokens(count: usize) -> Tensor<AD, 2> {
    random([count, 3])
}

fn assert_same(found: &[Value], expected: &[Value]) {
    let expected: Vec<Vec<f64>> =
        expected.iter().map(|(_, _, elements)| elements.iter().map(|&x| f64::from(x)).collect()).collect();
    assert_close("steps", found, &expected);
}

fn configs() -> Vec<ExcitationConfig> {
    let variants = [Variant::ZeroSum, Variant::PositiveSum, Variant::ExpDiff];
    variants.map(|variant| ExcitationConfig::new().with_variant(variant)).to_vec()
}

#[test]
fn micro_batches_down_to_one_token_equal_one_batch_of_all_of_them() {
    for config in configs() {
        for (micro_batches, size) in [(4, 8), (16, 1)] {
            let start = Routed::new();
            let all = tokens(micro_batches * size);
            let mut accumulator = GradientsAccumulator::new();
            for part in all.clone().chunk(micro_batches, 0) {
                accumulator.accumulate(&start, start.gradients(part));
            }
            let mut optim = config.init(AdamWConfig::new().init());
            let accumulated = optim.clone().step(LR, start.clone(), accumulator.grads());
            let at_once = optim.step(LR, start.clone(), start.gradients(all));
            assert_same(&values(&accumulated), &values(&at_once));
        }
    }
}

#[test]
fn two_devices_equal_one() {
    for config in configs() {
        for low_memory in [false, true] {
            let start = Routed::new();
            let all = tokens(12);
            let device = start.devices()[0].id();
            let parts = all.clone().chunk(2, 0).into_iter();
            let grads = parts.map(|part| (start.gradients(part), device)).collect();
            let mut optim = config.clone().with_low_memory(low_memory).init(SgdConfig::new().init());
            let two = optim.clone().step_multi(LR, start.clone(), MultiGradientsParams { grads });
            let one = optim.step(LR, start.clone(), start.gradients(all));
            assert_same(&values(&two), &values(&one));
        }
    }
}

#[test]
fn a_module_loaded_from_a_record_has_other_ids_and_steps_alike() {
    let (start, other) = (Routed::new(), Routed::new());
    let loaded = other.load_record(start.clone().into_record());
    assert_ne!(loaded.counts.id(), start.counts.id());
    let all = tokens(9);
    let mut optim = ExcitationConfig::new().init(SgdConfig::new().init());
    let expected = optim.step(LR, start.clone(), start.gradients(all.clone()));
    let found = optim.step(LR, loaded.clone(), loaded.gradients(all));
    assert_eq!(values(&found), values(&expected));
}

#[test]
fn the_step_reports_the_factors_of_every_layer() {
    let zoo = Zoo::new(true);
    let mut grads = gradients(&zoo);
    SKEWED.register(&zoo, &mut grads);
    let mut exciter = Exciter::new(ExcitationConfig::new(), excitation_optim::ByModule);
    let (_, factors) = exciter.step(&mut SgdConfig::new().init(), LR, zoo, grads);
    let found: Vec<(String, Vec<f32>)> =
        factors.into_iter().map(|f| (f.name, f.factors.into_data().to_vec().expect("factors are f32"))).collect();
    let named = |name: &str, factors: &[f32]| (name.to_string(), factors.to_vec());
    let expected = [
        named("stack", &[2.25, 1.0, 1.0]),
        named("hidden", &[1.0, 1.0, 7.0 / 3.0, 4.0 / 3.0]),
        named("list", &[11.0 / 6.0, 1.0]),
    ];
    for ((name, found), (expected_name, expected)) in found.iter().zip(&expected) {
        assert_eq!(name, expected_name);
        let close = |(a, b): (&f32, &f32)| f64::from((a - b).abs()) <= RELATIVE * f64::from(*b);
        assert!(found.iter().zip(expected).all(close), "{name}: {found:?} != {expected:?}");
    }
}

#[test]
fn an_idle_expert_decays_like_all_others_when_decay_is_left_out_of_the_factor() {
    const DECAY: f64 = 0.5;
    let zoo = Zoo::new(true);
    let zero_sum = ExcitationConfig::new().with_variant(Variant::ZeroSum);
    let step = |config: ExcitationConfig| {
        let mut grads = gradients(&zoo);
        SKEWED.register(&zoo, &mut grads);
        let mut optim = config.init(AdamWConfig::new().with_weight_decay(DECAY as f32).init());
        values(&optim.step(LR, zoo.clone(), grads))
    };
    let old = values(&zoo);
    let frozen = step(zero_sum.clone());
    let decayed = step(zero_sum.with_unscaled_decay(Some(DECAY)));
    for (found, factor) in [(frozen, 1.0), (decayed, 1.0 - LR * DECAY)] {
        for (found, old) in stacked_expert(&found, 2).iter().zip(stacked_expert(&old, 2)) {
            let expected = f64::from(*old) * factor;
            assert!((f64::from(*found) - expected).abs() <= RELATIVE * expected.abs() + ABSOLUTE);
        }
    }
}

#[test]
fn a_resumed_optimizer_told_its_step_continues_warm_up_and_random_controls() {
    let config = ExcitationConfig::new().with_warmup_steps(5).with_control(Some(Control::RandomBoost));
    let zoo = Zoo::new(true);
    let grads: Vec<_> = (0..4).map(|_| gradients(&zoo)).collect();
    let run = |mut optim: excitation_optim::Excitation<_>, mut zoo: Zoo<AD>, steps: &[GradientsParams]| {
        for grads in steps {
            let mut grads = copy(&zoo, grads);
            SKEWED.register(&zoo, &mut grads);
            zoo = Optimizer::<Zoo<AD>, AD>::step(&mut optim, LR, zoo, grads);
        }
        zoo
    };
    let fresh = || config.init(SgdConfig::new().init::<AD, Zoo<AD>>());
    let unbroken = run(fresh(), zoo.clone(), &grads);
    let halfway = run(fresh(), zoo.clone(), &grads[..2]);
    let resumed = run(fresh().starting_at(2), halfway.clone(), &grads[2..]);
    assert_eq!(values(&resumed), values(&unbroken));
    assert_ne!(values(&run(fresh(), halfway, &grads[2..])), values(&unbroken));
}

fn step_zoo(register: impl FnOnce(&Zoo<AD>, &mut GradientsParams)) {
    let zoo = Zoo::new(true);
    let mut grads = gradients(&zoo);
    register(&zoo, &mut grads);
    ExcitationConfig::new().init(SgdConfig::new().init()).step(LR, zoo, grads);
}

#[test]
#[should_panic(expected = "expert layer `stack` has no counts")]
fn a_step_without_counts_panics() {
    step_zoo(|_, _| ());
}

#[test]
#[should_panic(expected = "the counts of expert layer `hidden` must be [E] or [E + 1]")]
fn counts_that_do_not_fit_the_expert_axis_panic() {
    step_zoo(|zoo, grads| {
        SKEWED.register(zoo, grads);
        grads.register(zoo.hidden_counts.id(), Tensor::<Flex, 1>::ones([UNITS + 2], &Default::default()));
    });
}

fn step_routed<F: Fn(&Routed<AD>, &mut ExpertLayers) + Clone + Send>(finder: F) {
    step_routed_with(ExcitationConfig::new(), finder);
}

fn step_routed_with<F: Fn(&Routed<AD>, &mut ExpertLayers) + Clone + Send>(config: ExcitationConfig, finder: F) {
    let routed = Routed::new();
    let grads = routed.gradients(tokens(5));
    config.init_with(SgdConfig::new().init(), finder).step(LR, routed, grads);
}

#[test]
#[should_panic(expected = "no expert layer was found")]
fn a_module_that_names_no_layer_panics() {
    step_routed(|_, _| ());
}

#[test]
#[should_panic(
    expected = "`counts` [0] was given Some([5]): counts of an expert layer that ExpertModule does not name"
)]
fn counts_of_a_layer_that_is_not_named_panic() {
    let routed = Routed::new();
    let mut grads = routed.gradients(tokens(5));
    let elsewhere = ParamId::new();
    register_counts(&mut grads, elsewhere, Tensor::<Flex, 1>::ones([EXPERTS], &Default::default()), 4);
    let finder = move |routed: &Routed<AD>, found: &mut ExpertLayers| {
        found.layer("other", elsewhere).stacked(&routed.experts);
    };
    ExcitationConfig::new().init_with(SgdConfig::new().init(), finder).step(LR, routed, grads);
}

#[test]
#[should_panic(expected = "1 expert parameters were named, the module has 0 of them")]
fn a_named_parameter_that_is_not_in_the_module_panics() {
    step_routed(name_a_stranger);
}

fn name_a_stranger(routed: &Routed<AD>, found: &mut ExpertLayers) {
    let stranger = Param::from_tensor(random([EXPERTS, 1]));
    found.layer("routed", &routed.counts).stacked(&stranger);
}

#[test]
#[should_panic(expected = "1 expert parameters were named, the module has 0 of them")]
fn a_stranger_panics_one_parameter_at_a_time_too() {
    step_routed_with(ExcitationConfig::new().with_low_memory(true), name_a_stranger);
}

#[test]
#[should_panic(expected = "1 expert parameters were named, the module has 0 of them")]
fn a_stranger_panics_where_nothing_is_scaled_too() {
    step_routed_with(ExcitationConfig::new().with_gamma(0.0), name_a_stranger);
}

#[test]
#[should_panic(expected = "expert layer `routed` names no parameter")]
fn a_layer_that_names_no_parameter_panics() {
    step_routed(|routed, found| {
        found.layer("routed", &routed.counts);
    });
}

#[test]
#[should_panic(expected = "a parameter of expert layer `routed` is named twice")]
fn a_parameter_that_is_named_twice_panics() {
    step_routed(|routed, found| {
        found.layer("routed", &routed.counts).stacked(&routed.experts).stacked(&routed.experts);
    });
}

#[test]
#[should_panic(expected = "ExpDiff needs the number of tokens")]
fn a_step_of_exp_diff_without_the_number_of_tokens_panics() {
    let routed = Routed::new();
    let mut grads = routed.gradients(tokens(5));
    grads.register(routed.counts.id(), Tensor::<Flex, 1>::ones([EXPERTS], &Default::default()));
    let config = ExcitationConfig::new().with_variant(Variant::ExpDiff);
    config.init(SgdConfig::new().init()).step(LR, routed, grads);
}

#[test]
#[should_panic(expected = "expert layer `stack` has no counts")]
fn a_step_of_several_devices_without_counts_panics() {
    let zoo = Zoo::new(true);
    let grads = MultiGradientsParams { grads: vec![(gradients(&zoo), zoo.devices()[0].id())] };
    ExcitationConfig::new().init(SgdConfig::new().init()).step_multi(LR, zoo, grads);
}

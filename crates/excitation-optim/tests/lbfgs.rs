//! LBFGS, which evaluates the loss itself.

mod common;

use burn::backend::Flex;
use burn::module::{Module, Param, ParamId};
use burn::optim::{GradientsParams, LBFGSConfig, LineSearchFn};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use common::{ABSOLUTE, AD, RELATIVE, random};
use excitation_optim::{ExcitationConfig, ExpertCounts, ExpertLayers, ExpertModule, Variant, register_counts};

const LR: f64 = 0.5;

/// Two experts with a loss of their own each, and a vector that is no expert.
#[derive(Module, Debug)]
struct Bowl<B: Backend> {
    experts: Param<Tensor<B, 2>>,
    counts: ExpertCounts<B>,
    plain: Param<Tensor<B, 1>>,
}

impl<B: Backend> ExpertModule for Bowl<B> {
    fn expert_layers(&self, found: &mut ExpertLayers) {
        found.layer("bowl", &self.counts).stacked(&self.experts);
    }
}

impl Bowl<AD> {
    fn new() -> Self {
        Self {
            experts: Param::from_tensor(random([2, 3])),
            counts: ExpertCounts::new(&Default::default()),
            plain: Param::from_tensor(random([3])),
        }
    }

    fn loss(&self, counts: Option<[f32; 2]>) -> (f64, GradientsParams) {
        let curvature = Tensor::<AD, 2>::from([[1.0, 4.0, 9.0], [2.0, 3.0, 5.0]]);
        let loss = (self.experts.val().square() * curvature).sum() + (self.plain.val() - 1.0).square().sum();
        let value = f64::from(loss.clone().into_scalar());
        let mut grads = GradientsParams::from_grads(loss.backward(), self);
        if let Some(counts) = counts {
            self.counts.register(&mut grads, Tensor::<Flex, 1>::from(counts), 4);
        }
        (value, grads)
    }
}

fn config() -> LBFGSConfig {
    LBFGSConfig::new().with_max_iter(3).with_line_search_fn(LineSearchFn::StrongWolfe)
}

fn elements(bowl: &Bowl<AD>) -> (Vec<f32>, Vec<f32>) {
    let experts = bowl.experts.val().into_data().to_vec().expect("parameters are f32");
    (experts, bowl.plain.val().into_data().to_vec().expect("parameters are f32"))
}

#[test]
fn with_factors_of_one_lbfgs_is_bit_equal_to_itself() {
    let start = Bowl::new();
    let (mut bare, mut bare_bowl) = (config().init::<AD>(), start.clone());
    let (mut excited, mut bowl) = (ExcitationConfig::new().init(config().init::<AD>()), start);
    for _ in 0..3 {
        let bare_loss;
        (bare_bowl, bare_loss) = bare.step(LR, bare_bowl, |bowl: Bowl<AD>| bowl.loss(None));
        let loss;
        (bowl, loss) = excited.step_closure(LR, bowl, |bowl: Bowl<AD>| bowl.loss(Some([2.0, 2.0])));
        assert_eq!((elements(&bowl), loss), (elements(&bare_bowl), bare_loss));
    }
}

#[test]
fn the_whole_change_of_lbfgs_is_scaled() {
    let bowl = Bowl::new();
    let (old, _) = elements(&bowl);
    let (bare, _) = config().init::<AD>().step(LR, bowl.clone(), |bowl: Bowl<AD>| bowl.loss(None));
    let zero_sum = ExcitationConfig::new().with_variant(Variant::ZeroSum);
    let mut excited = zero_sum.init(config().init::<AD>());
    let (bowl, _) = excited.step_closure(LR, bowl, |bowl: Bowl<AD>| bowl.loss(Some([3.0, 1.0])));
    let ((bare, bare_plain), (found, plain)) = (elements(&bare), elements(&bowl));
    assert_eq!(plain, bare_plain);
    for (i, phi) in [1.5, 1.5, 1.5, 0.5, 0.5, 0.5].into_iter().enumerate() {
        let (old, bare) = (f64::from(old[i]), f64::from(bare[i]));
        let expected = old + phi * (bare - old);
        assert!((f64::from(found[i]) - expected).abs() <= RELATIVE * expected.abs() + ABSOLUTE);
    }
}

#[test]
#[should_panic(expected = "expert layer `bowl` has no counts")]
fn a_closure_that_registers_no_counts_panics() {
    let mut excited = ExcitationConfig::new().init(config().init::<AD>());
    excited.step_closure(LR, Bowl::new(), |bowl: Bowl<AD>| bowl.loss(None));
}

#[test]
#[should_panic(expected = "`counts` [0] was given Some([3])")]
fn counts_that_the_closure_registers_for_no_layer_panic() {
    let elsewhere = ParamId::new();
    let finder = move |bowl: &Bowl<AD>, found: &mut ExpertLayers| {
        found.layer("other", elsewhere).stacked(&bowl.experts);
    };
    let mut excited = ExcitationConfig::new().init_with(config().init::<AD>(), finder);
    excited.step_closure(LR, Bowl::new(), |bowl: Bowl<AD>| {
        let (loss, mut grads) = bowl.loss(Some([2.0, 2.0]));
        register_counts(&mut grads, elsewhere, Tensor::<Flex, 1>::from([2.0, 2.0]), 4);
        (loss, grads)
    });
}

#[test]
#[should_panic(expected = "1 expert parameters were named, the module has 0 of them")]
fn a_stranger_panics() {
    let finder = |bowl: &Bowl<AD>, found: &mut ExpertLayers| {
        found.layer("bowl", &bowl.counts).stacked(&Param::from_tensor(random([2, 1])));
    };
    let mut excited = ExcitationConfig::new().init_with(config().init::<AD>(), finder);
    excited.step_closure(LR, Bowl::new(), |bowl: Bowl<AD>| bowl.loss(Some([2.0, 2.0])));
}

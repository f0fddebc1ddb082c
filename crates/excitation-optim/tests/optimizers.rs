//! What must hold around every optimizer that burn 0.21 has, LBFGS aside, which has a program of its own.

mod common;

use burn::backend::Flex;
use burn::grad_clipping::GradientClippingConfig;
use burn::optim::adaptor::OptimizerAdaptor;
use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{
    AdaGradConfig, AdamConfig, AdamWConfig, AdanConfig, MuonConfig, Optimizer, RmsPropConfig, SgdConfig,
};
use burn::record::{FullPrecisionSettings, NamedMpkBytesRecorder, Recorder};
use common::*;
use excitation_optim::{ExcitationConfig, PerExpert, Variant};

/// A statement about any optimizer; `start` is the module it can step.
trait Property {
    fn holds<O: Optimizer<Zoo<AD>, AD>>(&self, name: &str, optim: O, start: Zoo<AD>);
}

fn for_every_optimizer(property: &impl Property) {
    let zoo = || Zoo::new(true);
    let decay = || Some(WeightDecayConfig::new(0.1));
    let clipped = Some(GradientClippingConfig::Norm(0.5));
    property.holds("SGD", SgdConfig::new().init(), zoo());
    property.holds(
        "SGD with momentum and decay",
        SgdConfig::new().with_momentum(Some(MomentumConfig::new())).with_weight_decay(decay()).init(),
        zoo(),
    );
    property.holds("SGD with clipping", SgdConfig::new().with_gradient_clipping(clipped).init(), zoo());
    property.holds("Adam", AdamConfig::new().with_weight_decay(decay()).init(), zoo());
    property.holds("AdamW", AdamWConfig::new().with_weight_decay(0.1).init(), zoo());
    property.holds("AdaGrad", AdaGradConfig::new().init(), zoo());
    property.holds("RMSProp", RmsPropConfig::new().with_centered(true).with_momentum(0.9).init(), zoo());
    property.holds("Adan", AdanConfig::new().with_weight_decay(0.1).init(), zoo());
    let muon = PerExpert::new(MuonConfig::new().with_weight_decay(decay()).build::<Flex>());
    property.holds("Muon", OptimizerAdaptor::from(muon), Zoo::new(false));
}

/// Steps with the given load.
fn steps(mut optim: impl Optimizer<Zoo<AD>, AD>, mut zoo: Zoo<AD>, load: Option<&Load>, count: u64) -> Vec<Value> {
    for step in 0..count {
        let mut grads = seeded_gradients(&zoo, step);
        if let Some(load) = load {
            load.register(&zoo, &mut grads);
        }
        zoo = optim.step(LR, zoo, grads);
    }
    values(&zoo)
}

/// Gradients that depend on the step and the parameter's size alone, so that two runs see the same.
fn seeded_gradients(zoo: &Zoo<AD>, step: u64) -> burn::optim::GradientsParams {
    use burn::module::{Module, ModuleVisitor, Param};
    use burn::tensor::{Tensor, TensorData};
    struct Fill(burn::optim::GradientsParams, f32);
    impl ModuleVisitor<AD> for Fill {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<AD, D>>) {
            let elements = param.shape().num_elements();
            if elements == 0 {
                return;
            }
            self.1 += 1.0;
            let wave = (0..elements).map(|i| (1.7 * self.1 + 2.3 * i as f32).sin()).collect();
            let data = TensorData::new::<f32, _>(wave, param.dims());
            self.0.register(param.id, Tensor::<Flex, D>::from_data(data, &Default::default()));
        }
    }
    let mut fill = Fill(Default::default(), 10.0 * step as f32);
    zoo.visit(&mut fill);
    fill.0
}

fn config() -> ExcitationConfig {
    ExcitationConfig::new().with_variant(Variant::ZeroSum)
}

struct BitEqualAtFactorOne;

impl Property for BitEqualAtFactorOne {
    fn holds<O: Optimizer<Zoo<AD>, AD>>(&self, name: &str, optim: O, start: Zoo<AD>) {
        let bare = steps(optim.clone(), start.clone(), None, 4);
        for variant in [Variant::ZeroSum, Variant::PositiveSum, Variant::ExpDiff] {
            let config = config().with_variant(variant);
            let uniform = steps(config.init(optim.clone()), start.clone(), Some(&UNIFORM), 4);
            assert_eq!(uniform, bare, "{name}, {variant:?}, uniform load");
            let idle = Load { stack: [0.0; STACKED], hidden: [0.0; UNITS], list: [f32::NAN; LISTED], tokens: 0 };
            let silent = steps(config.init(optim.clone()), start.clone(), Some(&idle), 4);
            assert_eq!(silent, bare, "{name}, {variant:?}, statistics that say nothing");
            let off = config.with_gamma(0.0).init(optim.clone());
            assert_eq!(steps(off, start.clone(), Some(&SKEWED), 4), bare, "{name}, {variant:?}, gamma 0");
        }
    }
}

#[test]
fn with_factors_of_one_every_optimizer_is_bit_equal_to_itself() {
    for_every_optimizer(&BitEqualAtFactorOne);
}

struct ScalesTheWholeChange;

impl Property for ScalesTheWholeChange {
    fn holds<O: Optimizer<Zoo<AD>, AD>>(&self, name: &str, optim: O, mut zoo: Zoo<AD>) {
        let mut excited = config().init(optim);
        for _ in 0..4 {
            let mut grads = gradients(&zoo);
            let old = values(&zoo);
            let mut bare = excited.inner.clone();
            let bare_zoo = bare.step(LR, zoo.clone(), copy(&zoo, &grads));
            SKEWED.register(&zoo, &mut grads);
            zoo = excited.step(LR, zoo, grads);
            let expected = excited_on_slices(&old, &values(&bare_zoo), &SKEWED, zero_sum);
            assert_close(name, &values(&zoo), &expected);
            assert_same_state(name, bare, excited.inner.clone(), &zoo);
        }
    }
}

/// Both optimizers make the same of the same next step: excitation left the moments alone.
fn assert_same_state<O: Optimizer<Zoo<AD>, AD>>(name: &str, mut bare: O, mut inner: O, zoo: &Zoo<AD>) {
    let grads = gradients(zoo);
    let bare = bare.step(LR, zoo.clone(), copy(zoo, &grads));
    let inner = inner.step(LR, zoo.clone(), grads);
    assert_eq!(values(&bare), values(&inner), "{name}: moments were touched");
}

#[test]
fn each_expert_gets_its_factor_times_the_change_of_the_inner_optimizer() {
    for_every_optimizer(&ScalesTheWholeChange);
}

struct SameInLowMemory;

impl Property for SameInLowMemory {
    fn holds<O: Optimizer<Zoo<AD>, AD>>(&self, name: &str, optim: O, start: Zoo<AD>) {
        let usual = steps(config().init(optim.clone()), start.clone(), Some(&SKEWED), 3);
        let sparing = steps(config().with_low_memory(true).init(optim), start, Some(&SKEWED), 3);
        assert_eq!(usual, sparing, "{name}");
    }
}

#[test]
fn the_low_memory_mode_is_bit_equal_to_the_usual_one() {
    for_every_optimizer(&SameInLowMemory);
}

struct ExchangesCheckpoints;

impl Property for ExchangesCheckpoints {
    fn holds<O: Optimizer<Zoo<AD>, AD>>(&self, name: &str, optim: O, start: Zoo<AD>) {
        let excited = || config().init(optim.clone());
        let (mut bare, grads) = (optim.clone(), gradients(&start));
        let zoo = bare.step(LR, start.clone(), grads);
        // A plain run goes on excited, and an excited optimizer's record goes on plain.
        let resumed = excited().load_record(through_bytes::<O>(bare.to_record()));
        let unbroken = config().init(bare.clone());
        let load = Some(&SKEWED);
        assert_eq!(
            steps(resumed, zoo.clone(), load, 2),
            steps(unbroken, zoo.clone(), load, 2),
            "{name}, plain to excited"
        );
        let record = through_bytes::<O>(config().init(bare.clone()).to_record());
        let resumed = optim.clone().load_record(record);
        assert_eq!(steps(resumed, zoo.clone(), None, 2), steps(bare, zoo, None, 2), "{name}, excited to plain");
    }
}

fn through_bytes<O: Optimizer<Zoo<AD>, AD>>(record: O::Record) -> O::Record {
    let recorder = NamedMpkBytesRecorder::<FullPrecisionSettings>::default();
    let bytes = Recorder::<AD>::record(&recorder, record, ()).expect("bytes can be written");
    Recorder::<AD>::load(&recorder, bytes, &Default::default()).expect("and read")
}

#[test]
fn a_checkpoint_of_a_plain_run_resumes_excited_and_back() {
    for_every_optimizer(&ExchangesCheckpoints);
}

#[test]
fn per_expert_steps_a_matrix_as_the_inner_optimizer_does() {
    let zoo = Zoo::new(false);
    let grads = gradients(&zoo);
    let rank_two = |grads| {
        let mut grads: burn::optim::GradientsParams = grads;
        grads.remove::<Flex, 3>(zoo.stack.id);
        grads
    };
    let muon = || MuonConfig::new().build::<Flex>();
    let bare = OptimizerAdaptor::from(muon()).step(LR, zoo.clone(), rank_two(copy(&zoo, &grads)));
    let each = OptimizerAdaptor::from(PerExpert::new(muon())).step(LR, zoo.clone(), rank_two(grads));
    assert_eq!(values(&bare), values(&each));
}

#[test]
#[should_panic(expected = "give vectors to another optimizer")]
fn per_expert_refuses_vectors() {
    let zoo = Zoo::new(true);
    let grads = gradients(&zoo);
    OptimizerAdaptor::from(PerExpert::new(MuonConfig::new().build::<Flex>())).step(LR, zoo, grads);
}

//! The language model in burn's `Learner`, for whoever prefers it to [`train`](crate::trainer::train).
//!
//! The program has its own loop (`docs/decisions/0002-own-training-loop.md`). [`LearnerLm`] takes the same [`Batch`]es
//! to `burn::train`, where [`LmOptimizer`](crate::optim::LmOptimizer) works too, alone or in an
//! [`Excitation`](excitation_optim::Excitation) with [`ModelExperts`](crate::optim::ModelExperts). A model with default vectors needs
//! it inside [`Absorbing`](default_moe::optimizer::Absorbing), which moves them, and one whose routers remember something (`sigmoid`, `relu`)
//! inside [`Balancing`](moe_layers::router::optimizer::Balancing).

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn::train::metric::{Adaptor, LossInput};
use burn::train::{InferenceStep, ItemLazy, TrainOutput, TrainStep};
use default_moe::DefaultVectors;
use default_moe::optimizer::{HasDefaultVectors, register};
use excitation_optim::ExpertCounts;
use moe_kernels::{AutodiffMoeBackend, MoeBackend};
use moe_layers::router::optimizer::{HasRouters, register as register_loads};
use moe_layers::{ExpertLoad, Router};
use moe_models::lm::Lm;

use crate::data::Batch;
use crate::model::HasExperts;

/// A language model as a model of burn's `Learner`.
#[derive(Module, Debug)]
pub struct LearnerLm<B: Backend> {
    /// The model.
    pub lm: Lm<B>,
    /// Where the counts of each MoE layer are registered with the gradients; empty without excitation.
    pub counts: Vec<ExpertCounts<B>>,
}

impl<B: Backend> LearnerLm<B> {
    /// A model for any optimizer.
    pub fn new(lm: Lm<B>) -> Self {
        Self { lm, counts: Vec::new() }
    }

    /// A model that hands its counts to an [`Excitation`](excitation_optim::Excitation), the only optimizer that takes them.
    pub fn counting(lm: Lm<B>) -> Self {
        let device = lm.embedding.device();
        let counts = lm.moe_layers().iter().map(|_| ExpertCounts::new(&device)).collect();
        Self { lm, counts }
    }
}

impl<B: Backend> HasDefaultVectors<B> for LearnerLm<B> {
    fn default_vectors(&self) -> Vec<&DefaultVectors<B>> {
        self.lm.default_vectors()
    }

    fn default_vectors_mut(&mut self) -> Vec<&mut DefaultVectors<B>> {
        self.lm.default_vectors_mut()
    }
}

impl<B: Backend> HasRouters<B> for LearnerLm<B> {
    fn routers(&self) -> Vec<&Router<B>> {
        self.lm.routers()
    }

    fn routers_mut(&mut self) -> Vec<&mut Router<B>> {
        self.lm.routers_mut()
    }
}

/// What a step shows to metrics; `LossMetric` takes its cross-entropy.
pub struct LmStepOutput<B: Backend> {
    /// Mean cross-entropy of the batch, nats per token, `[1]`.
    pub cross_entropy: Tensor<B, 1>,
}

impl<B: Backend> Adaptor<LossInput<B>> for LmStepOutput<B> {
    fn adapt(&self) -> LossInput<B> {
        LossInput::new(self.cross_entropy.clone())
    }
}

impl<B: Backend> ItemLazy for LmStepOutput<B> {
    type ItemSync = Self;

    // One number, which the metric reads on its own thread anyway.
    fn sync(self) -> Self {
        self
    }
}

impl<B: AutodiffMoeBackend> TrainStep for LearnerLm<B> {
    type Input = Batch;
    type Output = LmStepOutput<B::InnerBackend>;

    /// Gradients of cross-entropy plus weighted auxiliary losses, and among them the updates of default vectors, the loads of routers
    /// that remember something and, where wanted, the counts of every MoE layer.
    fn step(&self, batch: Batch) -> TrainOutput<Self::Output> {
        let (inputs, targets) = batch.to_tensors::<B>(&self.devices()[0]);
        let loss = self.lm.loss(inputs, targets);
        let output = LmStepOutput { cross_entropy: loss.cross_entropy.inner() };
        let mut output = TrainOutput::new(self, loss.total.backward(), output);
        for (counts, layer) in self.counts.iter().zip(&loss.layers) {
            let routing = &layer.routing;
            counts.register(&mut output.grads, routing.demand().inner().float(), routing.num_tokens());
        }
        if self.lm.absorbs_loads() {
            let loads = loss.layers.iter().map(|layer| ExpertLoad::of(&layer.routing));
            register_loads(self, loads, &mut output.grads);
        }
        let updates = loss.layers.into_iter().filter_map(|layer| layer.default_update);
        register(self, updates, &mut output.grads);
        output
    }
}

impl<B: MoeBackend> InferenceStep for LearnerLm<B> {
    type Input = Batch;
    type Output = LmStepOutput<B>;

    fn step(&self, batch: Batch) -> Self::Output {
        let (inputs, targets) = batch.to_tensors::<B>(&self.devices()[0]);
        LmStepOutput { cross_entropy: self.lm.loss(inputs, targets).cross_entropy }
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::{Autodiff, Flex};
    use burn::data::dataloader::DataLoaderBuilder;
    use burn::data::dataloader::batcher::Batcher;
    use burn::data::dataset::InMemDataset;
    use burn::lr_scheduler::constant::ConstantLr;
    use burn::module::{AutodiffModule, ModuleVisitor, Param};
    use burn::optim::{GradientsAccumulator, MultiGradientsParams};
    use burn::tensor::ElementConversion;
    use burn::tensor::backend::DeviceOps;
    use burn::train::renderer::CliMetricsRenderer;
    use burn::train::{
        ExecutionStrategy, Learner, LearningComponentsMarker, MultiDeviceOptim, SupervisedTraining, TrainingStrategy,
    };
    use default_moe::optimizer::Absorbing;
    use excitation_optim::{Excitation, ExcitationConfig, Variant};
    use moe_layers::router::optimizer::Balancing;
    use moe_models::lm::RouterKind;

    use super::*;
    use crate::data::train_batch;
    use crate::optim::{LmOptimizer, ModelExperts};
    use crate::trainer::testing::{config, model, text};

    type AD = Autodiff<Flex>;

    #[test]
    fn steps_of_the_learner_lower_the_loss() {
        let (config, text) = (config(), text(600));
        let optim = LmOptimizer::<LearnerLm<AD>, AD>::adamw(&config.optim);
        let mut learner = Learner::new(LearnerLm::new(model()), optim, ConstantLr::new(1e-2));
        let held_out = train_batch(&text, &config.train, 1000, 0);
        let loss_of = |model: LearnerLm<AD>| {
            let output = InferenceStep::step(&model.valid(), held_out.clone());
            output.cross_entropy.into_scalar().elem::<f64>()
        };
        let before = loss_of(learner.model());
        for step in 0..30 {
            learner.lr_step();
            let output = learner.train_step(train_batch(&text, &config.train, step, 0));
            learner.optimizer_step(output.grads);
        }
        let after = loss_of(learner.model());
        assert!(after < 0.7 * before, "{before} -> {after}");
    }

    #[test]
    fn default_vectors_move_in_steps_of_the_learner() {
        let (mut config, text) = (config(), text(600));
        config.model.moe.router = RouterKind::Default;
        let lm = config.model.init::<AD>(&Default::default());
        let optim = Absorbing::new(LmOptimizer::<LearnerLm<AD>, AD>::adamw(&config.optim));
        let mut learner = Learner::new(LearnerLm::new(lm), optim, ConstantLr::new(1e-2));
        let batch = train_batch(&text, &config.train, 0, 0);
        let (inputs, targets) = batch.to_tensors::<AD>(&Default::default());
        let start = learner.model().lm;
        let update = start.loss(inputs, targets).layers.remove(0).default_update.expect("a training pass");
        let expected = start.default_vectors()[0].updated(&update).into_data();
        learner.lr_step();
        let output = learner.train_step(batch);
        learner.optimizer_step(output.grads);
        learner.model().lm.default_vectors()[0].values.to_data().assert_eq(&expected, true);
    }

    #[test]
    fn routers_balance_themselves_in_steps_of_the_learner() {
        let (mut config, text) = (config(), text(600));
        config.model.moe.router = RouterKind::Sigmoid;
        let lm = config.model.init::<AD>(&Default::default());
        let optim = Balancing::new(LmOptimizer::<LearnerLm<AD>, AD>::adamw(&config.optim));
        let mut learner = Learner::new(LearnerLm::new(lm), optim, ConstantLr::new(1e-2));
        let batch = train_batch(&text, &config.train, 0, 0);
        let (inputs, targets) = batch.to_tensors::<AD>(&Default::default());
        let start = learner.model().lm;
        let mut expected = start.routers()[0].clone();
        expected.absorb(&ExpertLoad::of(&start.loss(inputs, targets).layers[0].routing));
        learner.lr_step();
        let output = learner.train_step(batch);
        learner.optimizer_step(output.grads);
        let bias = |router: &Router<AD>| match router {
            Router::Sigmoid(router) => router.selection_bias.to_data(),
            other => panic!("another router: {other:?}"),
        };
        let moved = bias(learner.model().lm.routers()[0]);
        moved.assert_eq(&bias(&expected), true);
        assert_ne!(moved, bias(start.routers()[0]));
    }

    type Excited = Excitation<LmOptimizer<LearnerLm<AD>, AD>, ModelExperts>;
    type ExcitedLearner = Learner<LearningComponentsMarker<AD, ConstantLr, LearnerLm<AD>, Excited>>;

    fn excited(model: LearnerLm<AD>) -> ExcitedLearner {
        let optim = LmOptimizer::<LearnerLm<AD>, AD>::adamw(&config().optim);
        let config = ExcitationConfig::new().with_variant(Variant::ExpDiff).with_gamma(3.0);
        let mut learner = Learner::new(model, config.init_with(optim, ModelExperts), ConstantLr::new(1e-2));
        learner.lr_step();
        learner
    }

    fn parameters<B: Backend>(model: &LearnerLm<B>) -> Vec<f32> {
        struct Values(Vec<f32>);
        impl<B: Backend> ModuleVisitor<B> for Values {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
                self.0.extend(param.val().into_data().to_vec::<f32>().expect("parameters are f32"));
            }
        }
        let mut values = Values(Vec::new());
        model.visit(&mut values);
        values.0
    }

    #[test]
    fn accumulated_steps_of_an_excited_learner_equal_those_of_several_devices() {
        let (config, text) = (config(), text(600));
        let start = LearnerLm::counting(model());
        let batches = [0, 1].map(|micro| train_batch(&text, &config.train, 0, micro));
        let grads = |learner: &ExcitedLearner| batches.clone().map(|batch| learner.train_step(batch).grads);

        let mut accumulating = excited(start.clone());
        let mut accumulator = GradientsAccumulator::new();
        grads(&accumulating).into_iter().for_each(|grads| accumulator.accumulate(&accumulating.model(), grads));
        accumulating.optimizer_step(accumulator.grads());

        let mut spread = excited(start.clone());
        let device = start.devices()[0].id();
        let grads = grads(&spread).map(|grads| (grads, device)).into();
        spread.optimizer_step_multi(MultiGradientsParams { grads });

        assert_eq!(parameters(&accumulating.model()), parameters(&spread.model()));
        assert_ne!(parameters(&accumulating.model()), parameters(&start));
    }

    type Everything = Balancing<Absorbing<Excited>>;

    fn everything() -> Everything {
        let config = config();
        let excitation = ExcitationConfig::new().with_variant(Variant::ZeroSum);
        let excited = excitation.init_with(LmOptimizer::<LearnerLm<AD>, AD>::adamw(&config.optim), ModelExperts);
        Balancing::new(Absorbing::new(excited))
    }

    /// Hands a batch on.
    #[derive(Clone)]
    struct Whole;

    impl<B: Backend> Batcher<B, Batch, Batch> for Whole {
        fn batch(&self, mut items: Vec<Batch>, _device: &B::Device) -> Batch {
            items.remove(0)
        }
    }

    /// The parameters after an epoch of the whole of burn's training, which gets its batches one by one.
    fn after_an_epoch(start: &LearnerLm<AD>, batches: &[Batch], change: impl FnOnce(Training) -> Training) -> Vec<f32> {
        let directory = tempfile::tempdir().expect("a place for logs");
        let train = DataLoaderBuilder::new(Whole).batch_size(1).build(InMemDataset::new(batches.to_vec()));
        let valid = DataLoaderBuilder::new(Whole).batch_size(1).build(InMemDataset::new(batches[..1].to_vec()));
        let training = SupervisedTraining::new(directory.path(), train, valid)
            .num_epochs(1)
            .renderer(CliMetricsRenderer::new())
            .with_application_logger(None);
        let learner = Learner::new(start.clone(), everything(), ConstantLr::new(1e-2));
        parameters(&change(training).launch(learner).model)
    }

    type Training = SupervisedTraining<LearningComponentsMarker<AD, ConstantLr, LearnerLm<AD>, Everything>>;

    /// Two workers of burn's `Learner`, each with a half of the batches, move everything as one worker that accumulates two batches a
    /// step: weights, excited experts, default vectors and selection biases.
    #[test]
    fn workers_of_the_learner_equal_one_that_accumulates() {
        let (mut config, text) = (config(), text(600));
        (config.model.moe.router, config.model.moe.default_vectors) = (RouterKind::Sigmoid, true);
        let start = LearnerLm::counting(config.model.init(&Default::default()));
        let [first, second]: [Vec<Batch>; 2] =
            [0, 1].map(|half| (0..3).map(|step| train_batch(&text, &config.train, step, half)).collect());
        let halves = [first.clone(), second.clone()].concat();
        let in_turns: Vec<Batch> = first.into_iter().zip(second).flat_map(|(a, b)| [a, b]).collect();

        let accumulated = after_an_epoch(&start, &in_turns, |training| training.grads_accumulation(2));
        assert_ne!(accumulated, parameters(&start));
        for optim in [MultiDeviceOptim::OptimMainDevice, MultiDeviceOptim::OptimSharded] {
            let strategy = ExecutionStrategy::multi(vec![Default::default(); 2], optim);
            let spread = after_an_epoch(&start, &halves, |training| {
                training.with_training_strategy(TrainingStrategy::Default(strategy))
            });
            assert_eq!(spread, accumulated, "{optim:?}");
        }
    }
}

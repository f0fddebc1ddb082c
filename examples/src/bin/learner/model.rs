//! The model: a small classifier whose hidden block is a Mixture-of-Experts layer, and its steps for burn's `Learner`.

use burn::backend::Flex;
use burn::module::Module;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::Tensor;
use burn::tensor::activation::tanh;
use burn::tensor::backend::Backend;
use burn::train::metric::{AccuracyInput, Adaptor, LossInput};
use burn::train::{ClassificationOutput, InferenceStep, ItemLazy, TrainOutput, TrainStep};
use moe_layers::metrics::RoutingInput;
use moe_layers::{AutodiffMoeBackend, Moe, MoeBackend, MoeConfig, Routing, RoutingStats};

use crate::dataset::{ARMS, PointBatch};

/// Width of the hidden block.
const WIDTH: usize = 32;

/// Places `[N, 2]` to the scores of their arms `[N, ARMS]`.
#[derive(Module, Debug)]
pub(crate) struct Classifier<B: Backend> {
    input: Linear<B>,
    block: Moe<B>,
    output: Linear<B>,
}

impl<B: MoeBackend> Classifier<B> {
    /// 8 experts of width 32, 2 per point.
    pub(crate) fn new(device: &B::Device) -> Self {
        Self {
            input: LinearConfig::new(2, WIDTH).init(device),
            block: MoeConfig::new(WIDTH, 32, 8, 2).with_normalize_gates(true).init(device),
            output: LinearConfig::new(WIDTH, ARMS).init(device),
        }
    }

    /// `[N, 2]` to scores `[N, ARMS]`, the weighted auxiliary loss `[1]`, and what the router decided.
    pub(crate) fn forward(&self, places: Tensor<B, 2>) -> (Tensor<B, 2>, Tensor<B, 1>, Routing<B>) {
        let hidden = tanh(self.input.forward(places * 4.0));
        let moe = self.block.forward(hidden.clone());
        (self.output.forward(hidden + moe.output), moe.losses.weighted(), moe.routing)
    }

    /// The loss to minimise, `[1]`, and what metrics look at.
    fn evaluate(&self, batch: PointBatch<B>) -> (Tensor<B, 1>, StepOutput<B>) {
        let (scores, auxiliary, routing) = self.forward(batch.places);
        let loss = CrossEntropyLossConfig::new().init(&scores.device()).forward(scores.clone(), batch.arms.clone());
        let classification = ClassificationOutput::new(loss.clone(), scores, batch.arms);
        (loss + auxiliary, StepOutput { classification, routing })
    }
}

impl<B: AutodiffMoeBackend> TrainStep for Classifier<B> {
    type Input = PointBatch<B>;
    type Output = StepOutput<B>;

    fn step(&self, batch: PointBatch<B>) -> TrainOutput<StepOutput<B>> {
        let (loss, output) = self.evaluate(batch);
        TrainOutput::new(self, loss.backward(), output)
    }
}

impl<B: MoeBackend> InferenceStep for Classifier<B> {
    type Input = PointBatch<B>;
    type Output = StepOutput<B>;

    fn step(&self, batch: PointBatch<B>) -> StepOutput<B> {
        self.evaluate(batch).1
    }
}

/// What a step leaves for the metrics, on the device still.
pub(crate) struct StepOutput<B: MoeBackend> {
    classification: ClassificationOutput<B>,
    routing: Routing<B>,
}

/// The same on the host: burn calls `sync` on the thread of the metrics, so that a training step does not wait for it.
pub(crate) struct SyncedOutput {
    classification: ClassificationOutput<Flex>,
    stats: RoutingStats,
}

impl<B: MoeBackend> ItemLazy for StepOutput<B> {
    type ItemSync = SyncedOutput;

    fn sync(self) -> SyncedOutput {
        SyncedOutput { classification: self.classification.sync(), stats: RoutingStats::from_routing(&self.routing) }
    }
}

impl Adaptor<LossInput<Flex>> for SyncedOutput {
    fn adapt(&self) -> LossInput<Flex> {
        self.classification.adapt()
    }
}

impl Adaptor<AccuracyInput<Flex>> for SyncedOutput {
    fn adapt(&self) -> AccuracyInput<Flex> {
        self.classification.adapt()
    }
}

impl Adaptor<RoutingInput> for SyncedOutput {
    fn adapt(&self) -> RoutingInput {
        RoutingInput::new(vec![self.stats.clone()])
    }
}

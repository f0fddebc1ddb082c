//! An optimizer of one's own, which knows nothing of experts, inside two wrappers that do: excitation scales its step for each
//! expert by the expert's share of the batch, and the default vectors of a Default MoE layer are moved beside it.
//!
//! The optimizer is Lion ([Chen et al., 2023](https://arxiv.org/abs/2302.06675), algorithm 2), without decay.

#![forbid(unsafe_code)]

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module};
use burn::nn::{Linear, LinearConfig};
use burn::optim::adaptor::OptimizerAdaptor;
use burn::optim::{GradientsParams, LearningRate, Optimizer, SimpleOptimizer};
use burn::record::Record;
use burn::tensor::backend::Backend;
use burn::tensor::{Distribution, ElementConversion, Tensor};
use default_moe::optimizer::{Absorbing, HasDefaultVectors, register};
use default_moe::{DefaultMoe, DefaultMoeConfig, DefaultMoeOutput, DefaultVectors};
use excitation_optim::{ExcitationConfig, ExpertCounts, ExpertLayers, ExpertModule, Variant};
use moe_examples::Chosen;
use moe_layers::{MoeBackend, MoeConfig};

type Training = Autodiff<Chosen>;

const WIDTH: usize = 32;
const BATCH: usize = 256;
const STEPS: usize = 1000;
const LEARNING_RATE: f64 = 1e-3;

/// The sign of a mean of gradients; both means are exponential.
#[derive(Clone)]
struct Lion {
    /// Part of the momentum in the step, and part of it that a step keeps.
    betas: [f64; 2],
}

/// What Lion keeps of a parameter.
#[derive(Record, Clone)]
struct LionState<B: Backend, const D: usize> {
    momentum: Tensor<B, D>,
}

impl<B: Backend> SimpleOptimizer<B> for Lion {
    type State<const D: usize> = LionState<B, D>;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<B, D>,
        grad: Tensor<B, D>,
        state: Option<LionState<B, D>>,
    ) -> (Tensor<B, D>, Option<LionState<B, D>>) {
        let old = state.map_or_else(|| grad.zeros_like(), |state| state.momentum);
        let mean = |beta: f64| old.clone() * beta + grad.clone() * (1.0 - beta);
        let [in_step, kept] = self.betas;
        (tensor - mean(in_step).sign() * lr, Some(LionState { momentum: mean(kept) }))
    }

    fn to_device<const D: usize>(state: LionState<B, D>, device: &B::Device) -> LionState<B, D> {
        LionState { momentum: state.momentum.to_device(device) }
    }
}

/// Lion for a module, as burn makes one of every [`SimpleOptimizer`].
fn lion<M: AutodiffModule<Training>>() -> OptimizerAdaptor<Lion, M, Training> {
    OptimizerAdaptor::from(Lion { betas: [0.9, 0.99] })
}

/// Two coordinates to a number, by 4 experts of which each point has one.
#[derive(Module, Debug)]
struct Network<B: Backend> {
    input: Linear<B>,
    block: DefaultMoe<B>,
    output: Linear<B>,
    counts: ExpertCounts<B>,
}

impl<B: MoeBackend> Network<B> {
    fn new(device: &B::Device) -> Self {
        Self {
            input: LinearConfig::new(2, WIDTH).init(device),
            block: DefaultMoeConfig::new(MoeConfig::new(WIDTH, 32, 4, 1)).init(device),
            output: LinearConfig::new(WIDTH, 1).init(device),
            counts: ExpertCounts::new(device),
        }
    }

    /// `[N, 2]` to predictions `[N, 1]`, with what the layer reports.
    fn forward(&self, points: Tensor<B, 2>) -> (Tensor<B, 2>, DefaultMoeOutput<B, 2>) {
        let hidden = self.input.forward(points);
        let moe = self.block.forward(hidden.clone());
        (self.output.forward(hidden + moe.output.clone()), moe)
    }
}

/// Where the experts are, for excitation.
impl<B: Backend> ExpertModule for Network<B> {
    fn expert_layers(&self, found: &mut ExpertLayers) {
        let experts = &self.block.moe.experts;
        found.layer("block", &self.counts).stacked(&experts.w_in).stacked(&experts.w_out);
    }
}

/// Where the default vectors are, for the optimizer that moves them.
impl<B: Backend> HasDefaultVectors<B> for Network<B> {
    fn default_vectors(&self) -> Vec<&DefaultVectors<B>> {
        vec![&self.block.vectors]
    }

    fn default_vectors_mut(&mut self) -> Vec<&mut DefaultVectors<B>> {
        vec![&mut self.block.vectors]
    }
}

/// What one batch says.
struct Pass {
    error: f64,
    /// Points of each expert.
    counts: Vec<i64>,
    /// Gradients, and among them the update of the default vectors.
    gradients: GradientsParams,
}

/// `sin(4 x)` where `y > 0`, otherwise `|x|`: `[N, 2]` to `[N, 1]`.
fn target<B: Backend>(points: Tensor<B, 2>) -> Tensor<B, 2> {
    let columns = points.chunk(2, 1);
    let upper = columns[1].clone().greater_elem(0).float();
    (columns[0].clone() * 4.0).sin() * upper.clone() + columns[0].clone().abs() * (upper.neg() + 1.0)
}

fn points() -> Tensor<Training, 2> {
    Tensor::random([BATCH, 2], Distribution::Uniform(-1.0, 1.0), &Default::default())
}

fn pass(network: &Network<Training>, points: Tensor<Training, 2>) -> Pass {
    let (predicted, moe) = network.forward(points.clone());
    let error = (predicted - target(points)).powi_scalar(2).mean();
    let loss = error.clone() + moe.losses.weighted();
    let mut gradients = GradientsParams::from_grads(loss.backward(), network);
    register(network, moe.update, &mut gradients);
    let counts = moe.routing.counts().into_data().iter::<i64>().collect();
    Pass { error: error.into_scalar().elem(), counts, gradients }
}

impl Pass {
    /// The gradients with the counts that excitation wants.
    fn counted(mut self, network: &Network<Training>) -> GradientsParams {
        let counts: Vec<f32> = self.counts.iter().map(|&count| count as f32).collect();
        let counts = Tensor::<Chosen, 1>::from_floats(counts.as_slice(), &Default::default());
        network.counts.register(&mut self.gradients, counts, BATCH);
        self.gradients
    }
}

/// How far the weights of each expert went in a step, in units of the learning rate. Lion alone moves every weight by 1.
fn step_lengths(before: &Network<Training>, after: &Network<Training>, lr: LearningRate) -> Vec<f32> {
    let weights = |network: &Network<Training>| network.block.moe.experts.w_out.val();
    let longest = (weights(after) - weights(before)).abs().max_dim(2).max_dim(1) / lr;
    longest.into_data().iter::<f32>().collect()
}

/// The learning rate of a step: down in a line, because the sign of a gradient never gets smaller by itself.
fn learning_rate(step: usize) -> f64 {
    LEARNING_RATE * (STEPS + 1 - step) as f64 / STEPS as f64
}

/// Without a factor of at least 1, hence 0 for an expert that no point chose: a sign has full length however little is left of
/// a momentum, and Lion alone would walk such an expert away.
fn excitation() -> ExcitationConfig {
    ExcitationConfig::new().with_variant(Variant::ZeroSum)
}

/// Trains, prints, and returns the error on new points, before and after.
fn train(config: &ExcitationConfig) -> (f64, f64) {
    let device = Default::default();
    Training::seed(&device, 0);
    let mut network = Network::<Training>::new(&device);
    let mut optimizer = Absorbing::new(config.init(lion()));
    let first = pass(&network, points()).error;
    for step in 1..=STEPS {
        let pass = pass(&network, points());
        let (error, counts) = (pass.error, pass.counts.clone());
        let gradients = pass.counted(&network);
        let before = network.clone();
        network = optimizer.step(learning_rate(step), network, gradients);
        if step % (STEPS / 5) == 0 {
            let lengths = step_lengths(&before, &network, learning_rate(step));
            println!("step {step}: error {error:.4}, points per expert {counts:?}, step of each {lengths:.2?}");
        }
    }
    (first, pass(&network, points()).error)
}

fn main() {
    let (first, last) = train(&excitation());
    println!("error on new points {last:.4}, before training {first:.4}");
}

#[cfg(test)]
mod tests {
    use burn::module::{ModuleVisitor, Param};

    use super::*;

    /// Relative, f32: a difference of weights of size 1, divided by the learning rate.
    const TOLERANCE: f32 = 1e-3;

    fn network() -> Network<Training> {
        let network = Network::new(&Default::default());
        let _ = parameters(&network); // burn draws a parameter when it is first read, for each clone anew
        network
    }

    fn parameters(network: &Network<Training>) -> Vec<f32> {
        struct Values(Vec<f32>);
        impl ModuleVisitor<Training> for Values {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Training, D>>) {
                self.0.extend(param.val().into_data().iter::<f32>());
            }
        }
        let mut values = Values(Vec::new());
        network.visit(&mut values);
        values.0
    }

    #[test]
    fn without_strength_the_wrapped_optimizer_is_the_bare_one_bit_for_bit() {
        let (mut bare, start) = (Absorbing::new(lion()), network());
        let mut wrapped = Absorbing::new(excitation().with_gamma(0.0).init(lion()));
        let (mut expected, mut found) = (start.clone(), start.clone());
        for batch in [points(), points(), points()] {
            let gradients = pass(&expected, batch.clone()).gradients;
            expected = bare.step(LEARNING_RATE, expected, gradients);
            let gradients = pass(&found, batch).counted(&found);
            found = wrapped.step(LEARNING_RATE, found, gradients);
            assert_eq!(parameters(&found), parameters(&expected));
        }
        assert_ne!(parameters(&found), parameters(&start));
    }

    #[test]
    fn the_step_of_an_expert_follows_its_share_of_the_points() {
        let start = network();
        let pass = pass(&start, points());
        let even = BATCH as f32 / 4.0;
        let expected: Vec<f32> = pass.counts.iter().map(|&count| count as f32 / even).collect();
        let gradients = pass.counted(&start);
        let stepped = Absorbing::new(excitation().init(lion())).step(LEARNING_RATE, start.clone(), gradients);
        for (found, expected) in step_lengths(&start, &stepped, LEARNING_RATE).into_iter().zip(expected) {
            assert!((found - expected).abs() <= TOLERANCE * expected, "{found} instead of {expected}");
        }
    }

    #[test]
    fn the_default_vectors_move_beside_the_optimizer() {
        let start = network();
        let batch = points();
        let (_, moe) = start.forward(batch.clone());
        let expected = start.block.vectors.updated(&moe.update.expect("a training pass")).into_data();
        let gradients = pass(&start, batch).counted(&start);
        let mut optimizer = Absorbing::new(excitation().init(lion()));
        let stepped: Network<Training> = optimizer.step(LEARNING_RATE, start.clone(), gradients);
        stepped.block.vectors.values.to_data().assert_eq(&expected, true);
        assert_ne!(expected, start.block.vectors.values.to_data());
    }

    #[test]
    fn training_lowers_the_error() {
        let (first, last) = train(&excitation());
        assert!(last < first / 2.0, "{first} became {last}");
    }
}

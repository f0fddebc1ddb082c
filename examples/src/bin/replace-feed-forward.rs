//! A burn model whose feed-forward block is a Mixture-of-Experts layer, on the backend chosen by a cargo feature.
//!
//! The task is a function made of pieces, which experts can divide among themselves.

#![forbid(unsafe_code)]

use burn::backend::Autodiff;
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Distribution, Tensor};
use moe_examples::Chosen;
use moe_layers::{AutodiffMoeBackend, Moe, MoeBackend, MoeConfig, MoeOutput, RoutingStats};

const STEPS: usize = 600;
const BATCH: usize = 256;
const LEARNING_RATE: f64 = 3e-3;

#[derive(Module, Debug)]
struct Network<B: Backend> {
    input: Linear<B>,
    block: Moe<B>, // was: a feed-forward block
    output: Linear<B>,
}

impl<B: MoeBackend> Network<B> {
    fn new(device: &B::Device) -> Self {
        Self {
            input: LinearConfig::new(2, 32).init(device),
            block: MoeConfig::new(32, 64, 8, 2).with_normalize_gates(true).init(device),
            output: LinearConfig::new(32, 1).init(device),
        }
    }

    /// `[N, 2]` to predictions `[N, 1]`, with what the layer reports.
    fn forward(&self, x: Tensor<B, 2>) -> (Tensor<B, 2>, MoeOutput<B, 2>) {
        let hidden = self.input.forward(x);
        let moe = self.block.forward(hidden.clone());
        (self.output.forward(hidden + moe.output.clone()), moe)
    }
}

/// `sin(4 x)` where `y > 0`, otherwise `|x|`: `[N, 2]` to `[N, 1]`.
fn target<B: Backend>(points: Tensor<B, 2>) -> Tensor<B, 2> {
    let columns = points.chunk(2, 1);
    let upper = columns[1].clone().greater_elem(0).float();
    (columns[0].clone() * 4.0).sin() * upper.clone() + columns[0].clone().abs() * (upper.neg() + 1.0)
}

fn batch<B: AutodiffBackend>(device: &B::Device) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let points = Tensor::random([BATCH, 2], Distribution::Uniform(-1.0, 1.0), device);
    (points.clone(), target(points))
}

fn train<B: AutodiffMoeBackend>(device: &B::Device) -> (f64, RoutingStats) {
    B::seed(device, 0);
    let mut network = Network::<B>::new(device);
    let mut optimizer = AdamWConfig::new().init();
    for step in 1..=STEPS {
        let (points, expected) = batch::<B>(device);
        let (predicted, moe) = network.forward(points);
        let error = (predicted - expected).powi_scalar(2).mean();
        if step % 100 == 0 {
            println!("step {step}: mean squared error {:.4}", error.clone().into_scalar());
        }
        let loss = error + moe.losses.weighted();
        let gradients = GradientsParams::from_grads(loss.backward(), &network);
        network = optimizer.step(LEARNING_RATE, network, gradients);
    }

    let (points, expected) = batch::<B>(device);
    let (predicted, moe) = network.forward(points);
    let error = (predicted - expected).powi_scalar(2).mean().into_data().iter::<f64>().sum();
    (error, RoutingStats::from_routing(&moe.routing))
}

fn main() {
    let (error, stats) = train::<Autodiff<Chosen>>(&Default::default());
    println!("held-out mean squared error {error:.4}");
    println!("tokens per expert {:?}, busiest {:.2} x the mean", stats.expert_counts, stats.load_ratio);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_learns_and_uses_every_expert() {
        let (error, stats) = train::<Autodiff<Chosen>>(&Default::default());
        assert!(error < 0.05, "held-out error {error}");
        assert_eq!(stats.dead_experts, 0);
    }
}

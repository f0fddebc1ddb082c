//! A dense language model is trained for a while and goes on as a Mixture of Experts, from the loss it had.
//!
//! Three ways to go on, over the same batches: as it is, with experts that are copies of its feed-forward blocks (twice the work per
//! token), and with experts of half the width, two per token (the same work). Upcycling is
//! [Komatsuzaki et al., 2022](https://arxiv.org/abs/2212.05055); narrower experts are
//! [He et al., 2024](https://arxiv.org/abs/2410.07524).

#![forbid(unsafe_code)]

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::optim::adaptor::OptimizerAdaptor;
use burn::optim::{AdamW, AdamWConfig, GradientsParams, Optimizer};
use burn::tensor::backend::Backend;
use burn::tensor::{ElementConversion, Int, Tensor, TensorData};
use moe_examples::Chosen;
use moe_layers::upcycle::Upcycling;
use moe_models::lm::{Lm, LmConfig, LmMoeConfig, MoeLayers};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

type Training = Autodiff<Chosen>;
type Adam = OptimizerAdaptor<AdamW, Lm<Training>, Training>;

/// A text that stays as it is. Bytes are tokens, the last tenth is held out.
const TEXT: &str = include_str!("../../../LICENSE-APACHE");
const LEN: usize = 64;
const BATCH: usize = 8;
const LEARNING_RATE: f64 = 2e-3;
/// Steps of the dense model, and of each way to go on.
const STEPS: usize = 200;
/// Steps between two lines.
const EVERY: usize = 50;
/// Sequences that the loss is measured on.
const HELD_OUT: usize = 16;

fn dense_config() -> LmConfig {
    LmConfig::new(256, 64, 2, 4, 128, LEN).with_moe_layers(MoeLayers::None)
}

/// The same model with experts in every layer.
fn with_experts(num_experts: usize, top_k: usize, d_hidden: usize) -> LmConfig {
    let moe = LmMoeConfig::new(num_experts, top_k, d_hidden).with_normalize_gates(true);
    dense_config().with_moe_layers(MoeLayers::All).with_moe(moe)
}

/// Four experts of the dense width, two per token.
fn copies() -> LmConfig {
    with_experts(4, 2, 128)
}

/// Eight experts of half the dense width, two per token.
fn halves() -> LmConfig {
    with_experts(8, 2, 64)
}

/// Sequences that begin at `starts`, and the bytes that follow theirs: `[N, LEN]` each.
fn sequences<B: Backend>(text: &[u8], starts: &[usize]) -> [Tensor<B, 2, Int>; 2] {
    [0, 1].map(|shift| {
        let bytes = starts.iter().flat_map(|start| &text[start + shift..start + shift + LEN]);
        let ids: Vec<i32> = bytes.map(|&byte| byte.into()).collect();
        Tensor::from_data(TensorData::new(ids, [starts.len(), LEN]), &Default::default())
    })
}

/// Training text and held-out text.
fn texts() -> (&'static [u8], &'static [u8]) {
    TEXT.as_bytes().split_at(TEXT.len() / 10 * 9)
}

/// A model and the state of its optimizer.
#[derive(Clone)]
struct Run {
    model: Lm<Training>,
    adam: Adam,
}

impl Run {
    fn dense() -> Self {
        let device = Default::default();
        Training::seed(&device, 0);
        Self { model: dense_config().init(&device), adam: AdamWConfig::new().init() }
    }

    /// Goes on with experts. Parameters that are copied keep their ids, so the optimizer keeps their moments.
    fn upcycled(&self, config: &LmConfig) -> Self {
        let model = config.upcycle(&self.model, Upcycling::Copy).expect("they differ in their experts only");
        Self { model, adam: self.adam.clone() }
    }

    /// One step on the batch of that number.
    fn step(&mut self, number: usize) {
        let (text, mut rng) = (texts().0, StdRng::seed_from_u64(number as u64));
        let starts = [(); BATCH].map(|()| rng.random_range(0..text.len() - LEN));
        let [inputs, targets] = sequences(text, &starts);
        let loss = self.model.loss(inputs, targets).total;
        let gradients = GradientsParams::from_grads(loss.backward(), &self.model);
        self.model = self.adam.step(LEARNING_RATE, self.model.clone(), gradients);
    }

    /// Cross-entropy of the held-out text, nats per byte.
    fn held_out(&self) -> f64 {
        let text = texts().1;
        let stride = (text.len() - LEN - 1) / HELD_OUT;
        let starts: Vec<_> = (0..HELD_OUT).map(|i| i * stride).collect();
        let [inputs, targets] = sequences(text, &starts);
        self.model.valid().loss(inputs, targets).cross_entropy.into_scalar().elem()
    }
}

/// The dense model, trained.
fn trained(steps: usize) -> Run {
    let mut run = Run::dense();
    (0..steps).for_each(|number| run.step(number));
    run
}

fn line(step: usize, runs: &[Run; 3]) {
    let [dense, copies, halves] = runs.each_ref().map(Run::held_out);
    println!("{step:>5} {dense:>10.4} {copies:>10.4} {halves:>10.4}");
}

fn main() {
    let untrained = Run::dense().held_out();
    let dense = trained(STEPS);
    println!(
        "dense, held-out loss in nats per byte: {untrained:.4} at first, {:.4} after {STEPS} steps",
        dense.held_out()
    );
    println!(" step      dense     copies     halves");
    let mut runs = [dense.clone(), dense.upcycled(&copies()), dense.upcycled(&halves())];
    line(STEPS, &runs);
    for step in STEPS..2 * STEPS {
        runs.iter_mut().for_each(|run| run.step(step));
        if (step + 1) % EVERY == 0 {
            line(step + 1, &runs);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nats per byte.
    const TOLERANCE: f64 = 1e-4;
    const FEW: usize = 30;

    #[test]
    fn experts_go_on_from_the_dense_loss_and_lower_it() {
        let dense = trained(FEW);
        let before = dense.held_out();
        assert!(before < Run::dense().held_out() - 1.0, "the dense model has learned: {before}");
        for config in [copies(), halves()] {
            let mut experts = dense.upcycled(&config);
            let start = experts.held_out();
            assert!((start - before).abs() < TOLERANCE, "{before} became {start}");
            (FEW..2 * FEW).for_each(|number| experts.step(number));
            assert!(experts.held_out() < start - 0.1, "{start} became {}", experts.held_out());
        }
    }
}

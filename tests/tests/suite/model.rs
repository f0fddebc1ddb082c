//! The language model on every backend: the same losses from the same numbers, 50 steps of them.
//!
//! `golden/lm.json` holds the losses in full digits. Remake it, after a change that is meant to change them, with
//! `cargo test -p moe-tests --test suite -- --ignored remake`.

use std::path::PathBuf;

use burn::module::{Module, ModuleMapper, Param};
use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
use burn::tensor::{Int, Tensor, TensorData};
use moe_layers::AutodiffMoeBackend;
use moe_models::lm::{Lm, LmConfig, LmMoeConfig, MoeLayers, QkNorm};
use moe_tests::{on_every_backend, random, tensor};

on_every_backend!(fifty_losses_match_the_golden_ones);

const STEPS: usize = 50;
const LEARNING_RATE: f64 = 5e-3;
const INIT: f64 = 0.15;
const BATCH: [usize; 2] = [4, 16];

/// Processors and backends sum in different orders; 50 steps of training amplify the last bit to about 1e-5.
const TOLERANCE: f64 = 1e-3;

/// Everything that has its own code: a dense and an MoE layer, grouped queries, normalised queries and keys, z-loss.
fn config() -> LmConfig {
    LmConfig::new(32, 16, 2, 4, 24, 16)
        .with_num_kv_heads(Some(2))
        .with_qk_norm(QkNorm::PerHead)
        .with_moe_layers(MoeLayers::AllButFirst)
        .with_moe(LmMoeConfig::new(4, 2, 12).with_z_coef(0.001))
}

/// Matrices become small known numbers; gains stay one.
struct Fill(u64);

impl<B: AutodiffMoeBackend> ModuleMapper<B> for Fill {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        self.0 += 1;
        if D == 1 {
            return param;
        }
        let values: Vec<f64> = random(param.shape().num_elements(), self.0).iter().map(|v| v * INIT).collect();
        param.map(|t| tensor::<B, D>(&values, t.dims(), &t.device()).require_grad())
    }
}

/// A text with structure, `[B, S]` inputs and targets: each token is a function of the one before and its position.
fn batch<B: AutodiffMoeBackend>(step: usize, device: &B::Device) -> [Tensor<B, 2, Int>; 2] {
    let [rows, len] = BATCH;
    let sequence = |row: usize| {
        let mut token = (7 * step + 11 * row) % 32;
        (0..=len).map(move |i| {
            token = (3 * token + i % 2 + 1) % 32;
            token as i64
        })
    };
    [0, 1].map(|shift| {
        let tokens: Vec<i64> = (0..rows).flat_map(|row| sequence(row).skip(shift).take(len)).collect();
        Tensor::from_data(TensorData::new(tokens, BATCH), device)
    })
}

fn losses<B: AutodiffMoeBackend>(steps: usize, device: &B::Device) -> Vec<f64> {
    let mut model: Lm<B> = config().init(device).map(&mut Fill(0));
    let mut optimizer = AdamWConfig::new().init();
    let step = |step| {
        let [inputs, targets] = batch(step, device);
        let loss = model.loss(inputs, targets).total;
        let value = loss.to_data().iter::<f64>().sum();
        let grads = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(LEARNING_RATE, model.clone(), grads);
        value
    };
    (0..steps).map(step).collect()
}

fn golden_file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden/lm.json")
}

fn fifty_losses_match_the_golden_ones<B: AutodiffMoeBackend>(device: &B::Device) {
    let golden = std::fs::read_to_string(golden_file()).expect("the golden losses are in the repository");
    let golden: Vec<f64> = serde_json::from_str(&golden).expect("a list of numbers");
    let losses = losses::<B>(moe_tests::steps(STEPS), device);
    for (step, (loss, expected)) in losses.iter().zip(&golden).enumerate() {
        assert!((loss - expected).abs() < TOLERANCE, "step {step}: {loss}, expected {expected}");
    }
    assert_eq!(golden.len(), STEPS);
    assert!(golden[STEPS - 1] < golden[0] - 1.0, "the model learns: {} -> {}", golden[0], golden[STEPS - 1]);
}

#[cfg(feature = "flex")]
#[test]
#[ignore = "writes the golden losses"]
fn remake() {
    let losses = losses::<moe_tests::Flex>(STEPS, &Default::default());
    let text = serde_json::to_string_pretty(&losses).expect("numbers");
    std::fs::write(golden_file(), text + "\n").expect("the repository is writable");
}

//! What Excitation costs: the optimizer's step with and without it, as a part of the whole training step.
//!
//! The two whole steps differ by less than a machine disturbs them, so the optimizer's part is timed by itself.

mod lm;
mod mlp;
mod sides;

use burn::tensor::backend::Backend;
use excitation_optim::{ExcitationConfig, Variant};
use moe_models::lm::MoeLayers;
use moe_models::mlp::TopKMlpConfig;
use moe_train::backend;
use moe_train::config::{Dtype, TrainConfig};
use serde::Serialize;

use crate::args::CommonArgs;
use crate::clock::{Clock, Spread, median_interval};
use crate::error::{Error, Result};
use crate::layer::paired;
use crate::machine::Machine;
use crate::record::Head;
use crate::session::{self, ON_GPU, Session};
use crate::table::Table;

use sides::{Measured, Side, measure};

/// The whole file.
#[derive(Debug, Serialize)]
struct Record {
    #[serde(flatten)]
    head: Head,
    models: Vec<Overhead>,
}

/// One model.
#[derive(Debug, Serialize)]
struct Overhead {
    what: String,
    tokens: usize,
    /// Bytes of the parameters that are scaled.
    expert_bytes: u64,
    /// The whole plain step.
    step_seconds: Spread,
    /// Its optimizer alone.
    plain_seconds: Spread,
    /// The optimizer and the excitation, counts included.
    excited_seconds: Spread,
    /// Median over the rounds of what excitation adds, as a part of the plain step of the same round.
    overhead: f64,
    /// Where it lies in 95 of 100 studies.
    overhead_interval: [f64; 2],
    /// Bytes alive at most during the optimizer's step, beyond those at its start: plain, excited, excited in low-memory mode.
    peak_bytes: Option<[u64; 3]>,
}

/// `moe-bench excitation`.
///
/// # Errors
///
/// A device or a file that cannot be used, and every wrong result.
pub(crate) fn run(args: &CommonArgs) -> Result<()> {
    if args.torch.is_some() {
        return Err(Error::new("PyTorch has no part in this comparison: leave --torch out"));
    }
    let session = Session::open(args, Dtype::F32)?;
    let machine = Machine::here(&session.device_name);
    println!("{}", machine.line());
    let clock = Clock::choose(args.threads, ON_GPU);
    let device = &session.device;
    let mut models = Vec::new();
    for batch in [512, 16] {
        let config = TopKMlpConfig::new(3072, 10);
        let sides = mlp::sides(&config, batch, device);
        models.push(overhead(format!("top-K network, batch {batch}"), clock, args, sides, device)?);
    }
    let small = TrainConfig::preset("small").map_err(Error::new)?;
    models.push(overhead("language model `small`".into(), clock, args, lm::sides(&small, device), device)?);
    let large = large_experts(small);
    models.push(overhead("language model, large experts".into(), clock, args, lm::sides(&large, device), device)?);
    println!("{}", table(&models));
    let record = Record { head: Head::new("excitation", machine, args, clock), models };
    session::write_json(args, &record)
}

/// Two layers of four experts, 1024 wide, two for each of 8,192 tokens: the products of the experts dominate.
fn large_experts(mut config: TrainConfig) -> TrainConfig {
    let model = &mut config.model;
    (model.d_model, model.num_layers, model.num_heads, model.max_seq_len) = (256, 2, 4, 128);
    (model.moe.num_experts, model.moe.top_k, model.moe.d_hidden) = (4, 2, 1024);
    model.moe_layers = MoeLayers::All;
    (config.train.seq_len, config.train.batch_size) = (128, 64);
    config
}

fn overhead<S: Side>(
    what: String,
    clock: Clock,
    args: &CommonArgs,
    sides: [S; 3],
    device: &backend::Device,
) -> Result<Overhead> {
    let (tokens, expert_bytes) = (sides[0].tokens(), sides[0].expert_bytes());
    let [plain, excited, low_memory] = measure(sides, args.warm_up(), args.rounds(), device)?;
    let optimizer = |side: &Measured| Spread::of(side.optimizer.iter().map(|time| clock.of(time)));
    let steps =
        || plain.rest.iter().zip(&plain.optimizer).map(|(rest, optimizer)| clock.of(rest) + clock.of(optimizer));
    let added =
        excited.optimizer.iter().zip(&plain.optimizer).map(|(with, without)| clock.of(with) - clock.of(without));
    let parts = added.zip(steps()).map(|(added, step)| added / step);
    Ok(Overhead {
        what,
        tokens,
        expert_bytes,
        step_seconds: Spread::of(steps()),
        plain_seconds: optimizer(&plain),
        excited_seconds: optimizer(&excited),
        overhead: paired(parts.clone()),
        overhead_interval: median_interval(parts),
        peak_bytes: (!ON_GPU).then_some([plain.peak, excited.peak, low_memory.peak]),
    })
}

fn table(models: &[Overhead]) -> Table {
    let head = [
        "",
        "tokens",
        "step ms",
        "optimizer ms",
        "excited ms",
        "overhead",
        "95 %",
        "expert MB",
        "peak MB",
        "more",
        "more, low",
    ];
    let mut table = Table::new(&head);
    for one in models {
        let ms = |seconds: &Spread| format!("{:.2}", 1e3 * seconds.median);
        let megabytes = |bytes: u64| format!("{:.2}", bytes as f64 / 1e6);
        let [from, to] = one.overhead_interval.map(|part| 100.0 * part);
        let mut cells = vec![one.what.clone(), one.tokens.to_string()];
        cells.extend([&one.step_seconds, &one.plain_seconds, &one.excited_seconds].map(ms));
        cells.push(format!("{:.3} %", 100.0 * one.overhead));
        cells.push(format!("{from:.3} to {to:.3}"));
        cells.push(megabytes(one.expert_bytes));
        if let Some([plain, excited, low]) = one.peak_bytes {
            cells.extend([plain, excited.saturating_sub(plain), low.saturating_sub(plain)].map(megabytes));
        }
        table.row(cells);
    }
    table
}

/// Learning rate, the same in every step.
const LR: f64 = 1e-3;

/// None, ZeroSum, and the same in low-memory mode: what the variants do beyond these few numbers per expert is the same.
fn excitations() -> [Option<ExcitationConfig>; 3] {
    let excited = ExcitationConfig::new().with_variant(Variant::ZeroSum);
    [None, Some(excited.clone()), Some(excited.with_low_memory(true))]
}

/// Numbers that are the same on every run.
fn seeded(device: &backend::Device) {
    <backend::Training as Backend>::seed(device, 1);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> CommonArgs {
        CommonArgs { threads: 1, device: Default::default(), rounds: 2, quick: false, json: None, torch: None }
    }

    #[test]
    fn a_small_network_is_measured_on_three_sides() {
        let device = Default::default();
        let sides = mlp::sides(&TopKMlpConfig::new(12, 10).with_d_hidden(16).with_top_k(3), 8, &device);
        let found = overhead("network".into(), Clock::Wall, &args(), sides, &device).unwrap();
        // Four layers of 16 units: weights and biases.
        assert_eq!((found.tokens, found.expert_bytes), (8, 4 * (12 * 16 + 3 * 16 * 16 + 4 * 16)));
        assert!(found.step_seconds.median > found.plain_seconds.median && found.plain_seconds.median > 0.0);
        assert!(table(&[found]).to_string().contains("network"));
    }

    #[test]
    fn a_small_language_model_is_measured_on_three_sides() {
        let mut config = TrainConfig::preset("small").unwrap();
        (config.model.d_model, config.model.num_layers, config.model.num_heads, config.model.max_seq_len) =
            (16, 2, 2, 8);
        (config.model.moe.num_experts, config.model.moe.top_k, config.model.moe.d_hidden) = (4, 2, 8);
        (config.train.seq_len, config.train.batch_size) = (8, 2);
        let device = Default::default();
        let found = overhead("model".into(), Clock::Wall, &args(), lm::sides(&config, &device), &device).unwrap();
        // The second layer has experts: 4 of 16 x 16 and 8 x 16.
        assert_eq!((found.tokens, found.expert_bytes), (16, 4 * 4 * (16 * 16 + 8 * 16)));
    }
}

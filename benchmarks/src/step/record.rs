//! What the step benchmark writes down, as JSON and as a table.

use serde::Serialize;
use serde_json::Value;

use super::preset::{Preset, Sizes};
use super::sides::Steps;
use crate::clock::{Clock, Spread};
use crate::layer::paired;
use crate::machine::Machine;
use crate::table::Table;

/// The whole file.
#[derive(Debug, Serialize)]
pub(super) struct StepRecord {
    pub(super) benchmark: &'static str,
    pub(super) machine: Machine,
    pub(super) setting: Setting,
    pub(super) models: Vec<ModelRecord>,
}

/// How everything in the file was measured.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Setting {
    pub(super) backend: &'static str,
    pub(super) device: String,
    pub(super) threads: usize,
    pub(super) rounds: usize,
    /// What rates and ratios are made of.
    pub(super) clock: Clock,
}

/// One model.
#[derive(Debug, Serialize)]
pub(super) struct ModelRecord {
    name: String,
    sizes: Sizes,
    /// Of either side.
    parameters: u64,
    tokens_per_step: usize,
    ours: SideRecord,
    torch: Option<TorchRecord>,
}

/// One side's steps.
#[derive(Debug, Serialize)]
struct SideRecord {
    wall_seconds: Spread,
    cpu_seconds: Spread,
    tokens_per_second: f64,
    first_loss: f64,
    last_loss: f64,
}

/// PyTorch's steps.
#[derive(Debug, Serialize)]
struct TorchRecord {
    #[serde(flatten)]
    side: SideRecord,
    /// Versions, and the seconds of every implementation that was tried.
    facts: Value,
    /// Our tokens per second over PyTorch's: median over the rounds.
    speed_ratio: f64,
}

impl Setting {
    /// One line for people.
    pub(super) fn line(&self) -> String {
        let Self { backend, device, threads, rounds, clock } = self;
        format!("{backend} (device {device}), {threads} threads, f32, {} of {rounds} steps", clock.name())
    }
}

impl ModelRecord {
    pub(super) fn new(
        preset: Preset,
        parameters: u64,
        setting: &Setting,
        ours: &Steps,
        torch: Option<(Value, Steps)>,
    ) -> Self {
        let sizes = preset.sizes();
        let side = |steps: &Steps| SideRecord::new(steps, sizes.tokens(), setting.clock);
        let torch = torch.map(|(facts, steps)| TorchRecord {
            side: side(&steps),
            facts,
            speed_ratio: speed_ratio(ours, &steps, setting.clock),
        });
        Self { name: preset.name(), sizes, parameters, tokens_per_step: sizes.tokens(), ours: side(ours), torch }
    }

    /// For people.
    pub(super) fn table(&self, setting: &Setting) -> String {
        let mut table = Table::new(&["", "step ms", "+-%", "tokens/s", "loss from", "to"]);
        table.row(self.ours.cells("ours", setting.clock));
        let mut last = String::new();
        if let Some(torch) = &self.torch {
            let kinds = format!("torch ({}, AdamW {})", text(&torch.facts["experts"]), text(&torch.facts["adamw"]));
            table.row(torch.side.cells(&kinds, setting.clock));
            last = format!("ours over PyTorch: {:.2} x\n", torch.speed_ratio);
        }
        let Sizes { layers, width, heads, context, batch, experts, top_k, expert_width } = self.sizes;
        format!(
            "{}: {layers} layers of width {width}, {heads} heads, context {context}, batch {batch}, {experts} experts of width \
             {expert_width}, top {top_k}; {} parameters on either side\n{table}{last}",
            self.name, self.parameters
        )
    }
}

impl SideRecord {
    fn new(steps: &Steps, tokens: usize, clock: Clock) -> Self {
        let seconds = Spread::of(steps.times.iter().map(|time| clock.of(time)));
        let ends = steps.losses.first().zip(steps.losses.last()).expect("steps were taken");
        Self {
            wall_seconds: Spread::of(steps.times.iter().map(|time| time.wall)),
            cpu_seconds: Spread::of(steps.times.iter().map(|time| time.cpu)),
            tokens_per_second: tokens as f64 / seconds.median,
            first_loss: *ends.0,
            last_loss: *ends.1,
        }
    }

    fn cells(&self, name: &str, clock: Clock) -> Vec<String> {
        let spread = match clock {
            Clock::Wall => &self.wall_seconds,
            Clock::Cpu => &self.cpu_seconds,
        };
        vec![
            name.into(),
            format!("{:.1}", 1e3 * spread.median),
            format!("{:.1}", 100.0 * spread.relative()),
            format!("{:.0}", self.tokens_per_second),
            format!("{:.3}", self.first_loss),
            format!("{:.3}", self.last_loss),
        ]
    }
}

fn speed_ratio(ours: &Steps, theirs: &Steps, clock: Clock) -> f64 {
    paired(theirs.times.iter().zip(&ours.times).map(|(theirs, ours)| clock.of(theirs) / clock.of(ours)))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::clock::Time;

    fn steps(seconds: [f64; 3]) -> Steps {
        Steps { times: seconds.map(|wall| Time { wall, cpu: 2.0 * wall }).to_vec(), losses: vec![5.5, 5.0, 4.5] }
    }

    fn record(torch: bool) -> ModelRecord {
        let facts = json!({"experts": "grouped_mm", "adamw": "fused"});
        let torch = torch.then(|| (facts, steps([1.0, 1.0, 6.0])));
        ModelRecord::new(Preset::Small, 7, &setting(), &steps([0.5, 0.5, 1.0]), torch)
    }

    fn setting() -> Setting {
        Setting { backend: "flex", device: "default".into(), threads: 2, rounds: 3, clock: Clock::Wall }
    }

    #[test]
    fn the_ratio_is_that_of_speeds_round_by_round() {
        let json = serde_json::to_value(record(true)).unwrap();
        assert_eq!((&json["torch"]["speed_ratio"], &json["tokens_per_step"]), (&2.0.into(), &768.into()));
        assert_eq!(
            (&json["ours"]["tokens_per_second"], &json["torch"]["facts"]["adamw"]),
            (&1536.0.into(), &"fused".into())
        );
        assert_eq!((&json["torch"]["first_loss"], &json["ours"]["cpu_seconds"]["min"]), (&5.5.into(), &1.0.into()));
    }

    #[test]
    fn without_pytorch_our_side_stands_alone() {
        let (alone, both) = (record(false).table(&setting()), record(true).table(&setting()));
        assert_eq!((alone.lines().count(), both.lines().count()), (3, 5), "{alone}{both}");
        assert!(both.contains("AdamW fused") && both.contains("2.00 x"));
    }
}

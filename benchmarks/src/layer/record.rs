//! What the layer benchmark writes down, as JSON and as a table.

use std::collections::BTreeMap;

use moe_tests::Case;
use moe_train::config::Dtype;
use serde::Serialize;
use serde_json::Value;

use super::Shape;
use super::contest::{Pass, Side, Times};
use super::ours::{COMBINE, LAYER, ROUTER};
use super::saved::SavedBytes;
use crate::clock::{Clock, Spread};
use crate::machine::Machine;
use crate::table::Table;

/// The whole file.
#[derive(Debug, Serialize)]
pub(crate) struct LayerRecord {
    pub(crate) benchmark: &'static str,
    pub(crate) machine: Machine,
    pub(crate) setting: Setting,
    /// Versions on the other side.
    pub(crate) torch: Option<Value>,
    pub(crate) shapes: Vec<ShapeRecord>,
}

/// How everything in the file was measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Setting {
    pub(crate) backend: &'static str,
    pub(crate) device: String,
    pub(crate) threads: usize,
    pub(crate) dtype: Dtype,
    pub(crate) skew: f64,
    pub(crate) rounds: usize,
    /// What ratios and rates are made of.
    pub(crate) clock: Clock,
}

impl Setting {
    /// One line for people.
    pub(crate) fn line(&self) -> String {
        let Self { backend, device, threads, dtype, skew, rounds, clock } = self;
        let clock = clock.name();
        format!(
            "{backend} (device {device}), {threads} threads, {dtype}, skew {skew}, median {clock} of {rounds} rounds"
        )
    }
}

/// One shape.
#[derive(Debug, Serialize)]
pub(crate) struct ShapeRecord {
    name: String,
    tokens: usize,
    d_model: usize,
    d_hidden: usize,
    experts: usize,
    top_k: usize,
    /// Slots of the busiest expert over the mean.
    load_ratio: f64,
    /// Tokens on which output and gradients were compared with the oracle.
    verified_tokens: usize,
    forward_flops: u64,
    training_flops: u64,
    contestants: Vec<ContestantRecord>,
    /// Contestants that cannot compute this shape, with what they say.
    unable: BTreeMap<String, String>,
    saved_bytes: Option<SavedRecord>,
    /// Router, sort and combine as a part of the layer's time.
    routing_share: PassPair<f64>,
}

/// One contestant.
#[derive(Debug, Serialize)]
pub(crate) struct ContestantRecord {
    name: String,
    side: Side,
    /// Whether the ratios are to this one.
    is_floor: PassPair<bool>,
    forward: Measured,
    training: Measured,
}

/// A number for either pass.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct PassPair<T> {
    forward: T,
    training: T,
}

/// Seconds, and what they are beside the floor.
#[derive(Debug, Serialize)]
pub(crate) struct Measured {
    wall_seconds: Spread,
    cpu_seconds: Spread,
    /// Median over the rounds of the time over the floor's time in the same round.
    ratio_to_floor: f64,
}

/// Bytes kept for backward, beside the least there is: input and pre-activation.
#[derive(Debug, Serialize)]
struct SavedRecord {
    #[serde(flatten)]
    bytes: SavedBytes,
    least: u64,
}

/// What was found out about a shape beside times.
pub(crate) struct Findings {
    pub(crate) load_ratio: f64,
    pub(crate) verified_tokens: usize,
    pub(crate) saved: Option<SavedBytes>,
    pub(crate) unable: BTreeMap<String, String>,
}

impl ShapeRecord {
    pub(crate) fn new(shape: &Shape, setting: &Setting, times: &[Times], findings: Findings) -> Self {
        let Case { tokens, d_model, d_hidden, experts, top_k, .. } = shape.case;
        let bytes_per_number = if setting.dtype == Dtype::F32 { 4 } else { 2 };
        let least = shape.least_saved_bytes(bytes_per_number);
        let clock = setting.clock;
        let floor = PassPair::of(|pass| floor(times, pass, clock));
        Self {
            name: shape.name.clone(),
            tokens,
            d_model,
            d_hidden,
            experts,
            top_k,
            load_ratio: findings.load_ratio,
            verified_tokens: findings.verified_tokens,
            forward_flops: shape.forward_flops(),
            training_flops: shape.training_flops(),
            contestants: times.iter().map(|one| ContestantRecord::new(one, &floor, clock)).collect(),
            unable: findings.unable,
            saved_bytes: findings.saved.map(|bytes| SavedRecord { bytes, least }),
            routing_share: PassPair::of(|pass| routing_share(times, pass, clock)),
        }
    }

    /// For people.
    pub(crate) fn table(&self, setting: &Setting) -> String {
        let columns = ["", "forward ms", "+-%", "ratio", "fwd+bwd ms", "+-%", "ratio", "GFLOP/s"];
        let mut table = Table::new(&columns);
        for one in &self.contestants {
            table.row(one.cells(setting.clock, self.training_flops));
        }
        let header = format!(
            "{}: T {} D {} F {} E {} K {}; busiest expert {:.2} x the mean; verified on {} tokens",
            self.name,
            self.tokens,
            self.d_model,
            self.d_hidden,
            self.experts,
            self.top_k,
            self.load_ratio,
            self.verified_tokens
        );
        format!("{header}\n{table}{}{}{}", self.unable_lines(), self.saved_line(), self.share_line())
    }

    fn unable_lines(&self) -> String {
        self.unable.iter().map(|(name, reason)| format!("  {name} cannot compute this shape: {reason}\n")).collect()
    }

    fn saved_line(&self) -> String {
        let Some(SavedRecord { bytes, least }) = &self.saved_bytes else { return String::new() };
        let part = |bytes: u64| format!("{:.1} MB ({:.2} x)", bytes as f64 / 1e6, bytes as f64 / *least as f64);
        format!(
            "saved for backward: experts {}, layer {}; input and pre-activation are {:.1} MB\n",
            part(bytes.experts),
            part(bytes.layer),
            *least as f64 / 1e6
        )
    }

    fn share_line(&self) -> String {
        let PassPair { forward, training } = self.routing_share;
        let percent = |part: f64| 100.0 * part;
        format!(
            "router, sort and combine: {:.1} % of the layer forward, {:.1} % forward and backward\n",
            percent(forward),
            percent(training)
        )
    }
}

impl ContestantRecord {
    fn new(times: &Times, floor: &PassPair<&Times>, clock: Clock) -> Self {
        Self {
            name: times.name.clone(),
            side: times.side,
            is_floor: PassPair::of(|pass| floor.of_pass(pass).name == times.name),
            forward: Measured::new(times, floor.forward, Pass::Forward, clock),
            training: Measured::new(times, floor.training, Pass::Training, clock),
        }
    }

    fn cells(&self, clock: Clock, flops: u64) -> Vec<String> {
        let mut cells = vec![self.name.clone()];
        for measured in [&self.forward, &self.training] {
            let spread = measured.spread(clock);
            cells.push(format!("{:.2}", 1e3 * spread.median));
            cells.push(format!("{:.1}", 100.0 * spread.relative()));
            cells.push(format!("{:.2}", measured.ratio_to_floor));
        }
        let computes_experts = ![ROUTER, COMBINE].contains(&self.name.as_str());
        let rate = flops as f64 / self.training.spread(clock).median / 1e9;
        cells.push(if computes_experts { format!("{rate:.1}") } else { "-".into() });
        cells
    }
}

impl Measured {
    fn new(times: &Times, floor: &Times, pass: Pass, clock: Clock) -> Self {
        let times = times.of(pass);
        Self {
            wall_seconds: Spread::of(times.iter().map(|time| time.wall)),
            cpu_seconds: Spread::of(times.iter().map(|time| time.cpu)),
            ratio_to_floor: paired(times.iter().zip(floor.of(pass)).map(|(a, b)| clock.of(a) / clock.of(b))),
        }
    }

    fn spread(&self, clock: Clock) -> &Spread {
        match clock {
            Clock::Wall => &self.wall_seconds,
            Clock::Cpu => &self.cpu_seconds,
        }
    }
}

impl<T: Copy> PassPair<T> {
    fn of(value: impl Fn(Pass) -> T) -> Self {
        Self { forward: value(Pass::Forward), training: value(Pass::Training) }
    }

    fn of_pass(&self, pass: Pass) -> T {
        match pass {
            Pass::Forward => self.forward,
            Pass::Training => self.training,
        }
    }
}

/// Median of one quotient a round: what disturbs a whole round disturbs both of its times.
pub(crate) fn paired(quotients: impl Iterator<Item = f64>) -> f64 {
    Spread::of(quotients).median
}

/// The fastest of the bare products.
fn floor(times: &[Times], pass: Pass, clock: Clock) -> &Times {
    let median = |one: &&Times| Spread::of(one.of(pass).iter().map(|time| clock.of(time))).median;
    let products = times.iter().filter(|one| one.side == Side::Products);
    products.min_by(|a, b| median(a).total_cmp(&median(b))).expect("bare products always take part")
}

fn routing_share(times: &[Times], pass: Pass, clock: Clock) -> f64 {
    let of = |name: &str| {
        let times = times.iter().find(|one| one.name == name).map_or(&[][..], |one| one.of(pass));
        times.iter().map(move |time| clock.of(time))
    };
    paired(of(ROUTER).zip(of(COMBINE)).zip(of(LAYER)).map(|((router, combine), layer)| (router + combine) / layer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Time;

    fn times(name: &str, side: Side, seconds: [f64; 3]) -> Times {
        let times = seconds.map(|wall| Time { wall, cpu: wall });
        Times { name: name.into(), side, forward: times.to_vec(), training: times.map(tripled).to_vec() }
    }

    fn tripled(time: Time) -> Time {
        Time { wall: 3.0 * time.wall, cpu: 3.0 * time.cpu }
    }

    fn setting() -> Setting {
        let (backend, device, dtype) = ("flex", "default".to_string(), Dtype::F32);
        Setting { backend, device, threads: 1, dtype, skew: 0.0, rounds: 3, clock: Clock::Cpu }
    }

    fn record() -> ShapeRecord {
        let all = [
            times(LAYER, Side::Ours, [1.5, 1.2, 1.4]),
            times(ROUTER, Side::Ours, [0.3, 0.3, 0.3]),
            times(COMBINE, Side::Ours, [0.3, 0.3, 0.3]),
            times("gemm, slow", Side::Products, [4.0, 4.0, 4.0]),
            times("gemm, fast", Side::Products, [1.0, 1.0, 1.0]),
        ];
        let saved = Some(SavedBytes { experts: 100, layer: 200 });
        let unable = BTreeMap::from([("hf".to_string(), "odd width".to_string())]);
        let findings = Findings { load_ratio: 1.25, verified_tokens: 10, saved, unable };
        ShapeRecord::new(&"10,7,9,3,2".parse().unwrap(), &setting(), &all, findings)
    }

    #[test]
    fn ratios_are_to_the_fastest_bare_products() {
        let record = record();
        assert!((record.contestants[0].training.ratio_to_floor - 1.4).abs() < 1e-12);
        let floors: Vec<bool> = record.contestants.iter().map(|one| one.is_floor.training).collect();
        assert_eq!(floors, [false, false, false, false, true]);
        assert!((record.routing_share.forward - 0.6 / 1.4).abs() < 1e-12);
    }

    #[test]
    fn the_json_has_the_documented_keys() {
        let machine = Machine::here("default");
        let file = LayerRecord { benchmark: "layer", machine, setting: setting(), torch: None, shapes: vec![record()] };
        let json = serde_json::to_value(&file).unwrap();
        let shape = &json["shapes"][0];
        assert_eq!(
            (&json["benchmark"], &json["setting"]["clock"], &json["setting"]["dtype"]),
            (&"layer".into(), &"cpu".into(), &"f32".into())
        );
        assert_eq!((&shape["top_k"], &shape["training_flops"]), (&2.into(), &(18 * 20 * 7 * 9).into()));
        assert_eq!(shape["saved_bytes"], serde_json::json!({"experts": 100, "layer": 200, "least": 4 * (70 + 360)}));
        let layer = &shape["contestants"][0];
        assert_eq!((&layer["name"], &layer["side"]), (&LAYER.into(), &"ours".into()));
        assert_eq!(layer["forward"]["cpu_seconds"]["median"], 1.4);
        for key in ["date", "cpu", "cores", "rustc", "commit", "burn", "gemm", "gpus"] {
            assert!(json["machine"].get(key).is_some(), "{key}");
        }
    }

    #[test]
    fn the_table_has_a_line_for_every_contestant() {
        let text = record().table(&setting());
        assert_eq!(text.lines().count(), 1 + 1 + 5 + 1 + 2, "{text}");
        assert!(text.contains("gemm, fast") && text.contains("1.25 x the mean"));
        assert!(text.contains("hf cannot compute this shape: odd width"));
    }
}

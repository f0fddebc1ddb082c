//! What default vectors cost: layers and training steps with and without them, in turns.

mod layer;
mod step;

use moe_train::config::Dtype;
use serde::Serialize;

use crate::args::DefaultMoeArgs;
use crate::clock::{Clock, Spread, Time, median_interval};
use crate::error::{Error, Result};
use crate::layer::{Shape, paired};
use crate::machine::Machine;
use crate::record::Head;
use crate::session::{self, ON_GPU, Session};
use crate::table::Table;

/// The whole file.
#[derive(Debug, Serialize)]
struct Record {
    #[serde(flatten)]
    head: Head,
    comparisons: Vec<Comparison>,
}

/// The same thing with plain top-K and with default vectors.
#[derive(Debug, Serialize)]
struct Comparison {
    what: String,
    top_k_seconds: Spread,
    default_seconds: Spread,
    /// Median over the rounds of one time over the other of the same round, minus 1.
    slower_by: f64,
    /// Where it lies in 95 of 100 studies.
    slower_by_interval: [f64; 2],
    /// Bytes kept for backward, where they were counted.
    saved_bytes: Option<[u64; 2]>,
    /// Bytes of the vectors, where they were counted.
    state_bytes: Option<u64>,
}

/// `moe-bench default-moe`.
///
/// # Errors
///
/// A device or a file that cannot be used, an unknown preset, and every wrong result.
pub(crate) fn run(args: &DefaultMoeArgs) -> Result<()> {
    if args.common.torch.is_some() {
        return Err(Error::new("PyTorch has no part in this comparison: leave --torch out"));
    }
    let session = Session::open(&args.common, Dtype::F32)?;
    let machine = Machine::here(&session.device_name);
    println!("{}", machine.line());
    let shapes = if args.shape.is_empty() { Shape::catalogue(ON_GPU) } else { args.shape.clone() };
    let clock = Clock::choose(args.common.threads, ON_GPU);
    let mut comparisons = Vec::new();
    for shape in shapes {
        comparisons.extend(layer::compare(&shape, clock, &args.common, &session.device)?);
    }
    if args.preset != "none" {
        comparisons.push(step::compare(&args.preset, clock, &args.common, &session.device)?);
    }
    println!("{}", table(&comparisons));
    let record = Record { head: Head::new("default-moe", machine, &args.common, clock), comparisons };
    session::write_json(&args.common, &record)
}

impl Comparison {
    fn new(what: String, clock: Clock, top_k: &[Time], default: &[Time]) -> Self {
        let seconds = |times: &[Time]| Spread::of(times.iter().map(|time| clock.of(time)));
        let by = default.iter().zip(top_k).map(|(default, top_k)| clock.of(default) / clock.of(top_k) - 1.0);
        Self {
            what,
            top_k_seconds: seconds(top_k),
            default_seconds: seconds(default),
            slower_by: paired(by.clone()),
            slower_by_interval: median_interval(by),
            saved_bytes: None,
            state_bytes: None,
        }
    }
}

fn table(comparisons: &[Comparison]) -> Table {
    let mut table =
        Table::new(&["", "top-K ms", "+-%", "default ms", "+-%", "slower", "95 %", "saved MB", "more", "state MB"]);
    for one in comparisons {
        let mut cells = vec![one.what.clone()];
        for seconds in [&one.top_k_seconds, &one.default_seconds] {
            cells.extend([format!("{:.2}", 1e3 * seconds.median), format!("{:.1}", 100.0 * seconds.relative())]);
        }
        cells.push(format!("{:+.2} %", 100.0 * one.slower_by));
        let [from, to] = one.slower_by_interval.map(|by| 100.0 * by);
        cells.push(format!("{from:+.1} to {to:+.1}"));
        let megabytes = |bytes: u64| format!("{:.3}", bytes as f64 / 1e6);
        if let Some([top_k, default]) = one.saved_bytes {
            cells.extend([megabytes(top_k), megabytes(default.saturating_sub(top_k))]);
        }
        cells.extend(one.state_bytes.map(megabytes));
        table.row(cells);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_slower_is_the_median_over_pairs() {
        let times = |seconds: [f64; 3]| seconds.map(|wall| Time { wall, cpu: wall });
        // The second round was disturbed, both sides of it.
        let one = Comparison::new("x".into(), Clock::Cpu, &times([1.0, 2.0, 1.0]), &times([1.02, 2.02, 1.04]));
        assert!((one.slower_by - 0.02).abs() < 1e-12);
        assert!(table(&[one]).to_string().contains("+2.00 %"));
    }
}

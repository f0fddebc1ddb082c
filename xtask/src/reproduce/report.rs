//! The report of the Default MoE study: a function of the results.

use std::fmt::Write;

use serde_json::Value;

use super::Scale;
use super::default_moe::{Pairing, RATES, SWEEP_SEEDS, excited_pairings, grid, pairings};
use super::grid::{Arm, E8C1, Run};
use super::results::Results;
use super::statistics::{Paired, mean};

/// The whole report, of the runs of so many steps; without a number, of those that the scale has.
pub(crate) fn markdown(results: &Results, scale: Scale, steps: Option<usize>) -> String {
    let grid = grid(scale, steps);
    let report = Report { results, size: grid[0], pairings: pairings(scale) };
    let done = grid.iter().filter(|run| results.has(run)).count();
    let mut text = format!(
        "# Default MoE against top-K, scale `{}`\n\nMade by `cargo xtask reproduce default-moe --scale {} --report` from \
         `results.jsonl`: {done} of {} runs. Losses are held-out cross-entropy in nats per byte. Both runs of a pair start from \
         the same weights and see the same text in the same order. A difference is default minus top-K: below zero, default \
         vectors are better.\n\n",
        scale.name(),
        scale.name(),
        grid.len()
    );
    text += &report.pairs();
    text += &report.rates();
    text += &report.routing();
    if scale == Scale::Cpu {
        text += &report.excited();
    }
    text += PAPER;
    text
}

/// What it is to be compared with.
const PAPER: &str = "## The paper\n\n\
    Panda, Baherwani et al., 2025 (arXiv 2504.12463), 1.96 B parameters, about 10 B tokens, perplexity of top-K and default:\n\n\
    | | 8c1 | 8c2 | 32c1 | 32c2 | 32c4 |\n|---|---|---|---|---|---|\n\
    | top-K | 23.07 | 22.11 | 22.96 | 22.32 | 22.06 |\n| default | 22.67 | 21.94 | 22.95 | 22.26 | 21.54 |\n\
    | difference, nats | -0.0175 | -0.0077 | -0.0004 | -0.0027 | -0.0239 |\n\n\
    | 8c1, learning rate | 3e-4 | 5e-4 | 7e-4 | 9e-4 |\n|---|---|---|---|---|\n\
    | top-K | 23.05 | 21.82 | 21.13 | 22.45 |\n| default | 22.62 | 21.78 | 21.21 | 21.14 |\n";

struct Report<'a> {
    results: &'a Results,
    /// A run whose size and steps all others have.
    size: Run,
    pairings: Vec<Pairing>,
}

impl Report<'_> {
    fn result(&self, pairing: &Pairing, arm: Arm, seed: u64) -> Option<&Value> {
        let Pairing { experts, lr, .. } = *pairing;
        self.results.find(&Run { arm, experts, lr, seed, ..self.size })
    }

    /// Differences of the losses, and how many pairs are left out because a run of theirs diverged.
    fn differences(&self, pairing: &Pairing, evaluation: &str) -> (Vec<f64>, usize) {
        let both =
            |seed| Some((self.result(pairing, pairing.against, seed)?, self.result(pairing, pairing.arm, seed)?));
        let pairs: Vec<_> = (0..pairing.seeds).filter_map(both).collect();
        let theirs = if pairing.against.has_default_vectors() { evaluation } else { "top-k" };
        let difference = |(against, arm): &(&Value, &Value)| {
            Some(arm["loss"][evaluation].as_f64()? - against["loss"][theirs].as_f64()?)
        };
        let differences: Vec<f64> = pairs.iter().filter_map(difference).collect();
        let left_out = pairs.len() - differences.len();
        (differences, left_out)
    }

    fn pairs(&self) -> String {
        let mut text = format!("## Paired differences\n\n{SMALLEST_EFFECT}\n\n{PAIRS}");
        for pairing in &self.pairings {
            for evaluation in ["frozen", "top-k"] {
                text += &self.pair_row(pairing, evaluation);
            }
        }
        text + "\n"
    }

    fn pair_row(&self, pairing: &Pairing, evaluation: &str) -> String {
        let (differences, left_out) = self.differences(pairing, evaluation);
        pair_row(pairing, evaluation, &differences, left_out)
    }

    fn excited(&self) -> String {
        let mut text = format!(
            "## With Excitation\n\nExperts excited against not excited, the same router, 8 experts, 1 active, good rate.\n\n{PAIRS}"
        );
        let pairings = excited_pairings();
        for pairing in &pairings {
            let evaluation = if pairing.arm.has_default_vectors() { "frozen" } else { "top-k" };
            text += &self.pair_row(pairing, evaluation);
        }
        text += &format!("\n{ROUTING}");
        for pairing in &pairings {
            text += &self.routing_row(pairing, pairing.arm);
        }
        text + "\n"
    }

    fn rates(&self) -> String {
        let mut text = format!(
            "## Learning rates\n\n8 experts, 1 active, mean of {SWEEP_SEEDS} seeds, default vectors frozen.\n\n\
             | learning rate | top-K | default | difference |\n|---|---|---|---|\n"
        );
        for lr in RATES {
            let pairing =
                Pairing { title: "", arm: Arm::WEIGHTED, against: Arm::TOP_K, experts: E8C1, lr, seeds: SWEEP_SEEDS };
            let losses = |arm, evaluation: &str| {
                let loss = |seed| self.result(&pairing, arm, seed)?["loss"][evaluation].as_f64();
                (0..SWEEP_SEEDS).filter_map(loss).collect::<Vec<_>>()
            };
            let (top_k, default) = (mean(&losses(Arm::TOP_K, "top-k")), mean(&losses(Arm::WEIGHTED, "frozen")));
            let cells = [top_k, default, default - top_k].map(|loss| number(loss, 4));
            let _ = writeln!(text, "| {lr:e} | {} |", cells.join(" | "));
        }
        text + "\n"
    }

    fn routing(&self) -> String {
        let mut text = format!(
            "## Load and default vectors at the last step\n\nMeans over seeds and layers. `norm` is that of the vectors, \
             `follows` of what they move towards, `moved` the distance of a step, `share` the part of the output that \
             comes from them.\n\n{ROUTING}"
        );
        for pairing in &self.pairings {
            for arm in [pairing.against, pairing.arm] {
                text += &self.routing_row(pairing, arm);
            }
        }
        text + "\n"
    }

    fn routing_row(&self, pairing: &Pairing, arm: Arm) -> String {
        let found: Vec<&Value> = (0..pairing.seeds).filter_map(|seed| self.result(pairing, arm, seed)).collect();
        routing_row(pairing, arm, &found)
    }
}

const SMALLEST_EFFECT: &str = "`smallest effect` is the true difference that so many pairs, of this deviation, would find in \
    4 of 5 studies.";

/// Head of a table of [`pair_row`]s.
const PAIRS: &str = "| | evaluation | pairs | mean | 95 % interval | deviation | smallest effect | |\n\
    |---|---|---|---|---|---|---|---|\n";

/// Head of a table of [`routing_row`]s.
const ROUTING: &str = "| | arm | runs | diverged | load ratio | dead experts | norm | follows | moved | share |\n\
    |---|---|---|---|---|---|---|---|---|---|\n";

fn pair_row(pairing: &Pairing, evaluation: &str, differences: &[f64], left_out: usize) -> String {
    let title = pairing.title;
    let note = if left_out == 0 { String::new() } else { format!(", {left_out} diverged") };
    let Some(paired) = Paired::of(differences) else {
        let mean = number(mean(differences), 4);
        return format!("| {title} | {evaluation} | {}{note} | {mean} | | | | too few pairs |\n", differences.len());
    };
    let [low, high] = paired.interval().map(|end| number(end, 4));
    let [mean, deviation, smallest] =
        [paired.mean, paired.deviation, paired.smallest_effect].map(|value| number(value, 4));
    let verdict = paired.verdict();
    format!(
        "| {title} | {evaluation} | {}{note} | {mean} | {low} to {high} | {deviation} | {smallest} | {verdict} |\n",
        paired.pairs
    )
}

fn routing_row(pairing: &Pairing, arm: Arm, found: &[&Value]) -> String {
    let layers: Vec<&Value> = found.iter().filter_map(|result| result["layers"].as_array()).flatten().collect();
    let over = |value: &dyn Fn(&Value) -> Option<f64>| {
        let values: Vec<f64> = layers.iter().filter_map(|layer| value(layer)).collect();
        if values.is_empty() { "-".into() } else { number(mean(&values), 3) }
    };
    let of_default = |name: &'static str| over(&move |layer: &Value| layer["default"][name].as_f64());
    let norm = over(&|layer: &Value| {
        let norms: Vec<f64> = layer["default"]["norms"].as_array()?.iter().filter_map(Value::as_f64).collect();
        Some(mean(&norms))
    });
    let diverged = found.iter().filter(|result| result["diverged"] == true).count();
    let cells = [
        over(&|layer: &Value| layer["load_ratio"].as_f64()),
        over(&|layer: &Value| layer["dead_experts"].as_f64()),
        norm,
        of_default("target_norm"),
        of_default("moved"),
        of_default("share"),
    ];
    format!("| {} | {} | {} | {diverged} | {} |\n", pairing.title, arm.name(), found.len(), cells.join(" | "))
}

/// `-` for what there is none of.
fn number(value: f64, digits: usize) -> String {
    if value.is_finite() { format!("{value:.digits$}") } else { "-".into() }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::{Map, json};

    use super::super::results::line;
    use super::*;

    /// Results of the whole grid: default vectors gain 0.02 nats, a little more with every seed.
    fn results(name: &str) -> Results {
        let dir = std::env::temp_dir().join(format!("xtask-report-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        let mut results = Results::open(&dir.join("results.jsonl")).unwrap();
        for run in grid(Scale::Cpu, None) {
            let gain = if run.arm.has_default_vectors() { 0.02 + 0.001 * run.seed as f64 } else { 0.0 };
            let loss = 1.5 + 0.01 * run.seed as f64;
            let mut losses = Map::from_iter([("top-k".to_string(), json!(loss))]);
            if run.arm.has_default_vectors() {
                losses.insert("frozen".into(), json!(loss - gain));
            }
            let default = run.arm.has_default_vectors().then(|| json!({"norms": [0.5, 1.5], "share": 0.25}));
            let last = json!({"layers": [{"layer": 1, "load_ratio": 1.5, "dead_experts": 0, "default": default}]});
            results.add(line(&run, Some(losses), &last, None)).unwrap();
        }
        results
    }

    #[test]
    fn the_tables_hold_what_the_results_say() {
        let text = markdown(&results("all"), Scale::Cpu, None);
        // 8 pairs: mean gain 0.0235; deviation of 0.001 * 0..7.
        assert!(text.contains("| weighted, good rate | frozen | 8 | -0.0235 |"), "{text}");
        assert!(text.contains("| better |"));
        assert!(text.contains("| weighted, good rate | top-k | 8 | 0.0000 |"), "{text}");
        // Against default vectors without excitation, which gain as much.
        assert!(text.contains("| default vectors, ZeroSum | frozen | 3 | 0.0000 |"), "{text}");
        assert!(text.contains("| 2e-3 | 1.5050 | 1.4845 | -0.0205 |"), "{text}");
        assert!(text.contains("| default | 8 | 0 | 1.500 | 0.000 | 1.000 | - | - | 0.250 |"), "{text}");
    }

    #[test]
    fn the_committed_report_is_that_of_the_committed_results() {
        let folder = crate::cargo::root().join("benchmarks/default-moe/cpu");
        let results = Results::open(&folder.join("results.jsonl")).unwrap();
        let committed = fs::read_to_string(folder.join("report.md")).unwrap();
        assert_eq!(markdown(&results, Scale::Cpu, None), committed);
    }

    #[test]
    fn results_of_other_steps_are_not_in_it() {
        let text = markdown(&results("steps"), Scale::Cpu, Some(10));
        assert!(text.contains("0 of 90 runs") && !text.contains("0.0235"), "{text}");
    }

    #[test]
    fn without_results_it_says_so_and_does_not_fail() {
        let results = Results::open(std::path::Path::new("no/such/results.jsonl")).unwrap();
        let text = markdown(&results, Scale::Gpu, None);
        assert!(text.contains("0 of ") && text.contains("too few pairs"));
    }
}

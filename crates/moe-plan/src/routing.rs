//! How unevenly experts are used: the load of the busiest device over the mean, which everybody waits for.

use std::path::Path;

use serde_json::Value;

use crate::Moe;

/// Where the skew comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Routing {
    /// Every choice of experts is as likely as any other: only chance makes loads uneven.
    Balanced,
    /// The busiest device has this times the mean, at least 1.
    Skew(f64),
    /// Loads that a run had.
    Measured(Measured),
}

/// Slots of each expert: `[step][layer][expert]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    counts: Vec<Vec<Vec<f64>>>,
}

impl Measured {
    /// Reads `metrics.jsonl` of a run's directory, the later half of its records: a router that has just begun is another.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, a complete line that is no record, no record with counts.
    pub fn read(run: &Path) -> Result<Self, String> {
        let path = run.join("metrics.jsonl");
        let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Self::parse(&text).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// [`read`](Self::read) of the text of the file. A last line without its end was cut short by a kill and is left out.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn parse(text: &str) -> Result<Self, String> {
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        let count = |value: &Value| value.as_u64().map(|count| count as f64);
        let mut counts = Vec::new();
        for (i, line) in whole.lines().enumerate() {
            let record: Value = serde_json::from_str(line).map_err(|error| format!("line {}: {error}", i + 1))?;
            let layers = record["layers"].as_array().ok_or_else(|| format!("line {} has no layers", i + 1))?;
            let of_layer = |layer: &Value| layer["expert_counts"].as_array()?.iter().map(count).collect();
            let layers: Option<Vec<Vec<f64>>> = layers.iter().map(of_layer).collect();
            counts.push(layers.ok_or_else(|| format!("line {}: a layer has no expert_counts", i + 1))?);
        }
        counts.drain(..counts.len() / 2);
        match counts.iter().flatten().any(|experts| experts.iter().sum::<f64>() > 0.0) {
            true => Ok(Self { counts }),
            false => Err("there is no record of a layer with experts".into()),
        }
    }

    /// Mean over steps and layers of the busiest device's load over the mean load.
    fn skew(&self, moe: &Moe, devices: u64) -> Result<f64, String> {
        let mut ratios = Vec::new();
        for experts in self.counts.iter().flatten() {
            if experts.len() as u64 != moe.num_experts {
                let (run, model) = (experts.len(), moe.num_experts);
                return Err(format!(
                    "the run has layers of {run} experts, the model of {model}: its loads say nothing here"
                ));
            }
            let total = experts.iter().sum::<f64>();
            let mut rest = experts.as_slice();
            let load = |size: usize| {
                let (own, others) = rest.split_at(size);
                rest = others;
                own.iter().sum::<f64>()
            };
            let busiest = sizes(moe.num_experts, devices).map(load).fold(0.0, f64::max);
            if total > 0.0 {
                ratios.push(busiest * devices as f64 / total);
            }
        }
        Ok(ratios.iter().sum::<f64>() / ratios.len() as f64)
    }
}

/// Experts of each device, as `moe_layers::parallel::ExpertPlacement::even` places them.
fn sizes(num_experts: u64, devices: u64) -> impl Iterator<Item = usize> {
    (0..devices).map(move |device| (num_experts / devices + u64::from(device < num_experts % devices)) as usize)
}

impl Routing {
    /// Load of the busiest of `devices` over the mean, when they route `tokens` together.
    ///
    /// # Errors
    ///
    /// Loads of a run with another number of experts.
    pub fn skew(&self, moe: &Moe, devices: u64, tokens: f64) -> Result<f64, String> {
        match self {
            _ if devices == 1 => Ok(1.0),
            Self::Balanced => Ok(balanced_skew(moe, devices, tokens)),
            Self::Skew(skew) => Ok(*skew),
            Self::Measured(measured) => measured.skew(moe, devices),
        }
    }
}

/// Expected maximum over devices of the load over its mean `n / P`, `n = tokens K`, if every set of `K` experts is as likely:
/// `most / (E / P) + sqrt((P / n) (E - K) / (E - 1)) m_P`, where `most` is the number of experts of the device that has most and `m_P` the
/// expected maximum of `P` standard normal numbers.
///
/// A device's load is a sum over tokens of hypergeometric numbers of variance `K (1 / P) (1 - 1 / P) (E - K) / (E - 1)`; the loads of two devices
/// are negatively correlated, since all sum to `n`, which takes the factor `1 - 1 / P` away again.
fn balanced_skew(moe: &Moe, devices: u64, tokens: f64) -> f64 {
    let (e, k, p) = (moe.num_experts as f64, moe.top_k as f64, devices as f64);
    let most = moe.num_experts.div_ceil(devices) as f64 * p / e;
    let without_repetition = if e > 1.0 { (e - k) / (e - 1.0) } else { 0.0 };
    most + (p / (tokens * k) * without_repetition).sqrt() * expected_maximum(devices)
}

/// Of `count` independent standard normal numbers: the integral of `1 - cdf^n` over positive, less that of `cdf^n` over negative numbers.
fn expected_maximum(count: u64) -> f64 {
    const STEP: f64 = 1e-3;
    const END: f64 = 9.0;
    let steps = (2.0 * END / STEP) as usize;
    let (mut cdf, mut sum) = (0.0, 0.0);
    for i in 0..steps {
        let x = -END + (i as f64 + 0.5) * STEP;
        let density = (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
        // The midpoint's value of the distribution function, by the density to its left and half of its own.
        let here: f64 = cdf + density * STEP / 2.0;
        cdf += density * STEP;
        let all_below = here.min(1.0).powf(count as f64);
        sum += if x < 0.0 { -all_below } else { 1.0 - all_below } * STEP;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::by_hand;

    fn moe(num_experts: u64, top_k: u64) -> Moe {
        Moe { num_experts, top_k, ..by_hand().moe }
    }

    /// Two records of two layers with four experts, and a line that a kill cut short.
    const METRICS: &str = concat!(
        r#"{"step": 1, "layers": [{"layer": 1, "expert_counts": [90, 0, 0, 0]}, {"layer": 2, "expert_counts": [0, 0, 0, 90]}]}"#,
        "\n",
        r#"{"step": 2, "layers": [{"layer": 1, "expert_counts": [10, 20, 30, 40]}, {"layer": 2, "expert_counts": [25, 25, 25, 25]}]}"#,
        "\n",
        r#"{"step": 3, "lay"#,
    );

    #[test]
    fn measured_loads_are_those_of_the_later_half() {
        let measured = Measured::parse(METRICS).unwrap();
        assert_eq!(measured.counts, [[[10.0, 20.0, 30.0, 40.0], [25.0; 4]]]);
        let skew = |devices| Routing::Measured(measured.clone()).skew(&moe(4, 1), devices, 0.0);
        // Devices of two experts: (70 + 50) / (50 + 50). Of one: (40 + 25) / (25 + 25). Of 2, 1 and 1: (40 + 50) * 3 / 200.
        assert_eq!([skew(1), skew(2), skew(4)], [1.0, 1.2, 1.3].map(Ok));
        assert!((skew(3).unwrap() - 1.35).abs() < 1e-12);
    }

    #[test]
    fn what_is_no_record_is_an_error_with_its_line() {
        let error = |text: &str| Measured::parse(text).unwrap_err();
        assert!(error("{\"layers\": []}\nx\n").starts_with("line 2: "));
        assert_eq!(error("{}\n"), "line 1 has no layers");
        assert_eq!(error("{\"layers\": [{}]}\n"), "line 1: a layer has no expert_counts");
        assert_eq!(error(""), "there is no record of a layer with experts");
        let other = Routing::Measured(Measured::parse(METRICS).unwrap()).skew(&moe(8, 2), 2, 0.0).unwrap_err();
        assert_eq!(other, "the run has layers of 4 experts, the model of 8: its loads say nothing here");
    }

    #[test]
    fn expected_maxima_are_those_of_the_tables() {
        // Known in closed form for 2 and 3; the others from tables of order statistics (Harter, 1961).
        let sqrt_pi = std::f64::consts::PI.sqrt();
        for (count, expected) in [(1, 0.0), (2, 1.0 / sqrt_pi), (3, 1.5 / sqrt_pi), (8, 1.423_60), (100, 2.507_59)] {
            let found = expected_maximum(count);
            assert!((found - expected).abs() < 1e-4, "{count}: {found}");
        }
    }

    /// One of two devices for each of `n` tokens: the mean of the larger count by the binomial distribution itself.
    #[test]
    fn a_balanced_skew_is_that_of_a_binomial_distribution() {
        let n = 1000;
        let mut probability = 0.5f64.powi(n);
        let mut mean = 0.0;
        for count in 0..=n {
            mean += probability * f64::from(count.max(n - count));
            probability *= f64::from(n - count) / f64::from(count + 1);
        }
        let exact = mean / (f64::from(n) / 2.0);
        let found = Routing::Balanced.skew(&moe(2, 1), 2, f64::from(n)).unwrap();
        assert!((found - exact).abs() < 1e-4, "{found} {exact}");
    }

    #[test]
    fn a_token_that_has_all_experts_has_no_luck() {
        assert_eq!(Routing::Balanced.skew(&moe(4, 4), 4, 10.0), Ok(1.0));
        // Seven experts on three devices: one of them has three.
        let uneven = Routing::Balanced.skew(&moe(7, 7), 3, 10.0).unwrap();
        assert!((uneven - 9.0 / 7.0).abs() < 1e-12);
    }
}

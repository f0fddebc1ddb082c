//! Rotary positions for sequences longer than those a model was first trained on.
//!
//! Pair `i` of a head of width `A` turns by `w_i = theta^(-2i/A)` per position. Each method lowers some of the `w_i`, so
//! that a longer sequence turns no further than a short one did.
//!
//! In f32, step by step as `transformers` computes them: far into a sequence, the rounding of an angle is what shows.

use std::f32;
use std::f64::consts::TAU;

use serde::{Deserialize, Serialize};

use super::validate::{at_least_one, positive};
use super::{LmConfig, LmConfigError};

/// How the frequencies of rotary positions are changed; in text a table with `kind` `"linear"`, `"llama3"` or `"yarn"`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RopeScaling {
    /// Every frequency divided by `factor` ([Chen et al., 2023](https://arxiv.org/abs/2306.15595)).
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// Low frequencies divided by `factor`, high ones kept, those between blended by their number of turns
    /// (Llama 3.1, [Grattafiori et al., 2024](https://arxiv.org/abs/2407.21783)).
    Llama3 {
        /// At least 1.
        factor: f64,
        /// Pairs that turn fewer times than this in `original_max_seq_len` positions count as low.
        low_freq_factor: f64,
        /// Pairs that turn more often than this are kept; above `low_freq_factor`.
        high_freq_factor: f64,
        /// Longest sequence before the change, in tokens.
        original_max_seq_len: usize,
    },
    /// Pairs divided by `factor`, kept, or in between by their index, and longer queries and keys
    /// ([Peng et al., 2023](https://arxiv.org/abs/2309.00071)).
    Yarn {
        /// At least 1.
        factor: f64,
        /// Longest sequence before the change, in tokens.
        original_max_seq_len: usize,
        /// Scales cosines and sines, hence queries and keys. `None`: `0.1 ln(factor) + 1`.
        #[serde(default)]
        attention_factor: Option<f64>,
        /// Pairs that turn more often than this in `original_max_seq_len` positions are kept. Default: 32
        #[serde(default = "beta_fast")]
        beta_fast: f64,
        /// Pairs that turn less often than this are divided by `factor`. Default: 1
        #[serde(default = "beta_slow")]
        beta_slow: f64,
        /// Whether both bounds are rounded to whole pairs, outwards. Default: true
        #[serde(default = "truncate")]
        truncate: bool,
    },
}

fn beta_fast() -> f64 {
    32.0
}

fn beta_slow() -> f64 {
    1.0
}

fn truncate() -> bool {
    true
}

impl RopeScaling {
    /// YaRN with the constants of the paper.
    pub fn yarn(factor: f64, original_max_seq_len: usize) -> Self {
        Self::Yarn {
            factor,
            original_max_seq_len,
            attention_factor: None,
            beta_fast: beta_fast(),
            beta_slow: beta_slow(),
            truncate: truncate(),
        }
    }

    /// What cosines and sines are multiplied by.
    fn amplitude(&self) -> f64 {
        match *self {
            Self::Yarn { factor, attention_factor, .. } => attention_factor.unwrap_or(0.1 * factor.ln() + 1.0),
            Self::Linear { .. } | Self::Llama3 { .. } => 1.0,
        }
    }

    /// The changed frequency of pair `pair`, which was `frequency`.
    fn scale(&self, pair: usize, frequency: f32, theta: f64, head_dim: usize) -> f32 {
        match *self {
            Self::Linear { factor } => frequency / factor as f32,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_seq_len } => {
                let wavelength = f32::consts::TAU / frequency;
                let turns = original_max_seq_len as f32 / wavelength;
                let range = (high_freq_factor - low_freq_factor) as f32;
                let kept = ((turns - low_freq_factor as f32) / range).clamp(0.0, 1.0);
                (1.0 - kept) * frequency / factor as f32 + kept * frequency
            }
            Self::Yarn { factor, .. } => {
                let [low, high] = self.ramp(theta, head_dim);
                let kept = 1.0 - ((pair as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
                let divided = 1.0 / (factor as f32 * wavelength_of(pair, theta, head_dim));
                divided * (1.0 - kept) + frequency * kept
            }
        }
    }

    /// YaRN's pairs below which nothing changes and above which all is divided.
    fn ramp(&self, theta: f64, head_dim: usize) -> [f64; 2] {
        let Self::Yarn { original_max_seq_len, beta_fast, beta_slow, truncate, .. } = *self else {
            unreachable!("only YaRN has a ramp")
        };
        // The pair that turns so many times.
        let pair =
            |turns: f64| head_dim as f64 * (original_max_seq_len as f64 / (turns * TAU)).ln() / (2.0 * theta.ln());
        let (mut low, mut high) = (pair(beta_fast), pair(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, high) = (low.max(0.0), high.min(head_dim as f64 - 1.0));
        // The published code's way around a ramp of no length.
        [low, if low == high { high + 0.001 } else { high }]
    }

    /// # Errors
    ///
    /// A number out of its range.
    pub(super) fn validate(&self) -> Result<(), LmConfigError> {
        match *self {
            Self::Linear { factor } => at_least_one("rope_scaling.factor", factor),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_seq_len } => {
                at_least_one("rope_scaling.factor", factor)?;
                positive("rope_scaling.low_freq_factor", low_freq_factor)?;
                positive("rope_scaling.high_freq_factor - low_freq_factor", high_freq_factor - low_freq_factor)?;
                positive("rope_scaling.original_max_seq_len", original_max_seq_len as f64)
            }
            Self::Yarn { factor, original_max_seq_len, attention_factor, beta_fast, beta_slow, .. } => {
                at_least_one("rope_scaling.factor", factor)?;
                positive("rope_scaling.original_max_seq_len", original_max_seq_len as f64)?;
                positive("rope_scaling.attention_factor", attention_factor.unwrap_or(1.0))?;
                positive("rope_scaling.beta_slow", beta_slow)?;
                positive("rope_scaling.beta_fast - beta_slow", beta_fast - beta_slow)
            }
        }
    }
}

/// `theta^(2i/A)`, the exponent in f32. The power is taken in f64 and rounded, which is at most the last bit away from
/// PyTorch's.
fn wavelength_of(pair: usize, theta: f64, head_dim: usize) -> f32 {
    let exponent = (2 * pair) as f32 / head_dim as f32;
    f64::from(theta as f32).powf(f64::from(exponent)) as f32
}

impl LmConfig {
    /// Radians per position of the `A / 2` pairs of a head's channels.
    pub(crate) fn rotary_frequencies(&self) -> Vec<f32> {
        let (theta, head_dim) = (self.rope_theta, self.head_width());
        let plain = (0..head_dim / 2).map(|pair| (pair, 1.0 / wavelength_of(pair, theta, head_dim)));
        match &self.rope_scaling {
            None => plain.map(|(_, frequency)| frequency).collect(),
            Some(scaling) => plain.map(|(pair, frequency)| scaling.scale(pair, frequency, theta, head_dim)).collect(),
        }
    }

    /// What the cosines and sines of the rotation are multiplied by.
    pub(crate) fn rotary_amplitude(&self) -> f64 {
        self.rope_scaling.map_or(1.0, |scaling| scaling.amplitude())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLERANCE: f64 = 1e-6;

    const LLAMA3: RopeScaling =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_seq_len: 64 };

    fn config(scaling: Option<RopeScaling>) -> LmConfig {
        LmConfig::new(8, 16, 1, 1, 8, 256).with_rope_theta(100.0).with_rope_scaling(scaling)
    }

    fn factors(scaling: RopeScaling) -> Vec<f64> {
        let (plain, scaled) = (config(None).rotary_frequencies(), config(Some(scaling)).rotary_frequencies());
        plain.iter().zip(&scaled).map(|(plain, scaled)| f64::from(plain / scaled)).collect()
    }

    fn assert_close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < TOLERANCE * expected.abs(), "{found} instead of {expected}");
        }
    }

    #[test]
    fn linear_divides_every_frequency() {
        assert_close(&factors(RopeScaling::Linear { factor: 4.0 }), &[4.0; 8]);
    }

    #[test]
    fn llama3_keeps_fast_pairs_and_divides_slow_ones() {
        let factors = factors(LLAMA3);
        // The pairs turn 10.2, 5.7, 3.2, 1.8, 1.02, 0.57, .. times in 64 positions.
        assert_close(&factors[..2], &[1.0; 2]);
        assert_close(&factors[5..], &[8.0; 3]);
        assert!(factors[2..5].iter().all(|factor| (1.0..8.0).contains(factor)), "{factors:?}");
        assert!(factors.is_sorted());
    }

    #[test]
    fn yarn_divides_between_its_two_bounds_and_lengthens() {
        let yarn = RopeScaling::yarn(4.0, 64);
        let factors = factors(yarn);
        assert_close(&factors[..1], &[1.0]);
        assert_close(&factors[5..], &[4.0; 3]);
        assert!(factors.is_sorted());
        assert_close(&[config(Some(yarn)).rotary_amplitude()], &[0.1 * 4f64.ln() + 1.0]);
        assert_close(&[config(Some(LLAMA3)).rotary_amplitude()], &[1.0]);
    }

    #[test]
    fn a_factor_of_one_changes_nothing() {
        for scaling in [RopeScaling::Linear { factor: 1.0 }, RopeScaling::yarn(1.0, 64)] {
            assert_close(&factors(scaling), &[1.0; 8]);
            assert_close(&[config(Some(scaling)).rotary_amplitude()], &[1.0]);
        }
    }

    #[test]
    fn text_has_defaults_and_round_trips() {
        let text = r#"{"kind": "yarn", "factor": 4, "original_max_seq_len": 64}"#;
        let yarn: RopeScaling = serde_json::from_str(text).expect("a table");
        assert_eq!(yarn, RopeScaling::yarn(4.0, 64));
        for scaling in [yarn, LLAMA3, RopeScaling::Linear { factor: 2.0 }] {
            let text = serde_json::to_string(&scaling).expect("plain data");
            assert_eq!(serde_json::from_str::<RopeScaling>(&text).expect("it was just written"), scaling);
        }
        assert!(serde_json::from_str::<RopeScaling>(r#"{"kind": "linear", "factor": 2, "beta_fast": 1}"#).is_err());
    }

    #[test]
    fn numbers_out_of_range_are_refused_by_name() {
        let refused = |scaling: RopeScaling, field: &str| {
            let message = config(Some(scaling)).validate().expect_err(field).to_string();
            assert!(message.contains(field), "{message}");
        };
        refused(RopeScaling::Linear { factor: 0.5 }, "rope_scaling.factor");
        refused(RopeScaling::yarn(4.0, 0), "rope_scaling.original_max_seq_len");
        let slow =
            RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 4.0, high_freq_factor: 4.0, original_max_seq_len: 64 };
        refused(slow, "rope_scaling.high_freq_factor");
    }
}

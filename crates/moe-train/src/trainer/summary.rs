//! The line that ends a training run.

use std::fmt;

use crate::run::TrainState;

/// What a run came to. Displayed, it is the last line that the program prints.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Optimizer steps of the whole run, those before a resume included.
    pub steps: usize,
    /// Tokens trained on in those steps.
    pub tokens: u64,
    /// Last validation loss, nats per token; NaN when the run was interrupted before its first validation.
    pub valid_loss: f64,
    /// The same in bits per byte of text.
    pub valid_bpb: f64,
    /// Tokens per second of training time; validation and checkpoints are not training time. 0 without a step.
    pub tokens_per_s: f64,
    /// Whether the run was stopped before its last step. Its last checkpoint is at `steps`.
    pub interrupted: bool,
}

impl Summary {
    pub(super) fn new(state: &TrainState, interrupted: bool) -> Self {
        let (valid_loss, valid_bpb) = state.last_valid.unwrap_or((f64::NAN, f64::NAN));
        Self {
            steps: state.step,
            tokens: state.tokens,
            valid_loss,
            valid_bpb,
            tokens_per_s: per_second(state.tokens, state.seconds),
            interrupted,
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "final: steps={} tokens={} valid_loss={:.4} valid_bpb={:.4} tokens_per_s={:.0}",
            self.steps, self.tokens, self.valid_loss, self.valid_bpb, self.tokens_per_s
        )
    }
}

/// `tokens / seconds`, 0 when no time has passed.
pub(super) fn per_second(tokens: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_is_one_line_of_names_and_values() {
        let summary = Summary {
            steps: 200,
            tokens: 102_400,
            valid_loss: 1.87654,
            valid_bpb: 2.70728,
            tokens_per_s: 12_345.6,
            interrupted: false,
        };
        assert_eq!(
            summary.to_string(),
            "final: steps=200 tokens=102400 valid_loss=1.8765 valid_bpb=2.7073 tokens_per_s=12346"
        );
    }

    #[test]
    fn speed_without_time_is_zero() {
        assert_eq!(per_second(100, 0.0), 0.0);
        assert_eq!(per_second(100, 2.0), 50.0);
    }
}

//! The line that ends a training run.

use std::fmt;

use crate::run::{Subject, TrainState};

/// What a run came to. Displayed, it is the last line that the program prints.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Optimizer steps of the whole run, those before a resume included.
    pub steps: usize,
    /// Tokens trained on in those steps.
    pub tokens: u64,
    /// What the model is trained on.
    pub subject: Subject,
    /// Last validation loss, nats per token or per image; NaN when the run was interrupted before its first validation.
    pub valid_loss: f64,
    /// With it, bits per byte of text, or the part of the images whose class was found.
    pub valid_score: f64,
    /// Tokens per second of training time; validation and checkpoints are not training time. 0 without a step.
    pub tokens_per_s: f64,
    /// Whether the run was stopped before its last step. Its last checkpoint is at `steps`.
    pub interrupted: bool,
}

impl Summary {
    pub(super) fn new(state: &TrainState, subject: Subject, interrupted: bool) -> Self {
        let (valid_loss, valid_score) = state.last_valid.unwrap_or((f64::NAN, f64::NAN));
        Self {
            steps: state.step,
            tokens: state.tokens,
            subject,
            valid_loss,
            valid_score,
            tokens_per_s: per_second(state.tokens, state.seconds),
            interrupted,
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let score = match self.subject {
            Subject::Text => "bpb",
            Subject::Images { .. } => "accuracy",
        };
        let (unit, units, rate) = (
            self.subject.unit(),
            self.subject.of_tokens(self.tokens as f64),
            self.subject.of_tokens(self.tokens_per_s),
        );
        write!(
            f,
            "final: steps={} {unit}={units} valid_loss={:.4} valid_{score}={:.4} {unit}_per_s={rate:.0}",
            self.steps, self.valid_loss, self.valid_score
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
            subject: Subject::Text,
            valid_loss: 1.87654,
            valid_score: 2.70728,
            tokens_per_s: 12_345.6,
            interrupted: false,
        };
        assert_eq!(
            summary.to_string(),
            "final: steps=200 tokens=102400 valid_loss=1.8765 valid_bpb=2.7073 tokens_per_s=12346"
        );
        let images = Summary { subject: Subject::Images { tokens: 64 }, valid_score: 0.25, ..summary };
        assert_eq!(
            images.to_string(),
            "final: steps=200 images=1600 valid_loss=1.8765 valid_accuracy=0.2500 images_per_s=193"
        );
    }

    #[test]
    fn speed_without_time_is_zero() {
        assert_eq!(per_second(100, 0.0), 0.0);
        assert_eq!(per_second(100, 2.0), 50.0);
    }
}

//! burn's terminal dashboard, fed from our own training loop.

use std::io::{IsTerminal, stdout};

use burn::{
    data::dataloader::Progress as Done,
    train::{
        Interrupter,
        metric::{MetricDefinition, MetricEntry, MetricId, NumericAttributes, NumericEntry, SerializedEntry},
        renderer::{
            MetricState, MetricsRenderer, MetricsRendererTraining, ProgressType, TrainingProgress,
            tui::TuiMetricsRendererWrapper,
        },
    },
};

use crossterm::{
    cursor::Show,
    execute,
    terminal::{LeaveAlternateScreen, disable_raw_mode},
};

use super::{
    Progress,
    plain::{lines, thousands},
    priority::with_lowest_priority,
};
use crate::run::{StepRecord, Subject};

/// One curve of the dashboard.
struct Curve {
    name: &'static str,
    description: &'static str,
    higher_is_better: bool,
    train: fn(&StepRecord) -> Option<f64>,
    valid: fn(&StepRecord) -> Option<f64>,
    format: fn(f64) -> String,
}

const NEVER: fn(&StepRecord) -> Option<f64> = |_| None;

const CURVES: [Curve; 9] = [
    Curve {
        name: "Loss",
        description: "Cross-entropy in nats per token, or per image",
        higher_is_better: false,
        train: |record| Some(record.loss),
        valid: |record| record.valid_loss,
        format: |value| format!("{value:.4}"),
    },
    Curve {
        name: "Bits per byte",
        description: "Held-out cross-entropy in bits per byte of text",
        higher_is_better: false,
        train: NEVER,
        valid: |record| record.valid_bpb,
        format: |value| format!("{value:.4}"),
    },
    Curve {
        name: "Accuracy",
        description: "Part of the held-out images whose class was found",
        higher_is_better: true,
        train: NEVER,
        valid: |record| record.valid_accuracy,
        format: |value| format!("{:.2} %", 100.0 * value),
    },
    Curve {
        name: "Learning rate",
        description: "Learning rate of the step",
        higher_is_better: true,
        train: |record| Some(record.lr),
        valid: NEVER,
        format: |value| format!("{value:.2e}"),
    },
    Curve {
        name: "Gradient norm",
        description: "Global norm before clipping",
        higher_is_better: false,
        train: |record| Some(record.grad_norm),
        valid: NEVER,
        format: |value| format!("{value:.3}"),
    },
    Curve {
        name: "Tokens/s",
        description: "Tokens per second of training time",
        higher_is_better: true,
        train: |record| Some(record.tokens_per_s),
        valid: NEVER,
        format: thousands,
    },
    Curve {
        name: "Load ratio",
        description: "Most loaded expert over the mean, highest of all MoE layers",
        higher_is_better: false,
        train: StepRecord::load_ratio,
        valid: NEVER,
        format: |value| format!("{value:.2}"),
    },
    Curve {
        name: "Dead experts",
        description: "Experts without a token, over all MoE layers",
        higher_is_better: false,
        train: |record| record.dead_experts().map(|dead| dead as f64),
        valid: NEVER,
        format: |value| format!("{value:.0}"),
    },
    Curve {
        name: "Router entropy",
        description: "Entropy of the router in nats, mean over the MoE layers",
        higher_is_better: true,
        train: StepRecord::router_entropy,
        valid: NEVER,
        format: |value| format!("{value:.3}"),
    },
];

impl Curve {
    fn id(&self) -> MetricId {
        MetricId::new(self.name.to_string().into())
    }

    fn definition(&self) -> MetricDefinition {
        let attributes = NumericAttributes { unit: None, higher_is_better: self.higher_is_better };
        MetricDefinition {
            metric_id: self.id(),
            name: self.name.into(),
            description: Some(self.description.into()),
            attributes: attributes.into(),
        }
    }

    fn state(&self, value: f64) -> MetricState {
        let entry = SerializedEntry::new((self.format)(value), value.to_string());
        let entry = MetricEntry::new(self.id(), entry);
        // A plot has no place for NaN and infinity.
        match value.is_finite() {
            true => MetricState::Numeric(entry, NumericEntry::Value(value)),
            false => MetricState::Generic(entry),
        }
    }
}

/// burn's dashboard: curves, progress and the key `q` to stop. It takes the terminal over from
/// [`start`](Progress::start) to [`finish`](Progress::finish) or until it is dropped.
pub struct Dashboard {
    subject: Subject,
    renderer: Option<TuiMetricsRendererWrapper>,
    interrupter: Interrupter,
    last: Option<String>,
}

impl Dashboard {
    /// A dashboard that does not show yet.
    pub fn new(subject: Subject) -> Self {
        Self { subject, renderer: None, interrupter: Interrupter::default(), last: None }
    }

    /// Whether a model of this kind has the curve.
    fn shows(&self, curve: &Curve) -> bool {
        match self.subject {
            Subject::Text => curve.name != "Accuracy",
            Subject::Images { .. } => curve.name != "Bits per byte",
        }
    }
}

impl Progress for Dashboard {
    fn start(&mut self, done: usize, total: usize) {
        let interrupter = self.interrupter.clone();
        let mut renderer = with_lowest_priority(move || TuiMetricsRendererWrapper::new(interrupter, Some(done)));
        for curve in CURVES.iter().filter(|curve| self.shows(curve)) {
            renderer.register_metric(curve.definition());
        }
        let (progress, indicators) = position(done, 0, total, self.subject);
        renderer.render_train(progress, indicators);
        self.renderer = Some(renderer);
    }

    fn step(&mut self, record: &StepRecord, total: usize) {
        self.last = Some(lines(record, total, self.subject));
        let Some(renderer) = &mut self.renderer else { return };
        for curve in &CURVES {
            if let Some(value) = (curve.train)(record) {
                renderer.update_train(curve.state(value));
            }
            if let Some(value) = (curve.valid)(record) {
                renderer.update_valid(curve.state(value));
            }
        }
        let (progress, indicators) = position(record.step, record.tokens, total, self.subject);
        renderer.render_train(progress, indicators);
    }

    fn finish(&mut self) {
        // Dropping it gives the terminal back without waiting for a key.
        self.renderer = None;
        // The curves went with the screen; these lines stay.
        if let Some(last) = &self.last {
            println!("{last}");
        }
    }

    fn interrupted(&self) -> bool {
        self.interrupter.should_stop()
    }
}

/// Gives the terminal back for a program that ends without dropping its dashboard.
pub(crate) fn leave_terminal() {
    if stdout().is_terminal() && disable_raw_mode().is_ok() {
        // What cannot be written there is seen by nobody.
        let _ = execute!(stdout(), LeaveAlternateScreen, Show);
    }
}

fn position(step: usize, tokens: u64, total: usize, subject: Subject) -> (TrainingProgress, Vec<ProgressType>) {
    let done = Done { items_processed: step, items_total: total };
    let indicators = vec![
        ProgressType::Detailed { tag: "Step".into(), progress: done.clone() },
        ProgressType::Value { tag: subject.unit().into(), value: subject.of_tokens(tokens as f64) as usize },
    ];
    let progress = TrainingProgress { progress: None, global_progress: done, iteration: Some(step) };
    (progress, indicators)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::test_record;

    #[test]
    fn every_curve_has_its_own_name_and_a_value_in_a_record_with_validation() {
        let mut record = test_record(3);
        (record.valid_loss, record.valid_bpb, record.valid_accuracy) = (Some(1.0), Some(1.5), Some(0.5));
        for (index, curve) in CURVES.iter().enumerate() {
            assert!(CURVES[..index].iter().all(|other| other.name != curve.name));
            let value = (curve.train)(&record).or((curve.valid)(&record)).unwrap();
            assert!(matches!(curve.state(value), MetricState::Numeric(..)), "{}", curve.name);
        }
    }

    #[test]
    fn numbers_without_a_place_in_a_plot_are_shown_as_text() {
        assert!(matches!(CURVES[0].state(f64::NAN), MetricState::Generic(_)));
    }

    #[test]
    fn a_dashboard_that_never_started_can_be_told_everything() {
        let mut dashboard = Dashboard::new(Subject::Text);
        dashboard.step(&test_record(1), 10);
        assert!(!dashboard.interrupted());
    }
}

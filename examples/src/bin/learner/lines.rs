//! The metrics without a terminal: one line for each pass over the validation points.

use std::collections::BTreeMap;

use burn::train::metric::{MetricDefinition, MetricId, NumericEntry};
use burn::train::renderer::{
    EvaluationName, EvaluationProgress, MetricState, MetricsRenderer, MetricsRendererEvaluation,
    MetricsRendererTraining, ProgressType, TrainingProgress,
};

/// Prints the means of an epoch's validation metrics at its end.
#[derive(Default)]
pub(crate) struct Lines {
    metrics: Vec<MetricDefinition>,
    epoch: BTreeMap<String, Mean>,
}

/// A weighted mean.
#[derive(Default)]
struct Mean {
    sum: f64,
    weight: f64,
}

impl Lines {
    fn name(&self, id: &MetricId) -> Option<String> {
        self.metrics.iter().find(|metric| metric.metric_id == *id).map(|metric| metric.name.clone())
    }

    fn line(&mut self) -> String {
        let means = std::mem::take(&mut self.epoch);
        let words: Vec<_> = means.iter().map(|(name, mean)| format!("{name} {:.3}", mean.sum / mean.weight)).collect();
        words.join(", ")
    }
}

impl MetricsRendererTraining for Lines {
    fn update_train(&mut self, _state: MetricState) {}

    fn update_valid(&mut self, state: MetricState) {
        let MetricState::Numeric(entry, number) = state else { return };
        let Some(name) = self.name(&entry.metric_id) else { return };
        let (value, weight) = match number {
            NumericEntry::Value(value) => (value, 1.0),
            NumericEntry::Aggregated { aggregated_value, count } => (aggregated_value, count as f64),
        };
        let mean = self.epoch.entry(name).or_default();
        mean.sum += value * weight;
        mean.weight += weight;
    }

    fn render_train(&mut self, _item: TrainingProgress, _indicators: Vec<ProgressType>) {}

    fn render_valid(&mut self, item: TrainingProgress, _indicators: Vec<ProgressType>) {
        if item.progress.is_some_and(|items| items.items_processed == items.items_total) {
            println!("epoch {}: {}", item.global_progress.items_processed, self.line());
        }
    }
}

impl MetricsRendererEvaluation for Lines {
    fn update_test(&mut self, _name: EvaluationName, _state: MetricState) {}

    fn render_test(&mut self, _item: EvaluationProgress, _indicators: Vec<ProgressType>) {}
}

impl MetricsRenderer for Lines {
    fn manual_close(&mut self) {}

    fn register_metric(&mut self, definition: MetricDefinition) {
        self.metrics.retain(|metric| metric.metric_id != definition.metric_id);
        self.metrics.push(definition);
    }
}

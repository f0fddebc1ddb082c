//! What routers do, as metrics of burn's `Learner` (feature `metrics`).
//!
//! A model hands the [`Routing`](crate::Routing)s of a step out with its output. The output's `sync`, which burn calls on the thread of the
//! metrics, reads them into [`RoutingStats`], and an [`Adaptor`](burn::train::metric::Adaptor) wraps those for every metric here:
//!
//! ```
//! use burn::train::ItemLazy;
//! use burn::train::metric::Adaptor;
//! use moe_layers::metrics::RoutingInput;
//! use moe_layers::{MoeBackend, Routing, RoutingStats};
//!
//! struct StepOutput<B: MoeBackend> {
//!     routings: Vec<Routing<B>>, // one for each layer with experts; beside it loss, logits, targets ..
//! }
//!
//! struct Synced {
//!     stats: Vec<RoutingStats>,
//! }
//!
//! impl<B: MoeBackend> ItemLazy for StepOutput<B> {
//!     type ItemSync = Synced;
//!
//!     fn sync(self) -> Synced {
//!         Synced { stats: self.routings.iter().map(RoutingStats::from_routing).collect() }
//!     }
//! }
//!
//! impl Adaptor<RoutingInput> for Synced {
//!     fn adapt(&self) -> RoutingInput {
//!         RoutingInput::new(self.stats.clone())
//!     }
//! }
//! ```
//!
//! Then `.metric_train_numeric(RoutingMetric::load_ratio())` and its like draw a curve each.

use burn::train::metric::state::{FormatOptions, NumericMetricState};
use burn::train::metric::{
    Metric, MetricAttributes, MetricMetadata, MetricName, Numeric, NumericAttributes, NumericEntry, SerializedEntry,
};

use crate::RoutingStats;

/// Decimals that a dashboard shows.
const DECIMALS: usize = 3;

/// The routing of one batch, in every layer with experts: the input of [`RoutingMetric`].
#[derive(Clone, Debug)]
pub struct RoutingInput {
    layers: Vec<RoutingStats>,
}

impl RoutingInput {
    /// # Panics
    ///
    /// Panics without a layer.
    pub fn new(layers: Vec<RoutingStats>) -> Self {
        assert!(!layers.is_empty(), "RoutingInput: a model without experts has no routing to measure");
        Self { layers }
    }

    /// Slots that the experts of a layer serve together: how much a batch weighs in the value of an epoch.
    fn slots(&self) -> usize {
        let slots: u64 = self.layers.iter().flat_map(|layer| &layer.expert_counts).sum();
        slots as usize / self.layers.len()
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quantity {
    LoadRatio,
    DeadExperts,
    RouterEntropy,
}

impl Quantity {
    fn name(self) -> &'static str {
        match self {
            Self::LoadRatio => "Expert load ratio",
            Self::DeadExperts => "Dead experts",
            Self::RouterEntropy => "Router entropy",
        }
    }

    fn description(self) -> &'static str {
        match self {
            Self::LoadRatio => {
                "tokens of the busiest expert over the mean of its layer, in the most uneven layer; 1 is even"
            }
            Self::DeadExperts => "experts without a token in the batch, of all layers together",
            Self::RouterEntropy => "how undecided a router is about a token, nats, mean over layers",
        }
    }

    fn of(self, layers: &[RoutingStats]) -> f64 {
        match self {
            Self::LoadRatio => layers.iter().map(|layer| layer.load_ratio).fold(0.0, f64::max),
            Self::DeadExperts => layers.iter().map(|layer| layer.dead_experts).sum::<usize>() as f64,
            Self::RouterEntropy => layers.iter().map(|layer| layer.router_entropy).sum::<f64>() / layers.len() as f64,
        }
    }
}

/// One number about the routing of a batch; that of an epoch is the mean over its batches, by their slots.
#[derive(Clone)]
pub struct RoutingMetric {
    quantity: Quantity,
    name: MetricName,
    state: NumericMetricState,
}

impl RoutingMetric {
    /// "Expert load ratio": [`RoutingStats::load_ratio`] of the layer where it is largest. 1 is even, `E` is one expert for all.
    pub fn load_ratio() -> Self {
        Self::new(Quantity::LoadRatio)
    }

    /// "Dead experts": [`RoutingStats::dead_experts`], summed over the layers. A small batch leaves experts idle that are not dead.
    pub fn dead_experts() -> Self {
        Self::new(Quantity::DeadExperts)
    }

    /// "Router entropy": [`RoutingStats::router_entropy`], nats, mean over the layers. It falls from `ln E` as routers make up their minds.
    pub fn router_entropy() -> Self {
        Self::new(Quantity::RouterEntropy)
    }

    fn new(quantity: Quantity) -> Self {
        Self { quantity, name: MetricName::new(quantity.name().into()), state: NumericMetricState::new() }
    }
}

impl Metric for RoutingMetric {
    type Input = RoutingInput;

    fn name(&self) -> MetricName {
        self.name.clone()
    }

    fn description(&self) -> Option<String> {
        Some(self.quantity.description().into())
    }

    fn attributes(&self) -> MetricAttributes {
        let unit = (self.quantity == Quantity::RouterEntropy).then(|| "nats".into());
        NumericAttributes { unit, higher_is_better: false }.into()
    }

    fn update(&mut self, input: &RoutingInput, _metadata: &MetricMetadata) -> SerializedEntry {
        let format = FormatOptions::new(self.name()).precision(DECIMALS);
        self.state.update(self.quantity.of(&input.layers), input.slots(), format)
    }

    fn clear(&mut self) {
        self.state.reset();
    }
}

impl Numeric for RoutingMetric {
    fn value(&self) -> NumericEntry {
        self.state.current_value()
    }

    fn running_value(&self) -> NumericEntry {
        self.state.running_value()
    }
}

#[cfg(test)]
mod tests {
    use burn::data::dataloader::Progress;

    use super::*;

    fn layer(counts: [u64; 4], router_entropy: f64) -> RoutingStats {
        RoutingStats { router_entropy, ..RoutingStats::from_counts(counts.to_vec()) }
    }

    fn updated(mut metric: RoutingMetric, batches: Vec<Vec<RoutingStats>>) -> RoutingMetric {
        let progress = || Progress::new(0, 1);
        let metadata = MetricMetadata { progress: progress(), global_progress: progress(), iteration: None, lr: None };
        for layers in batches {
            metric.update(&RoutingInput::new(layers), &metadata);
        }
        metric
    }

    fn value(metric: RoutingMetric, layers: Vec<RoutingStats>) -> f64 {
        updated(metric, vec![layers]).value().current()
    }

    #[test]
    fn the_most_uneven_layer_gives_the_load_ratio() {
        let layers = vec![layer([2, 2, 2, 2], 1.0), layer([5, 1, 1, 1], 1.0), layer([3, 2, 2, 1], 1.0)];
        assert_eq!(value(RoutingMetric::load_ratio(), layers), 2.5);
    }

    #[test]
    fn dead_experts_of_all_layers_are_counted() {
        let layers = vec![layer([8, 0, 0, 0], 1.0), layer([2, 2, 2, 2], 1.0), layer([4, 0, 2, 2], 1.0)];
        assert_eq!(value(RoutingMetric::dead_experts(), layers), 4.0);
    }

    #[test]
    fn the_entropy_is_the_mean_over_the_layers() {
        let layers = vec![layer([2; 4], 0.25), layer([2; 4], 0.75)];
        assert_eq!(value(RoutingMetric::router_entropy(), layers), 0.5);
    }

    #[test]
    fn a_batch_weighs_by_its_slots_and_an_epoch_begins_at_nothing() {
        let batches = || vec![vec![layer([2; 4], 1.0)], vec![layer([6; 4], 0.0)]];
        let mut metric = updated(RoutingMetric::router_entropy(), batches());
        assert_eq!((metric.value().current(), metric.running_value().current()), (0.0, 0.25));
        metric.clear();
        let metric = updated(metric, vec![vec![layer([2; 4], 1.0)]]);
        assert_eq!(metric.running_value().current(), 1.0);
    }

    #[test]
    fn names_differ_and_lower_is_better() {
        let metrics = [RoutingMetric::load_ratio(), RoutingMetric::dead_experts(), RoutingMetric::router_entropy()];
        let names = metrics.each_ref().map(|metric| metric.name().to_string());
        assert_eq!(names, ["Expert load ratio", "Dead experts", "Router entropy"]);
        for metric in metrics {
            assert!(matches!(metric.attributes(), MetricAttributes::Numeric(numeric) if !numeric.higher_is_better));
        }
    }

    #[test]
    #[should_panic(expected = "a model without experts")]
    fn no_layer_panics() {
        RoutingInput::new(vec![]);
    }
}

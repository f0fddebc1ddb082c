//! Loss of a model on a text, and how its routers spread that text over the experts.

use std::f64::consts::LN_2;

use burn::tensor::backend::Backend;
use burn::tensor::{ElementConversion, Tensor};
use moe_kernels::MoeBackend;
use moe_layers::RoutingStats;
use moe_models::lm::{Lm, MoeLayerOutput};

use crate::config::LoopConfig;
use crate::data::{Tokens, valid_batches};
use crate::run::LayerRecord;

/// What [`evaluate`] measured.
#[derive(Clone, Debug, PartialEq)]
pub struct EvalResult {
    /// Mean cross-entropy over all targets, nats per token; NaN without any.
    pub loss: f64,
    /// The same in bits per byte of text: comparable between tokenizers.
    pub bpb: f64,
    /// Targets predicted.
    pub tokens: u64,
    /// Statistics of every MoE layer over all tokens, in the order of the layers.
    pub layers: Vec<LayerRecord>,
}

/// Runs `model` over evenly spaced windows of `tokens`, `batches` of them (`None`: all).
///
/// Windows have the length and batch size of `config`. Batches are weighted by their number of targets, so the last,
/// smaller one counts for what it is.
pub fn evaluate<B: MoeBackend>(
    model: &Lm<B>,
    tokens: &Tokens,
    config: &LoopConfig,
    batches: Option<usize>,
    device: &B::Device,
) -> EvalResult {
    let mut nats = 0.0;
    let mut count = 0;
    let mut totals = RoutingTotals::default();
    for batch in valid_batches(tokens, config, batches) {
        let (inputs, targets) = batch.to_tensors::<B>(device);
        let loss = model.loss(inputs, targets);
        nats += loss.cross_entropy.into_scalar().elem::<f64>() * batch.num_tokens() as f64;
        count += batch.num_tokens() as u64;
        totals.add(&loss.layers);
    }
    let loss = nats / count as f64;
    EvalResult { loss, bpb: bits_per_byte(loss, tokens), tokens: count, layers: totals.into_records() }
}

/// A loss in nats per token as bits per byte of the text that the tokens came from.
fn bits_per_byte(loss: f64, tokens: &Tokens) -> f64 {
    loss / LN_2 / tokens.bytes_per_token()
}

/// Statistics of the MoE layers, gathered over batches: counts are summed, and every ratio is worked out from the sums.
#[derive(Default)]
pub(crate) struct RoutingTotals {
    layers: Vec<LayerTotals>,
}

impl RoutingTotals {
    /// Takes the routing of one batch; reads the device.
    pub(crate) fn add<B: MoeBackend>(&mut self, layers: &[MoeLayerOutput<B>]) {
        if self.layers.is_empty() {
            self.layers = layers.iter().map(|output| LayerTotals::new(output.layer)).collect();
        }
        for (totals, output) in self.layers.iter_mut().zip(layers) {
            let stats = RoutingStats::from_routing(&output.routing);
            totals.add(&stats, output.routing.num_tokens());
        }
    }

    /// The sums of each layer as a vector, f32.
    pub(crate) fn vectors<B: Backend>(&self, device: &B::Device) -> Vec<Tensor<B, 1>> {
        let vector = |layer: &LayerTotals| {
            let sums = [layer.router_entropy, layer.gate_mass, layer.drop_rate].map(|sum| sum as f32);
            let numbers: Vec<f32> = layer.counts.iter().map(|&count| count as f32).chain(sums).collect();
            Tensor::from_floats(numbers.as_slice(), device)
        };
        self.layers.iter().map(vector).collect()
    }

    /// Takes the means of [`vectors`](Self::vectors) over ranks that have seen as many tokens each.
    pub(crate) fn set_vectors<B: Backend>(&mut self, mut next: impl FnMut() -> Tensor<B, 1>, num_ranks: usize) {
        for layer in &mut self.layers {
            let sums: Vec<f64> = next().into_data().iter::<f64>().map(|mean| mean * num_ranks as f64).collect();
            let (counts, sums) = sums.split_at(layer.counts.len());
            layer.counts = counts.iter().map(|count| count.round() as u64).collect();
            [layer.router_entropy, layer.gate_mass, layer.drop_rate] =
                sums.try_into().expect("three follow the counts");
            layer.tokens *= num_ranks;
        }
    }

    /// One record per layer over all batches.
    pub(crate) fn into_records(self) -> Vec<LayerRecord> {
        self.layers.into_iter().map(LayerTotals::into_record).collect()
    }
}

/// Sums over the tokens that one layer has seen.
struct LayerTotals {
    layer: usize,
    tokens: usize,
    counts: Vec<u64>,
    router_entropy: f64,
    gate_mass: f64,
    drop_rate: f64,
}

impl LayerTotals {
    fn new(layer: usize) -> Self {
        Self { layer, tokens: 0, counts: Vec::new(), router_entropy: 0.0, gate_mass: 0.0, drop_rate: 0.0 }
    }

    fn add(&mut self, stats: &RoutingStats, tokens: usize) {
        self.counts.resize(stats.expert_counts.len(), 0);
        for (sum, count) in self.counts.iter_mut().zip(&stats.expert_counts) {
            *sum += count;
        }
        self.tokens += tokens;
        self.router_entropy += stats.router_entropy * tokens as f64;
        self.gate_mass += stats.gate_mass * tokens as f64;
        self.drop_rate += stats.drop_rate * tokens as f64;
    }

    fn into_record(self) -> LayerRecord {
        let tokens = self.tokens.max(1) as f64;
        LayerRecord {
            layer: self.layer,
            stats: RoutingStats {
                router_entropy: self.router_entropy / tokens,
                gate_mass: self.gate_mass / tokens,
                drop_rate: self.drop_rate / tokens,
                ..RoutingStats::from_counts(self.counts)
            },
            default: None,
            factors: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;

    use super::*;
    use crate::trainer::testing::{config, model, text};

    /// Relative, f32.
    const TOLERANCE: f64 = 1e-5;

    #[test]
    fn the_loss_is_the_mean_over_targets_however_they_are_batched() {
        let (model, tokens, config) = (model::<Flex>(), text(100), config().train);
        let device = Default::default();
        let evaluate_in = |batch_size| {
            let config = LoopConfig { batch_size, ..config.clone() };
            evaluate(&model, &tokens, &config, None, &device)
        };
        // 12 windows of 8: batches of 5, 5 and 2 against twelve of one.
        let (ragged, single) = (evaluate_in(5), evaluate_in(1));
        assert_eq!((ragged.tokens, single.tokens), (96, 96));
        assert!((ragged.loss - single.loss).abs() <= TOLERANCE * single.loss);
        let counts = |result: &EvalResult| result.layers[0].stats.expert_counts.clone();
        assert_eq!(counts(&ragged), counts(&single));
    }

    #[test]
    fn counts_over_all_batches_sum_to_tokens_times_k() {
        let config = config();
        let result = evaluate(&model::<Flex>(), &text(100), &config.train, Some(3), &Default::default());
        let slots = result.tokens * config.model.moe.top_k as u64;
        assert!(!result.layers.is_empty());
        for record in result.layers {
            assert_eq!(record.stats.expert_counts.iter().sum::<u64>(), slots);
            assert_eq!(RoutingStats::from_counts(record.stats.expert_counts).load_ratio, record.stats.load_ratio);
        }
    }

    #[test]
    fn bits_per_byte_divide_by_the_bytes_of_a_token() {
        let bytes = Tokens::Bytes(vec![0; 8]);
        let words = Tokens::Ids { ids: vec![0; 8], bytes: 32 };
        assert_eq!(bits_per_byte(LN_2, &bytes), 1.0);
        assert_eq!(bits_per_byte(LN_2, &words), 0.25);
    }

    #[test]
    fn ratios_come_from_summed_counts_and_means_are_weighted_by_tokens() {
        let stats = |counts: Vec<u64>, router_entropy, gate_mass| RoutingStats {
            router_entropy,
            gate_mass,
            drop_rate: 0.5 * router_entropy,
            ..RoutingStats::from_counts(counts)
        };
        let mut totals = LayerTotals::new(3);
        totals.add(&stats(vec![3, 0], 0.5, 1.0), 3);
        totals.add(&stats(vec![0, 1], 0.1, 0.6), 1);
        let record = totals.into_record();
        assert_eq!((record.layer, &record.stats.expert_counts), (3, &vec![3, 1]));
        assert_eq!((record.stats.load_ratio, record.stats.dead_experts), (1.5, 0));
        assert!((record.stats.router_entropy - 0.4).abs() < 1e-12);
        assert!((record.stats.gate_mass - 0.9).abs() < 1e-12);
        assert!((record.stats.drop_rate - 0.2).abs() < 1e-12);
    }

    #[test]
    fn nothing_to_evaluate_is_not_a_number_and_no_tokens() {
        let config = config();
        let result = evaluate(&model::<Flex>(), &text(3), &config.train, None, &Default::default());
        assert_eq!(result.tokens, 0);
        assert!(result.loss.is_nan() && result.bpb.is_nan());
    }
}

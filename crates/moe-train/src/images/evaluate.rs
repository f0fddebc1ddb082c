//! How a vision model does on images, and which classes its experts serve.

use burn::tensor::ElementConversion;
use moe_kernels::MoeBackend;
use moe_layers::Routing;
use moe_models::lm::cross_entropy;
use moe_models::vit::Vit;
use serde::{Deserialize, Serialize};

use super::batch::spread;
use super::linear::number_right;
use super::{ImageBatch, ImageSet, Standard};
use crate::evaluate::RoutingTotals;
use crate::run::LayerRecord;

/// What [`evaluate_images`] measured.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageEval {
    /// Mean cross-entropy, nats per image; NaN without any.
    pub loss: f64,
    /// Part of the images whose class was found, in `[0, 1]`; NaN without any.
    pub accuracy: f64,
    /// Images looked at.
    pub images: u64,
    /// Statistics of every layer with routed experts over all tokens.
    pub layers: Vec<LayerRecord>,
    /// Which classes' tokens the experts of those layers served.
    pub class_loads: Vec<ClassLoad>,
}

/// Tokens of every class that every expert of one layer served.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct ClassLoad {
    /// Index of the layer in the model.
    pub layer: usize,
    /// `[classes][experts]`.
    pub counts: Vec<Vec<u64>>,
}

impl ClassLoad {
    /// Whether there is a count for every class and expert.
    pub(crate) fn is_table(&self) -> bool {
        self.counts.windows(2).all(|rows| rows[0].len() == rows[1].len())
    }
}

/// Runs `model` over images spread evenly over `set`, `batches` batches of `batch_size` (`None`: all).
pub fn evaluate_images<B: MoeBackend>(
    model: &Vit<B>,
    set: &ImageSet,
    standard: &Standard,
    batch_size: usize,
    batches: Option<usize>,
    device: &B::Device,
) -> ImageEval {
    let (mut nats, mut right, mut images) = (0.0, 0, 0);
    let mut totals = RoutingTotals::default();
    let mut class_loads: Vec<ClassLoad> = Vec::new();
    for indices in spread(set.len(), batch_size, batches) {
        let batch = ImageBatch::plain(set, standard, &indices);
        let (pixels, labels) = batch.to_tensors::<B>(device);
        let output = model.forward(pixels);
        let loss = cross_entropy(output.logits.clone(), labels.clone());
        nats += loss.into_scalar().elem::<f64>() * batch.len() as f64;
        right += number_right(output.logits, labels);
        images += batch.len() as u64;
        totals.add(&output.layers);
        for (index, layer) in output.layers.iter().enumerate() {
            if class_loads.len() == index {
                class_loads.push(ClassLoad::new(layer.layer, model.config().num_classes, layer.routing.num_experts()));
            }
            class_loads[index].add(&layer.routing, &batch.labels);
        }
    }
    let count = images as f64;
    let layers = totals.into_records();
    ImageEval { loss: nats / count, accuracy: right as f64 / count, images, layers, class_loads }
}

impl ClassLoad {
    fn new(layer: usize, classes: usize, experts: usize) -> Self {
        Self { layer, counts: vec![vec![0; experts]; classes] }
    }

    /// Adds a batch of images with these labels, whose tokens are in a row.
    fn add<B: MoeBackend>(&mut self, routing: &Routing<B>, labels: &[u32]) {
        let slots = routing.experts.to_data();
        let per_image = routing.num_tokens() * routing.top_k() / labels.len().max(1);
        for (slot, expert) in slots.iter::<i64>().enumerate() {
            // The expert beyond the last one is nobody.
            if let Some(count) = self.counts[labels[slot / per_image] as usize].get_mut(expert as usize) {
                *count += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use moe_models::lm::{LmMoeConfig, MoeLayers, RouterKind};
    use moe_models::vit::VitConfig;

    use super::*;

    fn set() -> ImageSet {
        let mut set = ImageSet::new(1, 4);
        (0..7).for_each(|index| set.push((0..16).map(|at| (index * 16 + at) as u8), index as u32 % 3));
        set
    }

    fn model(router: RouterKind) -> Vit<Flex> {
        let moe = LmMoeConfig::new(4, 2, 8).with_router(router);
        let config =
            VitConfig::new(4, 2, 3, 12, 2, 3, 20).with_channels(1).with_moe(moe).with_moe_layers(MoeLayers::All);
        config.init(&Default::default())
    }

    #[test]
    fn measurements_do_not_depend_on_the_batches() {
        let (set, model) = (set(), model(RouterKind::TopK));
        let of = |size| evaluate_images(&model, &set, &set.standard(), size, None, &Default::default());
        let (ragged, single) = (of(3), of(1));
        assert_eq!((ragged.images, ragged.accuracy), (7, single.accuracy));
        assert!((ragged.loss - single.loss).abs() < 1e-5 && (ragged.loss - 3f64.ln()).abs() < 1e-5);
        assert_eq!(ragged.class_loads, single.class_loads);
        assert_eq!(evaluate_images(&model, &set, &set.standard(), 2, Some(1), &Default::default()).images, 2);
    }

    #[test]
    fn class_loads_sum_to_the_slots_of_the_class_and_to_the_counts_of_the_experts() {
        // Seven images of four tokens: 3, 2 and 2 of the classes.
        for router in [RouterKind::TopK, RouterKind::ExpertChoice, RouterKind::Relu] {
            let (set, model) = (set(), model(router));
            let result = evaluate_images(&model, &set, &set.standard(), 3, None, &Default::default());
            assert_eq!(result.class_loads.len(), 2, "{router:?}");
            for (loads, record) in result.class_loads.iter().zip(&result.layers) {
                let over_classes = |expert: usize| loads.counts.iter().map(|class| class[expert]).sum::<u64>();
                assert_eq!((0..4).map(over_classes).collect::<Vec<_>>(), record.stats.expert_counts, "{router:?}");
                if router == RouterKind::TopK {
                    let slots: Vec<u64> = loads.counts.iter().map(|class| class.iter().sum()).collect();
                    assert_eq!(slots, [3 * 4 * 2, 2 * 4 * 2, 2 * 4 * 2]);
                }
            }
        }
    }
}

//! What the micro-batches of a step found out about default vectors.

use burn::tensor::Tensor;
use default_moe::optimizer::HasDefaultVectors;
use default_moe::{DefaultUpdate, DefaultVectorStats};
use moe_kernels::AutodiffMoeBackend;
use moe_models::lm::MoeLayerOutput;

use crate::run::LayerRecord;

/// Merged over the micro-batches, one for each layer with default vectors.
pub(super) struct DefaultUpdates<B: AutodiffMoeBackend>(Vec<OfLayer<B>>);

struct OfLayer<B: AutodiffMoeBackend> {
    layer: usize,
    update: DefaultUpdate<B>,
    /// [`MoeLayerOutput::default_energy`], summed.
    energy: Option<Tensor<B, 1>>,
}

impl<B: AutodiffMoeBackend> OfLayer<B> {
    fn new(output: MoeLayerOutput<B>) -> Option<Self> {
        let MoeLayerOutput { layer, default_update, default_energy, .. } = output;
        default_update.map(|update| Self { layer, update, energy: default_energy })
    }

    fn merge(self, other: Self) -> Self {
        let energy = self.energy.zip(other.energy).map(|(a, b)| a + b);
        Self { layer: self.layer, update: self.update.merge(other.update), energy }
    }
}

impl<B: AutodiffMoeBackend> Default for DefaultUpdates<B> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<B: AutodiffMoeBackend> DefaultUpdates<B> {
    /// Takes those of one micro-batch.
    pub(super) fn add(&mut self, layers: Vec<MoeLayerOutput<B>>) {
        let mut merged = std::mem::take(&mut self.0).into_iter();
        let merge = |new: OfLayer<B>| match merged.next() {
            Some(old) => old.merge(new),
            None => new,
        };
        self.0 = layers.into_iter().filter_map(OfLayer::new).map(merge).collect();
    }

    /// Writes what they do to the vectors of `model` into the records of their layers.
    pub(super) fn write_stats(&self, model: &impl HasDefaultVectors<B>, records: &mut [LayerRecord]) {
        for (found, vectors) in self.0.iter().zip(model.default_vectors()) {
            if let Some(record) = records.iter_mut().find(|record| record.layer == found.layer) {
                let stats = DefaultVectorStats::of_step(vectors, &found.update, found.energy.clone());
                record.default = Some(stats);
            }
        }
    }

    /// Puts what `exchange` returns in the place of the energies. The updates themselves are those of all ranks from the pass on.
    pub(super) fn exchange_energy(
        &mut self,
        exchange: &mut dyn FnMut(Tensor<B::InnerBackend, 1>) -> Tensor<B::InnerBackend, 1>,
    ) {
        for energy in self.0.iter_mut().filter_map(|found| found.energy.as_mut()) {
            *energy = Tensor::from_inner(exchange(energy.clone().inner()));
        }
    }

    /// Moves the vectors of `model`.
    pub(super) fn absorb_into(self, model: &mut impl HasDefaultVectors<B>) {
        let updates: Vec<_> = self.0.into_iter().map(|found| found.update).collect();
        model.absorb_updates(&updates);
    }
}

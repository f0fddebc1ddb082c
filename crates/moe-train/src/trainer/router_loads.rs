//! Loads of the experts of every MoE layer over the micro-batches of a step, for routers that balance themselves.

use burn::tensor::Tensor;
use moe_kernels::AutodiffMoeBackend;
use moe_layers::ExpertLoad;
use moe_layers::router::optimizer::HasRouters;
use moe_models::lm::MoeLayerOutput;

/// Merged over the micro-batches, one for each MoE layer.
pub(super) struct RouterLoads<B: AutodiffMoeBackend>(Vec<ExpertLoad<B>>);

impl<B: AutodiffMoeBackend> Default for RouterLoads<B> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<B: AutodiffMoeBackend> RouterLoads<B> {
    /// Takes those of one micro-batch.
    pub(super) fn add(&mut self, layers: &[MoeLayerOutput<B>]) {
        let mut merged = std::mem::take(&mut self.0).into_iter();
        let merge = |new: ExpertLoad<B>| match merged.next() {
            Some(old) => old.merge(new),
            None => new,
        };
        self.0 = layers.iter().map(|layer| ExpertLoad::of(&layer.routing)).map(merge).collect();
    }

    /// Puts the sum over all ranks in the place of every load; `exchange` returns the mean over `num_ranks`. Loads are counts, and a router looks
    /// at the sign of their differences: they must be whole again.
    pub(super) fn exchange(
        &mut self,
        num_ranks: usize,
        exchange: &mut dyn FnMut(Tensor<B::InnerBackend, 1>) -> Tensor<B::InnerBackend, 1>,
    ) {
        for load in &mut self.0 {
            let means = exchange(load.clone().into_vector().inner());
            *load = ExpertLoad::from_vector(Tensor::from_inner((means * num_ranks as f64).round()));
        }
    }

    #[cfg(test)]
    pub(super) fn of(loads: Vec<ExpertLoad<B>>) -> Self {
        Self(loads)
    }

    #[cfg(test)]
    pub(super) fn into_inner(self) -> Vec<ExpertLoad<B>> {
        self.0
    }

    /// Tells the routers of `model`.
    pub(super) fn absorb_into(self, model: &mut impl HasRouters<B>) {
        model.absorb_loads(&self.0);
    }
}

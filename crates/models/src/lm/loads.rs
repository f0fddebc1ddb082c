//! What a training step tells routers about the load of their experts.

use burn::tensor::backend::Backend;
use moe_layers::{ExpertLoad, Moe};

use super::Lm;

impl<B: Backend> Lm<B> {
    /// Whether routers must be told the loads of a training step: [`absorb_loads`](Self::absorb_loads) then does something.
    pub fn absorbs_loads(&self) -> bool {
        self.blocks.iter().any(|block| block.feed_forward.moe.as_ref().is_some_and(|moe| moe.router.absorbs_load()))
    }

    /// Moves what routers move once per training step: selection biases, weights of L1 losses. `loads` are those of the layers with
    /// experts, in order, merged over micro-batches.
    ///
    /// # Panics
    ///
    /// Panics unless there is one load for each layer with experts.
    pub fn absorb_loads(&mut self, loads: &[ExpertLoad<B>]) {
        let layers: Vec<&mut Moe<B>> =
            self.blocks.iter_mut().filter_map(|block| block.feed_forward.moe.as_mut()).collect();
        assert_eq!(layers.len(), loads.len(), "Lm: there must be one load for each layer with experts");
        for (moe, load) in layers.into_iter().zip(loads) {
            moe.router.absorb(load);
        }
    }
}

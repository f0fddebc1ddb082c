//! What a training step tells routers about the load of their experts.

use burn::tensor::backend::Backend;
use moe_layers::router::optimizer::HasRouters;
use moe_layers::{ExpertLoad, Router};

use super::Lm;

impl<B: Backend> HasRouters<B> for Lm<B> {
    fn routers(&self) -> Vec<&Router<B>> {
        self.blocks.iter().filter_map(|block| Some(&block.feed_forward.moe.as_ref()?.router)).collect()
    }

    fn routers_mut(&mut self) -> Vec<&mut Router<B>> {
        self.blocks.iter_mut().filter_map(|block| Some(&mut block.feed_forward.moe.as_mut()?.router)).collect()
    }
}

impl<B: Backend> Lm<B> {
    /// Whether routers must be told the loads of a training step: [`absorb_loads`](Self::absorb_loads) then does something.
    pub fn absorbs_loads(&self) -> bool {
        self.routers().into_iter().any(Router::absorbs_load)
    }

    /// Moves what routers move once per training step: selection biases, weights of L1 losses. `loads` are those of the layers with
    /// experts, in order, merged over micro-batches.
    ///
    /// # Panics
    ///
    /// Panics unless there is one load for each layer with experts.
    pub fn absorb_loads(&mut self, loads: &[ExpertLoad<B>]) {
        let routers = self.routers_mut();
        assert_eq!(routers.len(), loads.len(), "Lm: there must be one load for each layer with experts");
        routers.into_iter().zip(loads).for_each(|(router, load)| router.absorb(load));
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;

    use crate::lm::LmConfig;

    #[test]
    #[should_panic(expected = "one load for each layer with experts")]
    fn loads_of_other_layers_panic() {
        LmConfig::new(8, 8, 2, 2, 8, 8).init::<Flex>(&Default::default()).absorb_loads(&[]);
    }
}

//! The routers of a model.

use burn::tensor::backend::Backend;
use moe_layers::Router;
use moe_layers::router::optimizer::HasRouters;

use super::Lm;

impl<B: Backend> HasRouters<B> for Lm<B> {
    fn routers(&self) -> Vec<&Router<B>> {
        self.blocks.iter().filter_map(|block| Some(&block.feed_forward.moe.as_ref()?.router)).collect()
    }

    fn routers_mut(&mut self) -> Vec<&mut Router<B>> {
        self.blocks.iter_mut().filter_map(|block| Some(&mut block.feed_forward.moe.as_mut()?.router)).collect()
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;

    use super::*;
    use crate::lm::LmConfig;

    #[test]
    #[should_panic(expected = "one load for each layer with routed experts")]
    fn loads_of_other_layers_panic() {
        LmConfig::new(8, 8, 2, 2, 8, 8).init::<Flex>(&Default::default()).absorb_loads(&[]);
    }
}

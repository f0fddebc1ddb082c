//! A program of its own: the random generator of a device is that of the whole process.

use burn::backend::Flex;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use moe_models::lm::{LmConfig, RouterKind};

/// Both arms of a comparison start from the same weights.
#[test]
fn a_seed_gives_a_model_the_same_weights_with_default_vectors_and_without() {
    let device = Default::default();
    let logits = |router| {
        let mut config = LmConfig::tiny();
        config.moe.router = router;
        Flex::seed(&device, 5);
        let tokens = Tensor::<Flex, 2, Int>::from_ints([[1, 200, 3]], &device);
        config.init::<Flex>(&device).forward(tokens).logits.into_data()
    };
    logits(RouterKind::Default).assert_eq(&logits(RouterKind::TopK), true);
}

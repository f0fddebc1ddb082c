//! No op of a layer reads routing on the host where a GPU computes it: a program of its own, as the reads are counted over the process.

use std::sync::Mutex;

use burn::tensor::{Distribution, Tensor};
use default_moe::DefaultMoeConfig;
use moe_kernels::{Activation, AutodiffMoeBackend, host_reads};
use moe_layers::MoeConfig;

/// One test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Reads during passes, forward and backward, of layers with and without default vectors.
fn reads<B: AutodiffMoeBackend>(device: &B::Device) -> usize {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let before = host_reads();
    for activation in [Activation::SwiGlu, Activation::Gelu] {
        let config = MoeConfig::new(8, 12, 5, 2).with_activation(activation).with_bias(true);
        let tokens = Tensor::<B, 2>::random([9, 8], Distribution::Default, device).require_grad();
        let default = DefaultMoeConfig::new(config.clone()).init::<B>(device).forward(tokens.clone());
        let plain = config.init::<B>(device).forward(tokens.clone());
        let losses = plain.losses.weighted().sum() + default.losses.weighted().sum();
        let grads = (plain.output.sum() + default.output.sum() + losses).backward();
        // Until now a device may have done nothing.
        assert!(tokens.grad(&grads).expect("tracked").into_data().iter::<f64>().all(f64::is_finite));
    }
    host_reads() - before
}

#[cfg(feature = "cube")]
mod on_a_gpu {
    use super::*;

    fn nothing_is_read<B: AutodiffMoeBackend>(device: &B::Device) {
        assert_eq!(reads::<B>(device), 0);
    }

    moe_tests::on_every_gpu!(nothing_is_read);
    moe_tests::unfused!(nothing_is_read);
}

#[cfg(feature = "flex")]
#[test]
fn what_is_read_by_portable_bodies_is_counted() {
    moe_tests::in_f64(|| {
        let found = reads::<moe_tests::Flex>(&Default::default());
        assert!(found >= 4, "one of each of four layers: {found}");
    });
}

//! The whole layer against PyTorch in f64: the output and the gradient of every parameter and of the tokens.

use moe_layers::AutodiffMoeBackend;
use moe_tests::{assert_close, layer_beside_torch, on_every_backend};

on_every_backend!(every_gradient_is_pytorchs);

fn every_gradient_is_pytorchs<B: AutodiffMoeBackend>(device: &B::Device) {
    for (what, found, expected) in layer_beside_torch::<B>(device) {
        assert_close(&what, &found, &expected);
    }
}

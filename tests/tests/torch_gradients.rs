//! The whole layer against PyTorch in f64: the output and the gradient of every parameter and of the tokens. The suite does the
//! same in f32.
//!
//! A program of its own: burn 0.21 keeps the default float type of a device for the whole process.

#![cfg(any(feature = "flex", feature = "ndarray"))]

use moe_layers::AutodiffMoeBackend;
use moe_tests::{in_f64, layer_beside_torch, relative_error};

/// Relative to the largest number of a tensor: both sides round to 1e-16, a few hundred times.
const TOLERANCE: f64 = 1e-10;

fn every_gradient_is_pytorchs<B: AutodiffMoeBackend>(device: &B::Device) {
    for (what, found, expected) in layer_beside_torch::<B>(device) {
        assert_eq!(found.len(), expected.len(), "{what}: lengths differ");
        let error = relative_error(&found, &expected);
        assert!(error <= TOLERANCE, "{what}: relative error {error:e}");
    }
}

#[cfg(feature = "flex")]
#[test]
fn every_gradient_on_flex_is_pytorchs() {
    in_f64(|| every_gradient_is_pytorchs::<moe_tests::Flex>(&Default::default()));
}

#[cfg(feature = "ndarray")]
#[test]
fn every_gradient_on_ndarray_is_pytorchs() {
    in_f64(|| {
        every_gradient_is_pytorchs::<burn::backend::Autodiff<burn::backend::NdArray<f64>>>(&Default::default());
    });
}

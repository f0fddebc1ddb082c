//! The whole layer against PyTorch in f64: the output and the gradient of every parameter and of the tokens.
//!
//! `golden/torch_gradients.json` comes from `torch/gradients.py`, an implementation of its own, which says how to remake
//! it. A program of its own: burn 0.21 keeps the default float type of a device for the whole process.

#![cfg(any(feature = "flex", feature = "ndarray"))]

use burn::module::Param;
use burn::tensor::Tensor;
use moe_layers::{Activation, AutodiffMoeBackend, Moe, MoeConfig};
use moe_tests::{host, in_f64, tensor};
use serde_json::Value;

/// Relative to the largest number of a tensor: both sides round to 1e-16, a few hundred times.
const TOLERANCE: f64 = 1e-10;

/// `numbers` of the script: exact in f64, and another number for every seed and place.
fn numbers(seed: u64, count: usize) -> Vec<f64> {
    let hashed = |i: u64| ((i + 1) * 2_654_435_761 + seed * 40_503 * 65_537) % (1 << 32);
    (0..count as u64).map(|i| (hashed(i) >> 11) as f64 / (1u64 << 20) as f64 - 1.0).collect()
}

fn param<B: AutodiffMoeBackend, const D: usize>(
    seed: u64,
    shape: [usize; D],
    device: &B::Device,
) -> Param<Tensor<B, D>> {
    Param::from_tensor(tensor(&numbers(seed, shape.iter().product()), shape, device))
}

fn activation(case: &Value) -> Activation {
    serde_json::from_value(case["activation"].clone()).expect("an activation of the layer")
}

/// Sizes in the order T, D, F, E, K.
fn layer<B: AutodiffMoeBackend>(case: &Value, [_, d, f, e, k]: [usize; 5], device: &B::Device) -> Moe<B> {
    let (activation, bias) = (activation(case), case["bias"] == true);
    let config = MoeConfig::new(d, f, e, k).with_normalize_gates(case["normalize"] == true);
    let mut moe = config.with_activation(activation).with_bias(bias).init(device);
    *moe.router.weight_mut().expect("a learned router") = param(2, [d, e], device);
    moe.experts.w_in = param(3, [e, d, activation.columns(f)], device);
    moe.experts.w_out = param(4, [e, f, d], device);
    moe.experts.b_in = bias.then(|| param(5, [e, activation.columns(f)], device));
    moe.experts.b_out = bias.then(|| param(6, [e, d], device));
    moe
}

fn assert_equal(what: &str, found: &[f64], golden: &Value) {
    let expected: Vec<f64> = serde_json::from_value(golden.clone()).expect("a list of numbers");
    assert_eq!(found.len(), expected.len(), "{what}: lengths differ");
    let largest = expected.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let error = (found - expected).abs() / largest;
        assert!(error <= TOLERANCE, "{what}[{i}]: {found}, PyTorch has {expected}, relative error {error:e}");
    }
}

fn every_gradient_is_pytorchs<B: AutodiffMoeBackend>(device: &B::Device) {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/torch_gradients.json");
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(golden).expect("it is committed")).expect("JSON");
    let size = |name: &str| golden["sizes"][name].as_u64().expect("a size") as usize;
    let sizes @ [t, d, ..] = ["tokens", "d_model", "d_hidden", "experts", "top_k"].map(size);
    let cases = golden["cases"].as_array().expect("a list");
    assert_eq!(cases.len(), 5);
    for case in cases {
        let moe = layer::<B>(case, sizes, device);
        let tokens = tensor::<B, 2>(&numbers(1, t * d), [t, d], device).require_grad();
        let output = moe.forward(tokens.clone()).output;
        let grads = (output.clone() * tensor(&numbers(7, t * d), [t, d], device)).sum().backward();

        let grad = |param: &Param<Tensor<B, 3>>| host(param.grad(&grads).expect("tracked"));
        let mut found = vec![
            ("output", host(output)),
            ("tokens", host(tokens.grad(&grads).expect("tracked"))),
            ("router", host(moe.router.weight().expect("a learned router").grad(&grads).expect("tracked"))),
            ("w_in", grad(&moe.experts.w_in)),
            ("w_out", grad(&moe.experts.w_out)),
        ];
        for (name, bias) in [("b_in", &moe.experts.b_in), ("b_out", &moe.experts.b_out)] {
            found.extend(bias.iter().map(|bias| (name, host(bias.grad(&grads).expect("tracked")))));
        }
        let found_names: Vec<_> = found.iter().map(|(name, _)| *name).collect();
        assert!(found_names.iter().all(|name| case[*name].is_array()), "{found_names:?}");
        for (name, found) in &found {
            let what =
                format!("{}, normalize {}, bias {}, {name}", case["activation"], case["normalize"], case["bias"]);
            assert_equal(&what, found, &case[*name]);
        }
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

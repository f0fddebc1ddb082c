//! The whole layer beside PyTorch in f64: the output and the gradient of every parameter and of the tokens.
//!
//! `golden/torch_gradients.json` comes from `torch/gradients.py`, an implementation of its own, which says how to remake it.

use burn::module::Param;
use burn::tensor::Tensor;
use moe_layers::{Activation, AutodiffMoeBackend, Moe, MoeConfig};
use serde_json::Value;

use crate::{host, tensor};

/// A tensor by the name of its case and its own, behind a comma: ours and PyTorch's.
pub type Compared = (String, Vec<f64>, Vec<f64>);

/// Every tensor of every case: five of them.
///
/// # Panics
///
/// Panics when the file is not what the script writes.
pub fn layer_beside_torch<B: AutodiffMoeBackend>(device: &B::Device) -> Vec<Compared> {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/torch_gradients.json");
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(golden).expect("it is committed")).expect("JSON");
    let size = |name: &str| golden["sizes"][name].as_u64().expect("a size") as usize;
    let sizes = ["tokens", "d_model", "d_hidden", "experts", "top_k"].map(size);
    let cases = golden["cases"].as_array().expect("a list");
    assert_eq!(cases.len(), 5);
    cases.iter().flat_map(|case| compared::<B>(case, sizes, device)).collect()
}

fn compared<B: AutodiffMoeBackend>(case: &Value, sizes: [usize; 5], device: &B::Device) -> Vec<Compared> {
    let name = format!("{}, normalize {}, bias {}", case["activation"], case["normalize"], case["bias"]);
    let golden = |tensor: &str| serde_json::from_value(case[tensor].clone()).expect("a list of numbers");
    let compare = |(tensor, found): (&str, Vec<f64>)| (format!("{name}, {tensor}"), found, golden(tensor));
    values_and_gradients::<B>(case, sizes, device).into_iter().map(compare).collect()
}

fn values_and_gradients<B: AutodiffMoeBackend>(
    case: &Value,
    sizes: [usize; 5],
    device: &B::Device,
) -> Vec<(&'static str, Vec<f64>)> {
    let [t, d, ..] = sizes;
    let moe = layer::<B>(case, sizes, device);
    let tokens = tensor::<B, 2>(&numbers(1, t * d), [t, d], device).require_grad();
    let output = moe.forward(tokens.clone()).output;
    let grads = (output.clone() * tensor(&numbers(7, t * d), [t, d], device)).sum().backward();

    let grad = |param: &Param<Tensor<B, 3>>| host(param.grad(&grads).expect("tracked"));
    let mut all = vec![
        ("output", host(output)),
        ("tokens", host(tokens.grad(&grads).expect("tracked"))),
        ("router", host(moe.router.weight().expect("a learned router").grad(&grads).expect("tracked"))),
        ("w_in", grad(&moe.experts.w_in)),
        ("w_out", grad(&moe.experts.w_out)),
    ];
    for (name, bias) in [("b_in", &moe.experts.b_in), ("b_out", &moe.experts.b_out)] {
        all.extend(bias.iter().map(|bias| (name, host(bias.grad(&grads).expect("tracked")))));
    }
    all
}

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

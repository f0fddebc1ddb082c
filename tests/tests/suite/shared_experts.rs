//! Shared experts against loops in f64: one expert that every token chose, its gate a sigmoid.

use burn::module::Param;
use burn::tensor::Tensor;
use moe_kernels::Activation;
use moe_kernels::reference::{self, ExpertFfn};
use moe_layers::{AutodiffMoeBackend, Moe, MoeConfig};
use moe_tests::{assert_close, host, no_rows, on_every_backend_and_portable, random, takes_empty_tensors, tensor};

on_every_backend_and_portable!(
    values_and_gradients_match_the_loops,
    a_layer_adds_them_to_its_routed_experts,
    no_tokens_are_no_output,
);

/// Tokens, width, and width of all shared experts together.
const SIZES: [usize; 3] = [33, 17, 24];

fn values_and_gradients_match_the_loops<B: AutodiffMoeBackend>(device: &B::Device) {
    for activation in [Activation::SwiGlu, Activation::Gelu, Activation::Relu] {
        for gate in [false, true] {
            let expected = by_loops(activation, gate);
            for ((name, found), expected) in run::<B>(activation, gate, device).iter().zip(&expected) {
                assert_close(&format!("{activation:?}, gate {gate}, {name}"), found, expected);
            }
        }
    }
}

struct Numbers {
    tokens: Vec<f64>,
    w_in: Vec<f64>,
    w_out: Vec<f64>,
    gate: Vec<f64>,
    grad: Vec<f64>,
}

fn numbers(activation: Activation) -> Numbers {
    let [t, d, f] = SIZES;
    Numbers {
        tokens: random(t * d, 1),
        w_in: random(d * activation.columns(f), 2),
        w_out: random(f * d, 3),
        gate: random(d, 4),
        grad: random(t * d, 5),
    }
}

/// A layer whose routed experts say nothing.
fn layer<B: AutodiffMoeBackend>(activation: Activation, gate: bool, device: &B::Device) -> Moe<B> {
    let ([_, d, f], numbers) = (SIZES, numbers(activation));
    let config = MoeConfig::new(d, 4, 3, 2).with_activation(activation).with_shared_d_hidden(f).with_shared_gate(gate);
    let mut moe = config.init::<B>(device);
    moe.experts.w_out = moe.experts.w_out.map(|w| w.zeros_like());
    let shared = moe.shared.as_mut().expect("it was configured");
    let param = |values: &[f64], shape| Param::from_tensor(tensor(values, shape, device));
    shared.w_in = param(&numbers.w_in, shared.w_in.dims());
    shared.w_out = param(&numbers.w_out, shared.w_out.dims());
    moe.shared_gate = gate.then(|| param(&numbers.gate, [d, 1]));
    moe
}

/// Output, and the gradients of `sum(output * grad)`.
fn run<B: AutodiffMoeBackend>(activation: Activation, gate: bool, device: &B::Device) -> Vec<(&'static str, Vec<f64>)> {
    let forward = |moe: &Moe<B>, tokens: &Tensor<B, 2>| moe.forward(tokens.clone()).output;
    run_as(&numbers(activation), activation, gate, forward, device)
}

/// [`run`] where the layer's output comes from `forward`.
fn run_as<B: AutodiffMoeBackend>(
    numbers: &Numbers,
    activation: Activation,
    gate: bool,
    forward: impl Fn(&Moe<B>, &Tensor<B, 2>) -> Tensor<B, 2>,
    device: &B::Device,
) -> Vec<(&'static str, Vec<f64>)> {
    let [t, d, _] = SIZES;
    let moe = layer::<B>(activation, gate, device);
    let tokens = tensor::<B, 2>(&numbers.tokens, [t, d], device).require_grad();
    let output = forward(&moe, &tokens);
    let grads = (output.clone() * tensor(&numbers.grad, [t, d], device)).sum().backward();
    let shared = moe.shared.expect("it was configured");
    let mut all = vec![
        ("output", host(output)),
        ("tokens", host(tokens.grad(&grads).expect("tracked"))),
        ("w_in", host(shared.w_in.grad(&grads).expect("tracked"))),
        ("w_out", host(shared.w_out.grad(&grads).expect("tracked"))),
    ];
    all.extend(moe.shared_gate.map(|gate| ("gate", host(gate.grad(&grads).expect("tracked")))));
    all
}

/// The same, in the same order.
fn by_loops(activation: Activation, gate: bool) -> Vec<Vec<f64>> {
    loops_over(numbers(activation), activation, gate)
}

fn loops_over(numbers: Numbers, activation: Activation, gate: bool) -> Vec<Vec<f64>> {
    let [t, d, f] = SIZES;
    let logit = |token: &[f64]| token.iter().zip(&numbers.gate).map(|(x, g)| x * g).sum::<f64>();
    let sigmoid = |token: &[f64]| 1.0 / (1.0 + (-logit(token)).exp());
    let gates: Vec<f64> = numbers.tokens.chunks(d).map(|token| if gate { sigmoid(token) } else { 1.0 }).collect();
    let [b_in, b_out] = [activation.columns(f), d].map(|width| vec![0.0; width]);
    let inputs = [numbers.tokens.clone(), gates.clone(), numbers.w_in, numbers.w_out, b_in, b_out];
    let network = ExpertFfn { d_model: d, d_hidden: f, activation, experts: vec![0; t], top_k: 1, inputs };
    let (output, [mut tokens, of_gates, w_in, w_out, ..]) = reference::expert_ffn(&network, &numbers.grad);
    if !gate {
        return vec![output, tokens, w_in, w_out];
    }
    let mut of_gate_matrix = vec![0.0; d];
    for (token, (g, s)) in of_gates.iter().zip(&gates).enumerate() {
        let of_logit = g * s * (1.0 - s);
        for j in 0..d {
            of_gate_matrix[j] += of_logit * numbers.tokens[token * d + j];
            tokens[token * d + j] += of_logit * numbers.gate[j];
        }
    }
    vec![output, tokens, w_in, w_out, of_gate_matrix]
}

fn a_layer_adds_them_to_its_routed_experts<B: AutodiffMoeBackend>(device: &B::Device) {
    let [t, d, _] = SIZES;
    let tokens = tensor::<B, 2>(&random(t * d, 6), [t, d], device);
    let mut moe = layer::<B>(Activation::SwiGlu, true, device);
    let shared = host(moe.forward(tokens.clone()).output);
    moe.experts.w_out = moe.experts.w_out.map(|w| w.ones_like());
    let both = host(moe.forward(tokens.clone()).output);
    (moe.shared, moe.shared_gate) = (None, None);
    let routed = host(moe.forward(tokens).output);
    let sum: Vec<f64> = routed.iter().zip(&shared).map(|(routed, shared)| routed + shared).collect();
    assert_close("output", &both, &sum);
}

fn no_tokens_are_no_output<B: AutodiffMoeBackend>(device: &B::Device) {
    if !takes_empty_tensors() {
        return;
    }
    let moe = layer::<B>(Activation::SwiGlu, true, device);
    assert_eq!(moe.forward(no_rows::<B>(SIZES[1], device)).output.dims(), [0, SIZES[1]]);
}

#[cfg(feature = "flex")]
mod low_precision {
    use burn::tensor::DType;
    use burn::tensor::activation::{gelu, relu, sigmoid, silu};
    use moe_tests::{Flex, HALF, assert_like_plain_ops, rounded};

    use super::*;

    /// The shared experts in burn's own ops in the dtype of the tokens.
    fn plain(moe: &Moe<Flex>, tokens: &Tensor<Flex, 2>) -> Tensor<Flex, 2> {
        let (dtype, shared) = (tokens.dtype(), moe.shared.as_ref().expect("it was configured"));
        let hidden = tokens.clone().matmul(shared.w_in.val().cast(dtype));
        let hidden = match shared.activation() {
            Activation::SwiGlu => {
                let halves = hidden.chunk(2, 1);
                silu(halves[0].clone()) * halves[1].clone()
            }
            Activation::Gelu => gelu(hidden),
            Activation::Relu => relu(hidden),
        };
        let output = hidden.matmul(shared.w_out.val().cast(dtype));
        match &moe.shared_gate {
            Some(gate) => output * sigmoid(tokens.clone().matmul(gate.val().cast(dtype))),
            None => output,
        }
    }

    /// Twice the mean-square error of plain ops at most.
    #[test]
    fn low_precision_loses_no_more_than_twice_what_plain_ops_lose() {
        let device = Default::default();
        for activation in [Activation::SwiGlu, Activation::Gelu, Activation::Relu] {
            let kind = if activation == Activation::Relu { " with ReLU" } else { "" };
            for (gate, (dtype, called)) in [false, true].into_iter().flat_map(|gate| HALF.map(|half| (gate, half))) {
                let tokens = rounded::<Flex>(SIZES[0] * SIZES[1], 1, dtype, &device);
                let numbers = || Numbers { tokens: tokens.clone(), ..numbers(activation) };
                let run = |path: fn(&Moe<Flex>, &Tensor<Flex, 2>) -> Tensor<Flex, 2>| {
                    let forward = |moe: &Moe<Flex>, tokens: &Tensor<Flex, 2>| {
                        let output = path(moe, &tokens.clone().cast(dtype));
                        assert_eq!(output.dtype(), dtype);
                        output.cast(DType::F32)
                    };
                    run_as::<Flex>(&numbers(), activation, gate, forward, &device)
                };
                let (found, plain) = (run(|moe, tokens| moe.forward(tokens.clone()).output), run(plain));
                for (((name, found), (_, plain)), exact) in
                    found.iter().zip(&plain).zip(&loops_over(numbers(), activation, gate))
                {
                    let what = format!("{activation:?}, gate {gate}, {name}{kind}");
                    assert_like_plain_ops(&what, called, [found, plain], exact);
                }
            }
        }
    }
}

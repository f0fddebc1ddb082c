//! Three steps of two tokens, worked out by hand for each update rule.
//!
//! Two experts of one hidden unit pair, `E_0(x) = relu(x)` and `E_1(x) = 2 relu(x)`, and a router whose logits are the token
//! itself. With `L = ln 3` the token `(L, 0)` has probabilities `(3/4, 1/4)`, `(2L, 0)` has `(9/10, 1/10)`; mirrored tokens
//! have mirrored ones. `K = 1`, `beta = 1/2`, vectors from zero.
//!
//! | step | tokens | expert | plain mean | weighted | weighted by count |
//! |---|---|---|---|---|---|
//! | 1 | `(L, 0)` | 0 | `L` | `L` | `3/4 L` |
//! | | `(0, L)` | 1 | `2L` | `2L` | `3/2 L` |
//! | 2 | `(L, 0)`, `(2L, 0)` | 0 | `3/2 L` | `(3/4 + 18/10) / (33/20) L = 17/11 L` | `51/40 L` |
//! | 3 | `(0, L)`, `(0, 2L)` | 1 | `3 L` | `34/11 L` | `51/20 L` |

use burn::module::Param;
use burn::tensor::Tensor;
use default_moe::{DefaultMoe, DefaultMoeConfig, DefaultOptions, UpdateRule};
use moe_layers::{Activation, AutodiffMoeBackend, MoeConfig};
use moe_tests::{assert_close, host, on_every_backend};

on_every_backend!(three_steps_of_two_tokens_match_the_table);

const L: f64 = 1.098_612_288_668_109_8;

const STEPS: [[[f64; 2]; 2]; 3] = [[[L, 0.0], [0.0, L]], [[L, 0.0], [2.0 * L, 0.0]], [[0.0, L], [0.0, 2.0 * L]]];

/// After each step, in units of `L`: the first channel of vector 0 and the second of vector 1. Their others stay 0.
const VECTORS: [(UpdateRule, [[f64; 2]; 3]); 3] = [
    (UpdateRule::Mean, [[0.5, 1.0], [1.0, 1.0], [1.0, 2.0]]),
    (UpdateRule::Weighted, [[0.5, 1.0], [0.25 + 17.0 / 22.0, 1.0], [0.25 + 17.0 / 22.0, 0.5 + 17.0 / 11.0]]),
    (UpdateRule::WeightedByCount, [[0.375, 0.75], [0.825, 0.75], [0.825, 1.65]]),
];

fn layer<B: AutodiffMoeBackend>(rule: UpdateRule, device: &B::Device) -> DefaultMoe<B> {
    let moe = MoeConfig::new(2, 2, 2, 1).with_activation(Activation::Relu);
    let options = DefaultOptions::new().with_beta(0.5).with_rule(rule);
    let mut layer = DefaultMoeConfig::new(moe).with_options(options).init::<B>(device);
    let unit: Tensor<B, 2> = Tensor::eye(2, device);
    *layer.moe.router.weight_mut().expect("a learned router") = Param::from_tensor(unit.clone());
    layer.moe.experts.w_in = Param::from_tensor(Tensor::stack(vec![unit.clone(), unit.clone()], 0));
    layer.moe.experts.w_out = Param::from_tensor(Tensor::stack(vec![unit.clone(), unit * 2.0], 0));
    layer
}

/// The chosen expert at its probability, and the other's vector, as the step updates it, at the rest.
fn output([x0, x1]: [f64; 2], [v0, v1]: [f64; 2]) -> [f64; 2] {
    let p = 1.0 / (1.0 + (-(x0 - x1).abs()).exp());
    if x0 > x1 { [p * x0, (1.0 - p) * v1] } else { [(1.0 - p) * v0, p * 2.0 * x1] }
}

fn three_steps_of_two_tokens_match_the_table<B: AutodiffMoeBackend>(device: &B::Device) {
    for (rule, table) in VECTORS {
        let mut layer = layer::<B>(rule, device);
        for (step, (tokens, row)) in STEPS.into_iter().zip(table).enumerate() {
            let vectors = row.map(|v| v * L);
            let out = layer.forward(Tensor::<B, 2>::from_data(tokens, device));
            let what = format!("{rule:?}, step {}", step + 1);
            assert_close(&what, &host(out.output), &tokens.map(|token| output(token, vectors)).concat());
            layer.absorb(&out.update.expect("training"));
            assert_close(&what, &host(layer.vectors.values.val()), &[vectors[0], 0.0, 0.0, vectors[1]]);
        }
    }
}

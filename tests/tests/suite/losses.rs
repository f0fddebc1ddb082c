//! Importance, load and L1 loss against formulas in f64; their gradients against central differences of these.

use burn::module::Param;
use burn::tensor::activation::softmax;
use burn::tensor::{Int, Tensor, TensorData};
use moe_kernels::reference;
use moe_layers::router::{ReluOptions, Router, RouterConfig};
use moe_layers::{
    AutodiffMoeBackend, ImportanceConvention, RouterNoise, RouterRule, Routing, importance_loss, load_loss,
};
use moe_tests::{assert_close, host, numeric_gradient, on_every_backend, random, tensor};

use ImportanceConvention::{Shazeer, VMoe};

on_every_backend!(
    importance_losses_match_the_formula,
    load_losses_match_the_formula,
    the_l1_loss_of_a_relu_router_matches_the_formula,
);

/// Tokens, experts, experts per token.
const SIZES: [usize; 3] = [9, 5, 2];

/// The loss is one number, so a gradient is that of the loss itself.
const ONE: [f64; 1] = [1.0];

/// `(std / mean)^2`.
fn variation(x: &[f64]) -> f64 {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    x.iter().map(|x| (x / mean - 1.0).powi(2)).sum::<f64>() / x.len() as f64
}

/// Sums over the rows of `[T, width]`.
fn column_sums(x: &[f64], width: usize) -> Vec<f64> {
    (0..width).map(|column| x.chunks(width).map(|row| row[column]).sum()).collect()
}

/// The experts of a row, best first.
fn order(row: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
    order
}

/// The `K` best experts of each token.
fn best(logits: &[f64]) -> Vec<usize> {
    let [_, e, k] = SIZES;
    logits.chunks(e).flat_map(|row| order(row)[..k].to_vec()).collect()
}

fn numbers<B: AutodiffMoeBackend>(experts: &[usize], device: &B::Device) -> Tensor<B, 2, Int> {
    let [t, _, k] = SIZES;
    let experts: Vec<i64> = experts.iter().map(|&expert| expert as i64).collect();
    Tensor::from_data(TensorData::new(experts, [t, k]), device)
}

fn importance_losses_match_the_formula<B: AutodiffMoeBackend>(device: &B::Device) {
    let [t, e, k] = SIZES;
    let logits = random(t * e, 1);
    let (probs, chosen) = (reference::softmax(&logits, e), best(&logits));
    let gates: Vec<f64> = random(t * k, 2).iter().map(|gate| gate + 1.5).collect();

    let by_probs = |probs: &[f64]| vec![variation(&column_sums(probs, e))];
    let by_gates = |gates: &[f64]| {
        let mut sums = vec![0.0; e];
        chosen.iter().zip(gates).for_each(|(&expert, gate)| sums[expert] += gate);
        vec![variation(&sums)]
    };
    for convention in [VMoe, Shazeer] {
        let leaf = |values: &[f64], width| tensor::<B, 2>(values, [t, width], device).require_grad();
        let (p, g) = (leaf(&probs, e), leaf(&gates, k));
        let loss =
            importance_loss(&Routing::new(p.clone().log(), p.clone(), g.clone(), numbers(&chosen, device)), convention);
        let grads = loss.clone().backward();
        let (name, values, gradient, expected) = match convention {
            VMoe => ("probs", by_probs(&probs), p.grad(&grads), numeric_gradient(&probs, &ONE, by_probs)),
            Shazeer => ("gates", by_gates(&gates), g.grad(&grads), numeric_gradient(&gates, &ONE, by_gates)),
        };
        assert_close(&format!("{convention:?}, output"), &host(loss), &values);
        let what = format!("{convention:?}, gradient of {name}");
        assert_close(&what, &host(gradient.expect("tracked")), &expected);
    }
}

/// The load loss of `logits + std * epsilon`; all `[T, E]`.
fn load_by_formula(logits: &[f64], std: &[f64], epsilon: &[f64], convention: ImportanceConvention) -> f64 {
    let [_, e, k] = SIZES;
    let noisy: Vec<f64> = logits.iter().zip(std).zip(epsilon).map(|((x, s), n)| x + s * n).collect();
    let probability = |at: usize| {
        let row = &noisy[at / e * e..][..e];
        let order = order(row);
        let among_best = order[..k].contains(&(at % e));
        let threshold = row[order[if convention == Shazeer && among_best { k } else { k - 1 }]];
        reference::normal_cdf((logits[at] - threshold) / std[at])
    };
    variation(&column_sums(&(0..logits.len()).map(probability).collect::<Vec<_>>(), e))
}

fn load_losses_match_the_formula<B: AutodiffMoeBackend>(device: &B::Device) {
    let [t, e, _] = SIZES;
    let (logits, epsilon) = (random(t * e, 3), random(t * e, 4));
    let std: Vec<f64> = random(t * e, 5).iter().map(|x| 0.75 + 0.25 * x).collect();
    for convention in [VMoe, Shazeer] {
        let leaf = |values: &[f64]| tensor::<B, 2>(values, [t, e], device).require_grad();
        let (x, s) = (leaf(&logits), leaf(&std));
        let noisy = x.clone() + s.clone() * tensor(&epsilon, [t, e], device);
        let chosen = numbers(&best(&host(noisy.clone())), device);
        let routing = Routing::new(x.clone(), softmax(x.clone(), 1), noisy.clone().gather(1, chosen.clone()), chosen);
        let noise = Some(RouterNoise { logits: noisy, std: s.clone() });
        let loss = load_loss(&Routing { noise, ..routing }, convention);
        let grads = loss.clone().backward();

        let at = |x: &[f64], s: &[f64]| vec![load_by_formula(x, s, &epsilon, convention)];
        let expected = [
            ("output", host(loss), at(&logits, &std)),
            (
                "gradient of logits",
                host(x.grad(&grads).expect("tracked")),
                numeric_gradient(&logits, &ONE, |x| at(x, &std)),
            ),
            (
                "gradient of std",
                host(s.grad(&grads).expect("tracked")),
                numeric_gradient(&std, &ONE, |s| at(&logits, s)),
            ),
        ];
        for (name, found, expected) in &expected {
            // A tenth of each: on ndarray the slopes of the normal distribution are less exact (`docs/numerics.md`), by how much
            // depends on the processor.
            let tenth = |values: &[f64]| values.iter().map(|value| value / 10.0).collect::<Vec<_>>();
            assert_close(&format!("{convention:?}, a tenth, {name}"), &tenth(found), &tenth(expected));
        }
    }
}

fn the_l1_loss_of_a_relu_router_matches_the_formula<B: AutodiffMoeBackend>(device: &B::Device) {
    const COEF: f64 = 0.5;
    const WIDTH: usize = 6;
    let [t, e, k] = SIZES;
    let (x, weight) = (random(t * WIDTH, 6), random(WIDTH * e, 7));
    let rule = RouterRule::Relu(ReluOptions::new().with_l1_coef(COEF));
    let Router::Relu(mut router) = RouterConfig::new(WIDTH, e, k).with_rule(rule).init::<B>(device) else {
        panic!("not the router that was asked for")
    };
    router.weight = Param::from_tensor(tensor(&weight, [WIDTH, e], device));
    let tokens = tensor::<B, 2>(&x, [t, WIDTH], device).require_grad();
    let loss = router.l1_loss(&router.forward(tokens.clone()));
    let grads = loss.clone().backward();

    let formula = |x: &[f64], weight: &[f64]| {
        let logit = |token: &[f64], i: usize| (0..WIDTH).map(|d| token[d] * weight[d * e + i]).sum::<f64>();
        let gates: Vec<f64> =
            x.chunks(WIDTH).flat_map(|token| (0..e).map(|i| logit(token, i).max(0.0)).collect::<Vec<_>>()).collect();
        let load = column_sums(&gates.iter().map(|gate| f64::from(u8::from(*gate > 0.0))).collect::<Vec<_>>(), e);
        let even = (k * t) as f64 / e as f64;
        let sum: f64 = load.iter().zip(column_sums(&gates, e)).map(|(load, gates)| load / even * gates).sum();
        vec![COEF * sum / t as f64]
    };
    assert_close("output", &host(loss), &formula(&x, &weight));
    let by_tokens = numeric_gradient(&x, &ONE, |x| formula(x, &weight));
    assert_close("gradient of tokens", &host(tokens.grad(&grads).expect("tracked")), &by_tokens);
    let by_weight = numeric_gradient(&weight, &ONE, |weight| formula(&x, weight));
    assert_close("gradient of router", &host(router.weight.grad(&grads).expect("tracked")), &by_weight);
}

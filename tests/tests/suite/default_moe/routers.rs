//! Default vectors under every router by which a token chooses, against loops in f64: every expert runs on every token, and the
//! router's gradient is a central difference.

use default_moe::{DefaultMoe, Form, UpdateRule};
use moe_kernels::reference;
use moe_layers::router::{NoisyTopKOptions, SigmoidOptions, SinkhornOptions};
use moe_layers::{AutodiffMoeBackend, RouterConfig, RouterRule};
use moe_tests::{Case, assert_close, host, numeric_gradient, on_every_backend_and_portable, tensor};

use super::oracle::Layer;
use super::{RULES, param};

on_every_backend_and_portable!(the_update_and_the_router_gradient_match_the_loops_under_every_router);

/// Two groups of three experts.
const CASE: Case = Case { name: "groups", tokens: 11, experts: 6, top_k: 2, d_model: 5, d_hidden: 3, busy: 6 };
const ONE_OF_SIX: Case = Case { top_k: 1, ..CASE };

/// What a router makes of the logits of a token.
#[derive(Clone, Copy, Debug)]
enum Scores {
    Softmax,
    Sigmoid,
}

/// A rule, its scores, and the factor of its gates.
fn routers() -> Vec<(RouterRule, Case, Scores, f64)> {
    use Scores::{Sigmoid, Softmax};
    let sigmoid = |options: SigmoidOptions| RouterRule::Sigmoid(options);
    let sinkhorn = || RouterRule::Sinkhorn(SinkhornOptions::new());
    vec![
        (RouterRule::TopK, CASE, Softmax, 1.0),
        // Without noise, which comes from a generator that all threads share.
        (RouterRule::NoisyTopK(NoisyTopKOptions::new().with_noise_std(Some(0.0))), CASE, Softmax, 1.0),
        (sigmoid(SigmoidOptions::new()), CASE, Sigmoid, 1.0),
        (sigmoid(SigmoidOptions::new().with_scale(2.5)), CASE, Sigmoid, 2.5),
        (sigmoid(SigmoidOptions::new().with_groups(2).with_scale(0.5)), ONE_OF_SIX, Sigmoid, 0.5),
        (sinkhorn(), CASE, Softmax, 1.0),
        (sinkhorn(), ONE_OF_SIX, Sigmoid, 1.0),
    ]
}

fn layer<B: AutodiffMoeBackend>(numbers: &Layer, rule: &RouterRule, device: &B::Device) -> DefaultMoe<B> {
    let (e, d, k) = (numbers.case.experts, numbers.case.d_model, numbers.case.top_k);
    let mut layer = super::layer::<B>(numbers, Form::Full, device);
    let config = RouterConfig::new(d, e, k).with_normalize_gates(numbers.renormalize).with_rule(rule.clone());
    layer.moe.router = config.init(device);
    *layer.moe.router.weight_mut().expect("a learned router") = param(&numbers.router, [d, e], device);
    layer
}

/// The layer in loops, for experts `[T, K]` that were chosen.
struct Loops<'a> {
    numbers: &'a Layer,
    scores: Scores,
    factor: f64,
    chosen: Vec<usize>,
    /// `E_i(x_t)`, `[T, E, D]`.
    outputs: Vec<f64>,
}

impl Loops<'_> {
    fn is_chosen(&self, token: usize, expert: usize) -> bool {
        let k = self.numbers.case.top_k;
        self.chosen[token * k..(token + 1) * k].contains(&expert)
    }

    fn output_of(&self, token: usize, expert: usize) -> &[f64] {
        let (e, d) = (self.numbers.case.experts, self.numbers.case.d_model);
        &self.outputs[(token * e + expert) * d..][..d]
    }

    /// `[T, E]`.
    fn scores(&self, router: &[f64]) -> Vec<f64> {
        let logits = self.numbers.logits(router);
        match self.scores {
            Scores::Softmax => reference::softmax(&logits, self.numbers.case.experts),
            Scores::Sigmoid => logits.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
        }
    }

    /// Sums `[E, D]` and divisors `[E]`.
    fn update(&self, rule: UpdateRule) -> [Vec<f64>; 2] {
        let (e, d) = (self.numbers.case.experts, self.numbers.case.d_model);
        let (scores, mut sums, mut divisors) = (self.scores(&self.numbers.router), vec![0.0; e * d], vec![0.0; e]);
        for (token, expert) in (0..self.numbers.case.tokens).flat_map(|t| (0..e).map(move |i| (t, i))) {
            if self.is_chosen(token, expert) {
                let score = scores[token * e + expert];
                let share = if rule == UpdateRule::Mean { 1.0 } else { score };
                divisors[expert] += if rule == UpdateRule::Weighted { score } else { 1.0 };
                let output = self.output_of(token, expert).iter();
                sums[expert * d..].iter_mut().zip(output).for_each(|(sum, x)| *sum += share * x);
            }
        }
        [sums, divisors]
    }

    /// The vectors after an update, `[E, D]`.
    fn vectors(&self, [sums, divisors]: &[Vec<f64>; 2]) -> Vec<f64> {
        let (d, beta) = (self.numbers.case.d_model, self.numbers.beta);
        let moved = |(i, old): (usize, &f64)| match divisors[i / d] {
            0.0 => *old,
            divisor => beta * old + (1.0 - beta) * sums[i] / divisor,
        };
        self.numbers.vectors.iter().enumerate().map(moved).collect()
    }

    /// The output under these weights of the router, `[T, D]`; choice and vectors stay.
    fn output(&self, router: &[f64], vectors: &[f64]) -> Vec<f64> {
        let (t, e, d) = (self.numbers.case.tokens, self.numbers.case.experts, self.numbers.case.d_model);
        let (scores, mut output) = (self.scores(router), vec![0.0; t * d]);
        for token in 0..t {
            let score = |expert: usize| scores[token * e + expert];
            let mass: f64 = (0..e).filter(|&i| self.is_chosen(token, i)).map(score).sum();
            let factor = if self.numbers.renormalize { self.factor / mass } else { self.factor };
            for expert in 0..e {
                let default = &vectors[expert * d..(expert + 1) * d];
                let slot = if self.is_chosen(token, expert) { self.output_of(token, expert) } else { default };
                let row = output[token * d..(token + 1) * d].iter_mut();
                row.zip(slot).for_each(|(y, v)| *y += factor * score(expert) * v);
            }
        }
        output
    }
}

fn check<B: AutodiffMoeBackend>(
    (rule, case, scores, factor): &(RouterRule, Case, Scores, f64),
    numbers: &Layer,
    device: &B::Device,
) {
    let layer = layer::<B>(numbers, rule, device);
    let shape = [case.tokens, case.d_model];
    let out = layer.forward(tensor::<B, 2>(&numbers.tokens, shape, device));
    let grads = (out.output.clone() * tensor(&numbers.grad, shape, device)).sum().backward();
    let router = host(layer.moe.router.weight().expect("a learned router").grad(&grads).expect("tracked"));

    let chosen = host(out.routing.experts.float()).into_iter().map(|expert| expert as usize).collect();
    let loops = Loops { numbers, scores: *scores, factor: *factor, chosen, outputs: numbers.outputs() };
    let update = loops.update(numbers.rule);
    let vectors = loops.vectors(&update);
    let slope = numeric_gradient(&numbers.router, &numbers.grad, |router| loops.output(router, &vectors));
    let [sums, divisors] = &update;
    let what = format!("{rule:?}, {:?}, normalised {}", numbers.rule, numbers.renormalize);
    let found = out.update.expect("a training pass");
    assert_close(&format!("{what}, sums"), &host(found.sums), sums);
    assert_close(&format!("{what}, divisors"), &host(found.weights), divisors);
    assert_close(&format!("{what}, output"), &host(out.output), &loops.output(&numbers.router, &vectors));
    assert_close(&format!("{what}, router"), &router, &slope);
}

fn the_update_and_the_router_gradient_match_the_loops_under_every_router<B: AutodiffMoeBackend>(device: &B::Device) {
    for router in routers() {
        for rule in RULES {
            for renormalize in [false, true] {
                check::<B>(&router, &Layer { renormalize, ..Layer::random(&router.1, rule) }, device);
            }
        }
    }
}

//! A layer with default vectors in loops over slices in f64: every expert runs on every token.

use default_moe::UpdateRule;
use moe_kernels::Activation;
use moe_kernels::reference::{self, ExpertFfn};
use moe_tests::{Case, random};

/// A layer, its state and a batch, as plain numbers.
#[derive(Clone)]
pub(super) struct Layer {
    pub(super) case: Case,
    pub(super) rule: UpdateRule,
    pub(super) beta: f64,
    pub(super) renormalize: bool,
    /// Whether passes measure the energy, which the loops know nothing of.
    pub(super) measuring: bool,
    /// `[T, D]`.
    pub(super) tokens: Vec<f64>,
    /// `[D, E]`.
    pub(super) router: Vec<f64>,
    /// `[E, D, 2F]`.
    pub(super) w_in: Vec<f64>,
    /// `[E, F, D]`.
    pub(super) w_out: Vec<f64>,
    /// `[E, D]`.
    pub(super) vectors: Vec<f64>,
    /// `[T, D]`: the gradient of the output.
    pub(super) grad: Vec<f64>,
}

/// What the layer computes, with the gradients of `sum(output * grad)`.
pub(super) struct Expected {
    pub(super) output: Vec<f64>,
    /// The output of plain top-K.
    pub(super) top_k: Vec<f64>,
    pub(super) vectors: Vec<f64>,
    pub(super) tokens: Vec<f64>,
    pub(super) router: Vec<f64>,
    pub(super) w_in: Vec<f64>,
    pub(super) w_out: Vec<f64>,
}

impl Layer {
    pub(super) fn random(case: &Case, rule: UpdateRule) -> Self {
        let (t, e, d, f) = (case.tokens, case.experts, case.d_model, case.d_hidden);
        Self {
            case: *case,
            rule,
            beta: 0.75,
            renormalize: false,
            measuring: false,
            tokens: random(t * d, 61),
            router: random(d * e, 62),
            w_in: random(e * d * 2 * f, 63),
            w_out: random(e * f * d, 64),
            vectors: random(e * d, 65),
            grad: random(t * d, 66),
        }
    }

    /// What a router with these weights says, `[T, E]`.
    pub(super) fn logits(&self, router: &[f64]) -> Vec<f64> {
        let (e, d) = (self.case.experts, self.case.d_model);
        let logit = |token: &[f64], i: usize| (0..d).map(|j| token[j] * router[j * e + i]).sum::<f64>();
        self.tokens.chunks(d).flat_map(|token| (0..e).map(move |i| logit(token, i))).collect()
    }

    /// Probabilities `[T, E]`.
    fn probs(&self) -> Vec<f64> {
        reference::softmax(&self.logits(&self.router), self.case.experts)
    }

    /// Experts as a problem of the fused network's oracle, one slot for each token and expert in `chosen`.
    fn network(&self, gates: Vec<f64>, chosen: Vec<usize>, per_token: usize) -> ExpertFfn {
        let (e, d, f) = (self.case.experts, self.case.d_model, self.case.d_hidden);
        let inputs =
            [self.tokens.clone(), gates, self.w_in.clone(), self.w_out.clone(), vec![0.0; e * 2 * f], vec![0.0; e * d]];
        ExpertFfn { d_model: d, d_hidden: f, activation: Activation::SwiGlu, experts: chosen, top_k: per_token, inputs }
    }

    /// `E_i(x_t)`, `[T, E, D]`.
    pub(super) fn outputs(&self) -> Vec<f64> {
        let (t, e, d) = (self.case.tokens, self.case.experts, self.case.d_model);
        let mut all = vec![0.0; t * e * d];
        for i in 0..e {
            let (output, _) = reference::expert_ffn(&self.network(vec![1.0; t], vec![i; t], 1), &vec![0.0; t * d]);
            for (token, row) in output.chunks(d).enumerate() {
                all[(token * e + i) * d..][..d].copy_from_slice(row);
            }
        }
        all
    }

    pub(super) fn expected(&self) -> Expected {
        let (t, e, d, k) = (self.case.tokens, self.case.experts, self.case.d_model, self.case.top_k);
        let (probs, outputs) = (self.probs(), self.outputs());
        let chosen = reference::top_k(&probs, e, k);
        let is_chosen = |token: usize, i: usize| chosen[token * k..(token + 1) * k].contains(&i);
        let of_expert = |token: usize, i: usize| &outputs[(token * e + i) * d..][..d];
        let vectors = self.updated(&probs, &chosen, &outputs);
        let mass = |token: usize| match self.renormalize {
            true => chosen[token * k..(token + 1) * k].iter().map(|&i| probs[token * e + i]).sum::<f64>(),
            false => 1.0,
        };

        let (mut output, mut top_k) = (vec![0.0; t * d], vec![0.0; t * d]);
        let (mut logits, mut gates) = (vec![0.0; t * e], Vec::new());
        for token in 0..t {
            let slot = |i: usize| if is_chosen(token, i) { of_expert(token, i) } else { &vectors[i * d..(i + 1) * d] };
            let weight = |i: usize| probs[token * e + i] / mass(token);
            for j in 0..d {
                output[token * d + j] = (0..e).map(|i| weight(i) * slot(i)[j]).sum();
                let kept = (0..e).filter(|&i| is_chosen(token, i));
                top_k[token * d + j] = kept.map(|i| weight(i) * of_expert(token, i)[j]).sum();
            }
            let g = &self.grad[token * d..(token + 1) * d];
            let total = dot(g, &output[token * d..(token + 1) * d]);
            for i in 0..e {
                let total = if self.renormalize && !is_chosen(token, i) { 0.0 } else { total };
                logits[token * e + i] = weight(i) * (dot(g, slot(i)) - total);
            }
            gates.extend(chosen[token * k..(token + 1) * k].iter().map(|&i| weight(i)));
        }
        let (_, [mut tokens, _, w_in, w_out, ..]) =
            reference::expert_ffn(&self.network(gates, chosen.clone(), k), &self.grad);
        let mut router = vec![0.0; d * e];
        for token in 0..t {
            for i in 0..e {
                for j in 0..d {
                    router[j * e + i] += self.tokens[token * d + j] * logits[token * e + i];
                    tokens[token * d + j] += self.router[j * e + i] * logits[token * e + i];
                }
            }
        }
        Expected { output, top_k, vectors, tokens, router, w_in, w_out }
    }

    /// The vectors after the batch, `[E, D]`.
    fn updated(&self, probs: &[f64], chosen: &[usize], outputs: &[f64]) -> Vec<f64> {
        let (e, d, k) = (self.case.experts, self.case.d_model, self.case.top_k);
        let mut vectors = self.vectors.clone();
        for i in 0..e {
            let tokens: Vec<usize> = (0..chosen.len()).filter(|&slot| chosen[slot] == i).map(|slot| slot / k).collect();
            if tokens.is_empty() {
                continue;
            }
            let share = |t: usize| if self.rule == UpdateRule::Mean { 1.0 } else { probs[t * e + i] };
            let divisor = match self.rule {
                UpdateRule::Weighted => tokens.iter().map(|&t| share(t)).sum(),
                UpdateRule::Mean | UpdateRule::WeightedByCount => tokens.len() as f64,
            };
            for j in 0..d {
                let mean = tokens.iter().map(|&t| share(t) * outputs[(t * e + i) * d + j]).sum::<f64>() / divisor;
                let vector = &mut vectors[i * d + j];
                *vector = self.beta * *vector + (1.0 - self.beta) * mean;
            }
        }
        vectors
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

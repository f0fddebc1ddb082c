//! Everything here that leaves memory unset at first, against the loops in f64, on small ragged cases and several threads: what Miri and the
//! sanitizers are run on (`docs/supply-chain.md`). A number that nobody wrote is one that no loop has, and under Miri an error.

use super::expert_ffn::{Needs, Problem, backward, forward, forward_summing};
use super::unset::Unset;
use super::{Mat, NormSpec, grouped_matmul, grouped_outer, norm, norm_backward, product};
use crate::Activation;
use crate::host_plan::HostPlan;
use crate::reference::{self, ExpertFfn};

const TOLERANCE: f64 = 1e-5;

/// Numbers in `-1..1` without a pattern, exact in f32.
fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 + seed * 104_729) as f32 * 0.618).sin()).collect()
}

fn exact(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

fn assert_close(what: &str, found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(1.0, |most: f64, value| most.max(value.abs()));
    for (found, expected) in found.iter().zip(expected) {
        assert!((f64::from(*found) - expected).abs() <= TOLERANCE * scale, "{what}: {found}, expected {expected}");
    }
}

/// Miri takes minutes for what is done on two threads.
const THREADS: &[usize] = if cfg!(miri) { &[2] } else { &[1, 3] };
const ACTIVATIONS: &[Activation] =
    if cfg!(miri) { &[Activation::SwiGlu] } else { &[Activation::SwiGlu, Activation::Gelu, Activation::Relu] };

fn on_threads(action: impl Fn() + Sync) {
    for &threads in THREADS {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads are to be had");
        pool.install(&action);
    }
}

/// Experts of the slots, experts there are, experts of a token: an idle one, one that owns all, nobody's slots at the end, one token, none.
const PLANS: [(&[usize], usize, usize); 5] =
    [(&[0, 2, 2, 3, 0, 3, 3, 2], 5, 2), (&[1; 7], 3, 1), (&[0, 3, 3, 1, 2, 3], 3, 2), (&[1, 0], 2, 2), (&[], 2, 2)];

/// The plan; slots of the expert after the last are served by nobody.
fn plan(&(experts, num_experts, top_k): &(&[usize], usize, usize)) -> HostPlan {
    match experts.contains(&num_experts) {
        true => HostPlan::new(experts, top_k, num_experts + 1).without_last_expert(),
        false => HostPlan::new(experts, top_k, num_experts),
    }
}

/// Experts by rows, with a matrix of zeros for the rows that nobody serves.
fn with_nobody(matrices: &[f32], size: usize) -> Vec<f64> {
    [exact(matrices), vec![0.0; size]].concat()
}

#[test]
fn grouped_products_write_every_number() {
    on_threads(|| PLANS.iter().for_each(check_products));
}

fn check_products(case: &(&[usize], usize, usize)) {
    let ((experts, num_experts, _), plan, [d, f]) = (*case, plan(case), [3, 2]);
    let (rows, grad) = (numbers(experts.len() * d, 1), numbers(experts.len() * f, 2));
    let matrices = numbers(num_experts * d * f, 3);
    let weight = with_nobody(&matrices, d * f);
    let expected = reference::grouped_matmul(&exact(&rows), &weight, d, f, experts);
    let (by_rows, by_weight) = reference::grouped_matmul_grad(&exact(&rows), &weight, &exact(&grad), d, f, experts);
    assert_close("product", &grouped_matmul(&plan, &rows, &matrices, [d, f], false), &expected);
    assert_close("transposed", &grouped_matmul(&plan, &grad, &matrices, [f, d], true), &by_rows);
    assert_close("outer", &grouped_outer(&plan, &rows, &grad, [d, f]), &by_weight[..num_experts * d * f]);
}

#[test]
fn products_and_norms_write_every_number() {
    on_threads(|| [[1, 1, 1], [5, 3, 2], [131, 2, 1], [0, 2, 2]].into_iter().for_each(check_rows));
}

fn check_rows([rows, width, columns]: [usize; 3]) {
    let (x, w, grad) = (numbers(rows * width, 4), numbers(width * columns, 5), numbers(rows * width, 6));
    let (gamma, beta) = (numbers(width, 7), numbers(width, 8));
    let expected = reference::grouped_matmul(&exact(&x), &exact(&w), width, columns, &vec![0; rows]);
    assert_close("product", &product(Mat::new(&x, rows, width), Mat::new(&w, width, columns)), &expected);
    for beta in [None, Some(&beta[..])] {
        let spec = NormSpec { gamma: &gamma, beta, epsilon: 1e-2 };
        let shift = beta.map(exact);
        let expected = reference::norm(&exact(&x), &exact(&gamma), shift.as_deref(), f64::from(spec.epsilon));
        assert_close("norm", &norm(&x, spec), &expected);
        let (dx, sums) = norm_backward(&x, spec, &grad);
        assert!(dx.iter().chain(&sums).all(|value| value.is_finite()) && dx.len() == x.len());
    }
}

/// Forward, with and without sums and what backward needs, and backward with all gradients and with none.
#[test]
fn the_network_of_experts_writes_every_number() {
    let networks: Vec<_> = ACTIVATIONS
        .iter()
        .flat_map(|&activation| PLANS.iter().map(move |case| Network::new(case, activation)))
        .collect();
    on_threads(|| networks.iter().for_each(Network::check));
}

struct Network {
    plan: HostPlan,
    activation: Activation,
    num_tokens: usize,
    /// Tokens, gates, `w_in`, `w_out`, `b_in`, `b_out`.
    inputs: [Vec<f32>; 6],
    grad: Vec<f32>,
    output: Vec<f64>,
    grads: [Vec<f64>; 6],
}

const D: usize = 3;
const F: usize = 2;

impl Network {
    fn new(case: &(&[usize], usize, usize), activation: Activation) -> Self {
        let ((experts, num_experts, top_k), c) = (*case, activation.columns(F));
        let num_tokens = experts.len() / top_k;
        let sizes =
            [num_tokens * D, experts.len(), num_experts * D * c, num_experts * F * D, num_experts * c, num_experts * D];
        let inputs = std::array::from_fn(|i| numbers(sizes[i], 10 + i));
        let grad = numbers(num_tokens * D, 20);
        let nobody = [0, 0, D * c, F * D, c, D];
        let oracle = ExpertFfn {
            d_model: D,
            d_hidden: F,
            activation,
            experts: experts.to_vec(),
            top_k,
            inputs: std::array::from_fn(|i| with_nobody(&inputs[i], nobody[i])),
        };
        let (output, mut grads) = reference::expert_ffn(&oracle, &exact(&grad));
        grads.iter_mut().zip(sizes).for_each(|(grad, size)| grad.truncate(size));
        Self { plan: plan(case), activation, num_tokens, inputs, grad, output, grads }
    }

    fn problem(&self) -> Problem<'_> {
        let [tokens, gates, w_in, w_out, b_in, b_out] = &self.inputs;
        let (b_in, b_out) = (Some(&b_in[..]), Some(&b_out[..]));
        let (plan, activation) = (&self.plan, self.activation);
        Problem { d_model: D, d_hidden: F, activation, plan, tokens, gates, w_in, w_out, b_in, b_out }
    }

    fn check(&self) {
        let problem = self.problem();
        let (output_len, kept_len) = (self.num_tokens * D, self.plan.num_served() * problem.columns());
        let mut output = Unset::new(output_len);
        forward(&problem, None, output.slots(output_len));
        // SAFETY: the pass writes every slot.
        assert_close("output", &unsafe { output.assume_set(output_len) }, &self.output);

        let (mut output, mut kept) = (Unset::new(output_len), Unset::new(kept_len));
        let slots = (kept.slots(kept_len), output.slots(output_len));
        let shares = numbers(self.plan.num_rows(), 30);
        let sums = forward_summing(&problem, &shares, slots.0, slots.1);
        assert!(sums.outputs.iter().chain(&sums.shares).all(|value| value.is_finite()));
        // SAFETY: the pass writes every slot of both.
        let (output, kept) = unsafe { (output.assume_set(output_len), kept.assume_set(kept_len)) };
        assert_close("output beside sums", &output, &self.output);

        for all in [true, false] {
            let needs = Needs { tokens: all, w_in: all, w_out: all, b_in: all, b_out: all };
            let found = backward(&problem, &mut kept.clone(), &self.grad, needs);
            let parameters = [&found.tokens, &found.w_in, &found.w_out, &found.b_in, &found.b_out];
            let expected = [0, 2, 3, 4, 5].map(|i| &self.grads[i]);
            for (found, expected) in parameters.into_iter().zip(expected) {
                assert_close("gradient", found, if all { expected } else { &[] });
            }
            // The gate of a slot that nobody serves has none.
            let served = |slot: usize| self.plan.slot_of_row[..self.plan.num_served()].contains(&(slot as u32));
            let gates: Vec<f64> =
                self.grads[1].iter().enumerate().map(|(slot, grad)| if served(slot) { *grad } else { 0.0 }).collect();
            assert_close("gates", &found.gates, &gates);
        }
    }
}

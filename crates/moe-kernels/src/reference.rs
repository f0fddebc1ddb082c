//! Naive loops over `f64` slices: the oracle every implementation is tested against. Never used to compute.
//!
//! Matrices are row-major. `R = T * K`; row `r` of the sorted layout holds slot `sorted_slots(..)[r]`.

mod fused;

pub use fused::*;

use crate::Activation;

/// Columns of the `k` largest scores of each row of `scores` `[T, E]`, by `k` passes; the lower column wins a tie, a NaN is
/// below every number.
pub fn top_k(scores: &[f64], num_experts: usize, k: usize) -> Vec<usize> {
    let above = |a: f64, b: f64| a > b || (b.is_nan() && !a.is_nan());
    let mut chosen = Vec::new();
    for row in scores.chunks(num_experts) {
        let mut taken = vec![false; num_experts];
        for _ in 0..k {
            let mut best = None;
            for e in 0..num_experts {
                if !taken[e] && best.is_none_or(|b: usize| above(row[e], row[b])) {
                    best = Some(e);
                }
            }
            let best = best.expect("k <= E leaves a column");
            taken[best] = true;
            chosen.push(best);
        }
    }
    chosen
}

/// Slots in the order of (expert, slot).
pub fn sorted_slots(experts: &[usize]) -> Vec<usize> {
    let mut slots: Vec<usize> = (0..experts.len()).collect();
    slots.sort_by_key(|&slot| (experts[slot], slot));
    slots
}

/// Tokens `[T, D]` to rows `[R, D]`.
pub fn dispatch(tokens: &[f64], width: usize, experts: &[usize], k: usize) -> Vec<f64> {
    let token = |slot: usize| &tokens[slot / k * width..(slot / k + 1) * width];
    sorted_slots(experts).into_iter().flat_map(|slot| token(slot).to_vec()).collect()
}

/// Gradient of [`dispatch`]: `grad` `[R, D]` to `[T, D]`.
pub fn dispatch_grad(grad: &[f64], width: usize, experts: &[usize], k: usize) -> Vec<f64> {
    let mut out = vec![0.0; experts.len() / k * width];
    for (row, slot) in sorted_slots(experts).into_iter().enumerate() {
        for d in 0..width {
            out[slot / k * width + d] += grad[row * width + d];
        }
    }
    out
}

/// Rows `[R, D]` and gates `[T, K]` to `[T, D]`.
pub fn combine(rows: &[f64], gates: &[f64], width: usize, experts: &[usize], k: usize) -> Vec<f64> {
    let mut out = vec![0.0; experts.len() / k * width];
    for (row, slot) in sorted_slots(experts).into_iter().enumerate() {
        for d in 0..width {
            out[slot / k * width + d] += gates[slot] * rows[row * width + d];
        }
    }
    out
}

/// Gradients of [`combine`] with respect to rows `[R, D]` and gates `[T, K]`; `grad` is `[T, D]`.
pub fn combine_grad(
    rows: &[f64],
    gates: &[f64],
    grad: &[f64],
    width: usize,
    experts: &[usize],
    k: usize,
) -> (Vec<f64>, Vec<f64>) {
    let (mut grad_rows, mut grad_gates) = (vec![0.0; rows.len()], vec![0.0; gates.len()]);
    for (row, slot) in sorted_slots(experts).into_iter().enumerate() {
        for d in 0..width {
            let g = grad[slot / k * width + d];
            grad_rows[row * width + d] = gates[slot] * g;
            grad_gates[slot] += g * rows[row * width + d];
        }
    }
    (grad_rows, grad_gates)
}

/// Rows `[R, I]` times the matrix `[I, O]` of their expert out of `weight` `[E, I, O]`.
pub fn grouped_matmul(rows: &[f64], weight: &[f64], d_in: usize, d_out: usize, experts: &[usize]) -> Vec<f64> {
    let mut out = vec![0.0; experts.len() * d_out];
    for (row, slot) in sorted_slots(experts).into_iter().enumerate() {
        for i in 0..d_in {
            for o in 0..d_out {
                let w = weight[(experts[slot] * d_in + i) * d_out + o];
                out[row * d_out + o] += rows[row * d_in + i] * w;
            }
        }
    }
    out
}

/// Gradients of [`grouped_matmul`] with respect to rows and weight; `grad` is `[R, O]`.
pub fn grouped_matmul_grad(
    rows: &[f64],
    weight: &[f64],
    grad: &[f64],
    d_in: usize,
    d_out: usize,
    experts: &[usize],
) -> (Vec<f64>, Vec<f64>) {
    let (mut grad_rows, mut grad_weight) = (vec![0.0; rows.len()], vec![0.0; weight.len()]);
    for (row, slot) in sorted_slots(experts).into_iter().enumerate() {
        for i in 0..d_in {
            for o in 0..d_out {
                let w = (experts[slot] * d_in + i) * d_out + o;
                grad_rows[row * d_in + i] += grad[row * d_out + o] * weight[w];
                grad_weight[w] += rows[row * d_in + i] * grad[row * d_out + o];
            }
        }
    }
    (grad_rows, grad_weight)
}

/// `silu(gate) * up` of `input` `[R, 2F]`.
pub fn swiglu(input: &[f64], d_hidden: usize) -> Vec<f64> {
    let silu = |g: f64| g / (1.0 + (-g).exp());
    let row = |row: &[f64]| (0..d_hidden).map(|f| silu(row[f]) * row[d_hidden + f]).collect::<Vec<_>>();
    input.chunks(2 * d_hidden).flat_map(row).collect()
}

/// `x * cdf(x)` of every number.
pub fn gelu(input: &[f64]) -> Vec<f64> {
    input.iter().map(|&x| x * normal_cdf(x)).collect()
}

/// Inputs of [`expert_ffn`]: `tokens` `[T, D]`, `gates` `[T, K]`, `w_in` `[E, D, C]`, `w_out` `[E, F, D]`, `b_in` `[E, C]`,
/// `b_out` `[E, D]`.
#[derive(Debug, Clone)]
pub struct ExpertFfn {
    /// Token width, `D`.
    pub d_model: usize,
    /// Expert width, `F`.
    pub d_hidden: usize,
    /// Between the two products.
    pub activation: Activation,
    /// Expert of each slot, `[T * K]`.
    pub experts: Vec<usize>,
    /// Experts per token, `K`.
    pub top_k: usize,
    /// The numbers of the inputs, in the order tokens, gates, w_in, w_out, b_in, b_out; zeros where there is no bias.
    pub inputs: [Vec<f64>; 6],
}

/// Output `[T, D]` and, for the gradient `grad` `[T, D]` of it, the gradients of the inputs: slot by slot.
pub fn expert_ffn(problem: &ExpertFfn, grad: &[f64]) -> (Vec<f64>, [Vec<f64>; 6]) {
    let ExpertFfn { d_model: d, d_hidden: f, activation, experts, top_k, inputs } = problem;
    let (d, f, c) = (*d, *f, activation.columns(*f));
    let [tokens, gates, w_in, w_out, b_in, b_out] = inputs;
    let mut output = vec![0.0; tokens.len()];
    let mut grads = inputs.each_ref().map(|input| vec![0.0; input.len()]);
    for (slot, &e) in experts.iter().enumerate() {
        let (t, gate) = (slot / top_k, gates[slot]);
        let z: Vec<f64> = (0..c)
            .map(|j| b_in[e * c + j] + (0..d).map(|i| tokens[t * d + i] * w_in[(e * d + i) * c + j]).sum::<f64>())
            .collect();
        let a: Vec<f64> = (0..f).map(|j| activate(*activation, &z, j, f)).collect();
        let mut grad_a = vec![0.0; f];
        for o in 0..d {
            let y = b_out[e * d + o] + (0..f).map(|j| a[j] * w_out[(e * f + j) * d + o]).sum::<f64>();
            let dy = grad[t * d + o];
            output[t * d + o] += gate * y;
            grads[1][slot] += dy * y;
            grads[5][e * d + o] += gate * dy;
            for j in 0..f {
                grads[3][(e * f + j) * d + o] += gate * dy * a[j];
                grad_a[j] += gate * dy * w_out[(e * f + j) * d + o];
            }
        }
        for j in 0..c {
            let dz = grad_a[j % f] * slope(*activation, &z, j, f);
            grads[4][e * c + j] += dz;
            for i in 0..d {
                grads[2][(e * d + i) * c + j] += dz * tokens[t * d + i];
                grads[0][t * d + i] += dz * w_in[(e * d + i) * c + j];
            }
        }
    }
    (output, grads)
}

/// Outputs of each expert before the gate, times their shares `[T * K]`, and the shares, summed slot by slot: `[E, D]` and
/// `[E]`.
pub fn expert_sums(problem: &ExpertFfn, shares: &[f64], num_experts: usize) -> (Vec<f64>, Vec<f64>) {
    let d = problem.d_model;
    let (mut sums, mut totals) = (vec![0.0; num_experts * d], vec![0.0; num_experts]);
    for (slot, &e) in problem.experts.iter().enumerate() {
        let mut alone = problem.clone();
        let token = slot / problem.top_k;
        alone.inputs[0] = problem.inputs[0][token * d..(token + 1) * d].to_vec();
        (alone.inputs[1], alone.experts, alone.top_k) = (vec![1.0], vec![e], 1);
        let (output, _) = expert_ffn(&alone, &vec![0.0; d]);
        for (sum, y) in sums[e * d..(e + 1) * d].iter_mut().zip(output) {
            *sum += shares[slot] * y;
        }
        totals[e] += shares[slot];
    }
    (sums, totals)
}

/// Number `j` of the activations of `z` `[C]`.
fn activate(activation: Activation, z: &[f64], j: usize, f: usize) -> f64 {
    match activation {
        Activation::SwiGlu => z[j] * sigmoid(z[j]) * z[f + j],
        Activation::Gelu => z[j] * normal_cdf(z[j]),
        Activation::Relu => z[j].max(0.0),
    }
}

/// Derivative of activation `j % F` with respect to `z[j]`.
fn slope(activation: Activation, z: &[f64], j: usize, f: usize) -> f64 {
    match activation {
        Activation::SwiGlu if j >= f => z[j - f] * sigmoid(z[j - f]),
        Activation::SwiGlu => z[f + j] * (sigmoid(z[j]) + z[j] * sigmoid(z[j]) * (1.0 - sigmoid(z[j]))),
        Activation::Gelu => normal_cdf(z[j]) + z[j] * (-z[j] * z[j] / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt(),
        Activation::Relu => f64::from(z[j] > 0.0),
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The normal distribution function, by the series `1/2 + density(x) * (x + x^3/3 + x^5/(3 * 5) + ..)`; beyond 8, where it is within 1e-15 of them, 0 or 1.
pub fn normal_cdf(x: f64) -> f64 {
    if x.abs() > 8.0 {
        return f64::from(x > 0.0);
    }
    let density = (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= x * x / f64::from(2 * n + 1);
        sum += term;
    }
    0.5 + density * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Central differences in f64: truncation near 1e-10, rounding near 1e-10.
    const STEP: f64 = 1e-6;
    const TOLERANCE: f64 = 1e-7;

    /// Numbers in `-1..1` without a pattern.
    fn numbers(n: usize, seed: usize) -> Vec<f64> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) as f64 * 0.618).sin()).collect()
    }

    #[test]
    fn gradients_of_the_oracle_are_those_of_its_values() {
        for activation in [Activation::SwiGlu, Activation::Gelu, Activation::Relu] {
            let (t, d, f, e, c) = (3, 2, 3, 3, activation.columns(3));
            let lengths = [t * d, t * 2, e * d * c, e * f * d, e * c, e * d];
            let inputs = std::array::from_fn(|i| numbers(lengths[i], i));
            let experts = vec![0, 1, 2, 0, 0, 0];
            let problem = ExpertFfn { d_model: d, d_hidden: f, activation, experts, top_k: 2, inputs };
            let weight = numbers(t * d, 9);
            let loss = |problem: &ExpertFfn| -> f64 {
                expert_ffn(problem, &weight).0.iter().zip(&weight).map(|(y, w)| y * w).sum()
            };
            let (_, grads) = expert_ffn(&problem, &weight);
            for (input, grad) in grads.iter().enumerate() {
                for (i, grad) in grad.iter().enumerate() {
                    let moved = |by: f64| {
                        let mut problem = problem.clone();
                        problem.inputs[input][i] += by;
                        loss(&problem)
                    };
                    let numeric = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
                    assert!((grad - numeric).abs() <= TOLERANCE, "{activation:?} {input} {i}: {grad} {numeric}");
                }
            }
        }
    }
}

//! Loops for the ops around the experts.

use crate::AdamWStep;

/// Rows of `x` `[T, D]` to mean square 1, or with `beta` to mean 0 and variance 1; then gain and shift.
pub fn norm(x: &[f64], gamma: &[f64], beta: Option<&[f64]>, epsilon: f64) -> Vec<f64> {
    let width = gamma.len() as f64;
    let row = |x: &[f64]| {
        let mean = if beta.is_some() { x.iter().sum::<f64>() / width } else { 0.0 };
        let square = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / width;
        let channel = |d: usize| (x[d] - mean) / (square + epsilon).sqrt() * gamma[d] + beta.map_or(0.0, |b| b[d]);
        (0..x.len()).map(channel).collect::<Vec<_>>()
    };
    x.chunks(gamma.len()).flat_map(row).collect()
}

/// Softmax of each row of `x` `[T, V]`.
pub fn softmax(x: &[f64], width: usize) -> Vec<f64> {
    let lse = log_sum_exp(x, width);
    x.iter().enumerate().map(|(i, x)| (x - lse[i / width]).exp()).collect()
}

/// `log sum exp` of each row of `x` `[T, V]`.
pub fn log_sum_exp(x: &[f64], width: usize) -> Vec<f64> {
    let row = |row: &[f64]| {
        let largest = row.iter().fold(f64::NEG_INFINITY, |m, x| m.max(*x));
        largest + row.iter().map(|x| (x - largest).exp()).sum::<f64>().ln()
    };
    x.chunks(width).map(row).collect()
}

/// Channels `i` and `i + A / 2` of each row of `A` numbers turned by `angles[i]`; row `r` is at position `r / heads % S`,
/// `angles` is `[S, A / 2]`.
pub fn rotary(x: &[f64], angles: &[f64], width: usize, heads: usize) -> Vec<f64> {
    let (half, mut out) = (width / 2, x.to_vec());
    for (r, row) in out.chunks_mut(width).enumerate() {
        let position = r / heads % (angles.len() / half);
        for i in 0..half {
            let (sin, cos) = angles[position * half + i].sin_cos();
            (row[i], row[i + half]) = (row[i] * cos - row[i + half] * sin, row[i + half] * cos + row[i] * sin);
        }
    }
    out
}

/// Causal attention of `query` `[B, S, H, A]` over `key` and `value` `[B, P, C, A]`; `sizes` is `[B, S, P, H, C, A]`.
pub fn causal_attention(query: &[f64], key: &[f64], value: &[f64], sizes: [usize; 6], scale: f64) -> Vec<f64> {
    let [batch, len, keys, heads, kv_heads, width] = sizes;
    let mut out = Vec::new();
    for row in 0..batch * len * heads {
        let (b, i, h) = (row / heads / len, row / heads % len, row % heads);
        let at = |j: usize, a: usize| ((b * keys + j) * kv_heads + h * kv_heads / heads) * width + a;
        let seen = keys - len + i + 1;
        let score = |j: usize| scale * (0..width).map(|a| query[row * width + a] * key[at(j, a)]).sum::<f64>();
        let weights = softmax(&(0..seen).map(score).collect::<Vec<_>>(), seen);
        out.extend((0..width).map(|a| (0..seen).map(|j| weights[j] * value[at(j, a)]).sum::<f64>()));
    }
    out
}

/// One step of AdamW on parameter, first and second moment.
pub fn adamw([param, first, second]: &mut [Vec<f64>; 3], grad: &[f64], step: &AdamWStep) {
    let [beta_1, beta_2, epsilon] = [step.beta_1, step.beta_2, step.epsilon].map(f64::from);
    let [correction_1, correction_2] = step.corrections().map(f64::from);
    for (i, grad) in grad.iter().enumerate() {
        let grad = step.grad_factor * grad;
        first[i] = beta_1 * first[i] + (1.0 - beta_1) * grad;
        second[i] = beta_2 * second[i] + (1.0 - beta_2) * grad * grad;
        let delta = first[i] / correction_1 / ((second[i] / correction_2).sqrt() + epsilon);
        param[i] = step.decay() * param[i] - step.lr * delta;
    }
}

//! Naive loops over `f64` slices: the oracle every implementation is tested against. Never used to compute.
//!
//! Matrices are row-major. `R = T * K`; row `r` of the sorted layout holds slot `sorted_slots(..)[r]`.

/// Columns of the `k` largest scores of each row of `scores` `[T, E]`, by `k` passes; the lower column wins a tie.
pub fn top_k(scores: &[f64], num_experts: usize, k: usize) -> Vec<usize> {
    let mut chosen = Vec::new();
    for row in scores.chunks(num_experts) {
        let mut taken = vec![false; num_experts];
        for _ in 0..k {
            let mut best = None;
            for e in 0..num_experts {
                if !taken[e] && best.is_none_or(|b: usize| row[e] > row[b]) {
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

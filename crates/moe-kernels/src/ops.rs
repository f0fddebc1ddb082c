//! The extension trait: what a backend must offer beside burn's own ops.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::{FloatTensor, IntTensor};

use crate::{AdamWStep, ExpertPlan, FfnGrads, FfnNeeds, FfnSaved, FfnSummed, FfnWeights, RunScale, portable};

/// A burn backend with the ops of a Mixture-of-Experts layer.
///
/// Every op has a portable body made of burn's own ops; a backend overrides those it can do better. Users call the
/// [functions](crate#functions) on tensors, which check shapes; the methods here trust their arguments.
pub trait MoeBackend: Backend {
    /// Indices `[T, K]` of the `k` largest scores of each row of `scores` `[T, E]`, best first.
    ///
    /// The lower index wins a tie; a NaN ranks below every number.
    fn moe_top_k_indices(scores: FloatTensor<Self>, k: usize) -> IntTensor<Self> {
        portable::top_k_indices::<Self>(scores, k)
    }

    /// The scores `[T, K]` at `indices` `[T, K]` of the rows of `scores` `[T, E]`.
    fn moe_top_k_values(scores: FloatTensor<Self>, indices: IntTensor<Self>) -> FloatTensor<Self> {
        portable::top_k_values::<Self>(scores, indices)
    }

    /// Gradient of [`moe_top_k_values`](Self::moe_top_k_values): `[T, K]` to `[T, E]`, without a scatter. Indices are
    /// distinct within a row, but for a column whose gradient nobody wants.
    fn moe_top_k_backward(grad: FloatTensor<Self>, indices: IntTensor<Self>, num_experts: usize) -> FloatTensor<Self> {
        portable::top_k_backward::<Self>(grad, indices, num_experts)
    }

    /// `scores` `[T, E]` with zeros at the `indices` `[T, K]` of their rows, which are distinct within a row. Its own
    /// gradient.
    fn moe_unchosen(scores: FloatTensor<Self>, indices: IntTensor<Self>) -> FloatTensor<Self> {
        portable::unchosen::<Self>(scores, indices)
    }

    /// Counting sort, stable, of the slots `[T, K]` by expert. See [`ExpertPlan::new`].
    fn moe_plan(experts: IntTensor<Self>, num_experts: usize) -> ExpertPlan<Self> {
        portable::plan::<Self>(experts, num_experts)
    }

    /// `[T, D]` to `[R, D]`: row `r` is the token of sorted slot `r`.
    fn moe_dispatch(tokens: FloatTensor<Self>, plan: &ExpertPlan<Self>) -> FloatTensor<Self> {
        portable::dispatch::<Self>(tokens, plan)
    }

    /// Gradient of [`moe_dispatch`](Self::moe_dispatch): `[R, D]` to `[T, D]`, a gather and a sum over `K`.
    fn moe_dispatch_backward(grad: FloatTensor<Self>, plan: &ExpertPlan<Self>) -> FloatTensor<Self> {
        portable::dispatch_backward::<Self>(grad, plan)
    }

    /// `rows` `[R, D]` and `gates` `[T, K]` to `[T, D]`: `y_t = sum_k gate_tk * row(t, k)`.
    fn moe_combine(rows: FloatTensor<Self>, gates: FloatTensor<Self>, plan: &ExpertPlan<Self>) -> FloatTensor<Self> {
        portable::combine::<Self>(rows, gates, plan)
    }

    /// Gradient of [`moe_combine`](Self::moe_combine) with respect to the rows: `[T, D]` to `[R, D]`.
    fn moe_combine_backward_rows(
        grad: FloatTensor<Self>,
        gates: FloatTensor<Self>,
        plan: &ExpertPlan<Self>,
    ) -> FloatTensor<Self> {
        portable::combine_backward_rows::<Self>(grad, gates, plan)
    }

    /// Gradient of [`moe_combine`](Self::moe_combine) with respect to the gates: `[T, D]` to `[T, K]`.
    fn moe_combine_backward_gates(
        grad: FloatTensor<Self>,
        rows: FloatTensor<Self>,
        plan: &ExpertPlan<Self>,
    ) -> FloatTensor<Self> {
        portable::combine_backward_gates::<Self>(grad, rows, plan)
    }

    /// `rows` `[R, I]` sorted by expert times `weight` `[E, I, O]` of their expert: `[R, O]`.
    fn moe_grouped_matmul(
        rows: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        plan: &ExpertPlan<Self>,
    ) -> FloatTensor<Self> {
        portable::grouped_matmul::<Self>(rows, weight, plan, false)
    }

    /// `rows` `[R, O]` times the transposed `weight` `[E, I, O]` of their expert: `[R, I]`.
    fn moe_grouped_matmul_transposed(
        rows: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        plan: &ExpertPlan<Self>,
    ) -> FloatTensor<Self> {
        portable::grouped_matmul::<Self>(rows, weight, plan, true)
    }

    /// `lhs` `[R, I]` transposed times `rhs` `[R, O]`, expert by expert: `[E, I, O]`, zero for an idle expert.
    fn moe_grouped_outer(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>, plan: &ExpertPlan<Self>) -> FloatTensor<Self> {
        portable::grouped_outer::<Self>(lhs, rhs, plan)
    }

    /// `lhs` `[.., M, K]` times `rhs` `[.., K, N]`, of the same leading dimensions: `[.., M, N]`.
    ///
    /// On CubeCL a product with a vector is one of [`moe_grouped_matmul`](Self::moe_grouped_matmul)'s kernels, and under Fusion it stays
    /// apart from what comes before and after it: burn 0.21 may take a kernel for it that is right for other layouts only
    /// (tracel-ai/burn#5122, tracel-ai/cubek#262); which one is up to autotuning.
    fn moe_matmul(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_matmul(lhs, rhs)
    }

    /// `x` `[T, I]` times `weight` `[I, O]`: `[T, O]`.
    fn moe_linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::moe_matmul(x, weight)
    }

    /// `base` `[T, O]` plus `x` `[T, I]` times `weight` `[I, O]`.
    fn moe_linear_onto(base: FloatTensor<Self>, x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_add(base, Self::moe_linear(x, weight))
    }

    /// `grad` `[T, O]` times the transposed `weight` `[I, O]`, to `[T, I]`: the gradient of [`moe_linear`](Self::moe_linear) with
    /// respect to `x`, and a product of its own.
    fn moe_linear_backward_x(grad: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        portable::linear_backward_x::<Self>(grad, weight)
    }

    /// Gradient of [`moe_linear`](Self::moe_linear) with respect to the weight: `x` `[T, I]`, `grad` `[T, O]`, to `[I, O]`.
    fn moe_linear_backward_weight(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        portable::linear_backward_weight::<Self>(x, grad)
    }

    /// The whole grouped feed-forward network, `[T, D]` to `[T, D]`. See [`expert_ffn`](crate::expert_ffn).
    fn moe_expert_ffn(
        tokens: FloatTensor<Self>,
        gates: FloatTensor<Self>,
        weights: FfnWeights<Self>,
        plan: &ExpertPlan<Self>,
    ) -> FloatTensor<Self> {
        portable::expert_ffn::<Self>(tokens, gates, weights, plan).0
    }

    /// [`moe_expert_ffn`](Self::moe_expert_ffn), and the pre-activation `[R, C]` that its backward pass needs; in a partial plan a backend
    /// may leave out the rows that nobody serves.
    fn moe_expert_ffn_saving(
        tokens: FloatTensor<Self>,
        gates: FloatTensor<Self>,
        weights: FfnWeights<Self>,
        plan: &ExpertPlan<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        portable::expert_ffn::<Self>(tokens, gates, weights, plan)
    }

    /// [`moe_expert_ffn_saving`](Self::moe_expert_ffn_saving), and what each expert put out over the batch: each row's
    /// output, before its gate, times its share out of `shares` `[T, K]`. See
    /// [`expert_ffn_summing`](crate::expert_ffn_summing).
    fn moe_expert_ffn_summing(
        tokens: FloatTensor<Self>,
        gates: FloatTensor<Self>,
        shares: FloatTensor<Self>,
        weights: FfnWeights<Self>,
        plan: &ExpertPlan<Self>,
    ) -> FfnSummed<Self> {
        portable::expert_ffn_summing::<Self>(tokens, gates, shares, weights, plan)
    }

    /// Gradients of [`moe_expert_ffn`](Self::moe_expert_ffn) from that of its output, `[T, D]`.
    fn moe_expert_ffn_backward(saved: FfnSaved<Self>, grad: FloatTensor<Self>, needs: FfnNeeds) -> FfnGrads<Self> {
        portable::expert_ffn_backward::<Self>(saved, grad, needs)
    }

    /// `[R, 2F]` to `[R, F]`: `silu(z[.., ..F]) * z[.., F..]`.
    fn moe_swiglu(input: FloatTensor<Self>) -> FloatTensor<Self> {
        portable::swiglu::<Self>(input)
    }

    /// Gradient of [`moe_swiglu`](Self::moe_swiglu): input `[R, 2F]`, `grad` `[R, F]`, to `[R, 2F]`.
    fn moe_swiglu_backward(input: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        portable::swiglu_backward::<Self>(input, grad)
    }

    /// `[R, F]` to `[R, F]`: `x * cdf(x)` with the exact normal distribution function.
    fn moe_gelu(input: FloatTensor<Self>) -> FloatTensor<Self> {
        portable::gelu::<Self>(input)
    }

    /// Gradient of [`moe_gelu`](Self::moe_gelu): input `[R, F]`, `grad` `[R, F]`, to `[R, F]`.
    fn moe_gelu_backward(input: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        portable::gelu_backward::<Self>(input, grad)
    }

    /// Rows of `x` `[T, D]` with root mean square 1, times `gamma` `[D]`. Computed in f32 (f64 if `x` is), dtype of `x`.
    fn moe_rms_norm(x: FloatTensor<Self>, gamma: FloatTensor<Self>, epsilon: f64) -> FloatTensor<Self> {
        portable::norm::<Self>(x, gamma, None, epsilon)
    }

    /// Gradients of [`moe_rms_norm`](Self::moe_rms_norm): `x` and `grad` `[T, D]`, to those of `x` and `gamma`.
    fn moe_rms_norm_backward(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        epsilon: f64,
        grad: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 2] {
        let [x, gamma, _] = portable::norm_backward::<Self>(x, gamma, false, epsilon, grad);
        [x, gamma]
    }

    /// Rows of `x` `[T, D]` with mean 0 and variance 1, times `gamma` `[D]`, plus `beta` `[D]`. Computed in f32 (f64 if
    /// `x` is), dtype of `x`.
    fn moe_layer_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        portable::norm::<Self>(x, gamma, Some(beta), epsilon)
    }

    /// Gradients of [`moe_layer_norm`](Self::moe_layer_norm): `x` and `grad` `[T, D]`, to those of `x`, `gamma` and `beta`.
    fn moe_layer_norm_backward(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        epsilon: f64,
        grad: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 3] {
        portable::norm_backward::<Self>(x, gamma, true, epsilon, grad)
    }

    /// Softmax of each row of `x` `[T, V]`.
    fn moe_softmax(x: FloatTensor<Self>) -> FloatTensor<Self> {
        portable::softmax::<Self>(x)
    }

    /// Gradient of [`moe_softmax`](Self::moe_softmax) from its output: both `[T, V]`.
    fn moe_softmax_backward(output: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        portable::softmax_backward::<Self>(output, grad)
    }

    /// `log sum exp` of each row of `x` `[T, V]`: `[T, 1]`.
    fn moe_log_sum_exp(x: FloatTensor<Self>) -> FloatTensor<Self> {
        portable::log_sum_exp::<Self>(x)
    }

    /// Gradient of [`moe_log_sum_exp`](Self::moe_log_sum_exp): `x` `[T, V]` and `grad` `[T, 1]`, to `[T, V]`.
    fn moe_log_sum_exp_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        portable::log_sum_exp_backward::<Self>(x, grad)
    }

    /// `log sum exp` of each row of `logits` `[T, V]`, minus the logit of its target out of `targets` `[T]`: `[T]`.
    fn moe_cross_entropy(logits: FloatTensor<Self>, targets: IntTensor<Self>) -> FloatTensor<Self> {
        portable::cross_entropy::<Self>(logits, targets)
    }

    /// Gradient of [`moe_cross_entropy`](Self::moe_cross_entropy): `grad` `[T]`, to `[T, V]`.
    fn moe_cross_entropy_backward(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        portable::cross_entropy_backward::<Self>(logits, targets, grad)
    }

    /// Turns channels `i` and `i + A / 2` of every head of `x` `[B, S, H, A]` by the angle whose cosine and sine are at
    /// `[s, i]` of `cos` and `sin` `[S, A / 2]`, f32; back if `inverse`. Computed in f32, dtype of `x`.
    fn moe_rotary(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        inverse: bool,
    ) -> FloatTensor<Self> {
        portable::rotary::<Self>(x, cos, sin, inverse)
    }

    /// Causal attention of `query` `[B, S, H, A]` to the earlier ones of `key` and `value` `[B, P, C, A]`: output
    /// `[B, S, H, A]` and the log-sum-exp of the scores `[B, S, H]` in f32 (f64 if the query is). See
    /// [`causal_attention`](crate::causal_attention).
    fn moe_causal_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        scale: f64,
    ) -> [FloatTensor<Self>; 2] {
        portable::causal_attention::<Self>([query, key, value], scale)
    }

    /// Gradients of [`moe_causal_attention`](Self::moe_causal_attention) with respect to query, key and value, its
    /// `inputs`; `outputs` are its two results, `grad` is `[B, S, H, A]`.
    fn moe_causal_attention_backward(
        inputs: [FloatTensor<Self>; 3],
        outputs: [FloatTensor<Self>; 2],
        scale: f64,
        grad: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 3] {
        portable::causal_attention_backward::<Self>(inputs, outputs, scale, grad)
    }

    /// Sums along `dim`, whose size becomes 1. Under Fusion an operation of its own: see [`sum_dim`](crate::sum_dim).
    fn moe_sum_dim(x: FloatTensor<Self>, dim: usize) -> FloatTensor<Self> {
        Self::float_sum_dim(x, dim)
    }

    /// The largest numbers along `dim`, whose size becomes 1. Under Fusion an operation of its own, as
    /// [`moe_sum_dim`](Self::moe_sum_dim).
    fn moe_max_dim(x: FloatTensor<Self>, dim: usize) -> FloatTensor<Self> {
        Self::float_max_dim(x, dim)
    }

    /// Rows of `x` `[T, N]` divided by `divisors` `[T, 1]`.
    fn moe_divide_rows(x: FloatTensor<Self>, divisors: FloatTensor<Self>) -> FloatTensor<Self> {
        portable::divide_rows::<Self>(x, divisors)
    }

    /// Gradients of [`moe_divide_rows`](Self::moe_divide_rows) with respect to `x` and the divisors from its output
    /// and that of the output, both `[T, N]`.
    fn moe_divide_rows_backward(
        output: FloatTensor<Self>,
        divisors: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 2] {
        portable::divide_rows_backward::<Self>(output, divisors, grad)
    }

    /// One step of AdamW on `[N]` numbers: parameter, gradient and both moments; returns the new parameter and moments. The
    /// parameter keeps as much of its change as `scale` says, all of it without one.
    ///
    /// An implementation may work in place on tensors that nobody else holds.
    fn moe_adamw_step(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        moments: [FloatTensor<Self>; 2],
        step: &AdamWStep,
        scale: Option<RunScale<FloatTensor<Self>>>,
    ) -> [FloatTensor<Self>; 3] {
        portable::adamw_step::<Self>(param, grad, moments, step, scale)
    }

    /// The sum of the squares of `x` `[N]`: `[1]`.
    fn moe_sum_of_squares(x: FloatTensor<Self>) -> FloatTensor<Self> {
        portable::sum_of_squares::<Self>(x)
    }

    /// Runs `work`, a good deal of ops, with the threads that share it kept awake. See [`with_threads_awake`](crate::with_threads_awake).
    fn moe_with_threads_awake<R>(work: impl FnOnce() -> R) -> R {
        work()
    }
}

/// A [`MoeBackend`] with gradients, whose inner backend (used in validation) is one too.
///
/// Implemented for every such backend; it only saves writing the bounds.
pub trait AutodiffMoeBackend: MoeBackend + AutodiffBackend<InnerBackend: MoeBackend> {}

impl<B: MoeBackend + AutodiffBackend<InnerBackend: MoeBackend>> AutodiffMoeBackend for B {}

/// Whether a product of matrices `[.., M, K]` and `[.., K, N]` is one with a single row, a single column, or sums of one.
#[cfg(feature = "cube")]
pub(crate) fn multiplies_a_vector(lhs: &burn::tensor::Shape, rhs: &burn::tensor::Shape) -> bool {
    let last = lhs.num_dims() - 1;
    [lhs[last - 1], lhs[last], rhs[last]].contains(&1)
}

//! The whole grouped feed-forward network as one op.

use burn::tensor::Tensor;

use super::{check_dtypes, primitive, tensor};
use crate::{ExpertPlan, FfnWeights, MoeBackend};

/// Sends every token through its experts and sums their outputs, weighted by the gates:
/// `y_t = sum_k gate_tk * (activation(x_t W_in + b_in) W_out + b_out)` with the parameters of expert `(t, k)`.
///
/// The same as [`dispatch_rows`](crate::dispatch_rows), two [`grouped_matmul`](crate::grouped_matmul)s around an
/// activation, and [`combine_rows`](crate::combine_rows), with a backward pass of its own that keeps the pre-activation
/// `[R, C]` and nothing else: neither the tokens sorted by expert, nor the activations, nor the experts' outputs. The
/// gradient of a gate needs the expert's output only through a dot product, `dgate = dy . (a W_out) = (dy W_out^T) . a`,
/// and the right-hand side is at hand.
///
/// An expert without tokens costs nothing and gets a zero gradient.
///
/// # Shapes
///
/// - tokens: `[T, D]`
/// - gates: `[T, K]`
/// - weights: see [`FfnWeights`]
/// - output: `[T, D]`
///
/// All of one dtype.
///
/// # Panics
///
/// Panics when the shapes do not fit each other or the plan, `D` or `F` is 0, or the dtypes differ.
pub fn expert_ffn<B: MoeBackend>(
    tokens: Tensor<B, 2>,
    gates: Tensor<B, 2>,
    weights: FfnWeights<B>,
    plan: &ExpertPlan<B>,
) -> Tensor<B, 2> {
    check("expert_ffn", &tokens, &gates, &weights, plan);
    tensor(B::moe_expert_ffn(primitive(tokens), primitive(gates), weights, plan))
}

/// [`expert_ffn`], and what each expert put out over the batch, `sum_e = sum over its slots of share_tk * expert_e(x_t)`,
/// with the sums of the shares.
///
/// The sums are constants for autodiff. They cost one pass over activations that are at hand and one product of a
/// vector with each expert's second matrix: `sum share * (a W_out + b_out) = (sum share * a) W_out + (sum share) b_out`,
/// so no expert output is stored.
///
/// # Shapes
///
/// - tokens, gates, weights: as for [`expert_ffn`]
/// - shares: `[T, K]`, dtype of the tokens
/// - output: `[T, D]`; sums `[E, D]` and sums of the shares `[E]`, both f32 (f64 if the tokens are), zero for an idle
///   expert
///
/// # Panics
///
/// As [`expert_ffn`], where the shares are of another shape than the gates, and where they are of another dtype.
pub fn expert_ffn_summing<B: MoeBackend>(
    tokens: Tensor<B, 2>,
    gates: Tensor<B, 2>,
    shares: Tensor<B, 2>,
    weights: FfnWeights<B>,
    plan: &ExpertPlan<B>,
) -> (Tensor<B, 2>, Tensor<B, 2>, Tensor<B, 1>) {
    check("expert_ffn_summing", &tokens, &gates, &weights, plan);
    assert_eq!(shares.dims(), gates.dims(), "expert_ffn_summing: shares must be [T, K]");
    check_dtypes("expert_ffn_summing: tokens and shares", [tokens.dtype(), shares.dtype()]);
    let found = B::moe_expert_ffn_summing(primitive(tokens), primitive(gates), primitive(shares), weights, plan);
    (tensor(found.output), tensor(found.sums), tensor(found.totals))
}

fn check<B: MoeBackend>(
    name: &str,
    tokens: &Tensor<B, 2>,
    gates: &Tensor<B, 2>,
    weights: &FfnWeights<B>,
    plan: &ExpertPlan<B>,
) {
    let [num_tokens, width] = tokens.dims();
    assert_eq!(num_tokens, plan.num_tokens(), "{name}: tokens [T, D] and the plan disagree on T");
    assert_eq!(gates.dims(), [plan.num_tokens(), plan.top_k()], "{name}: gates must be [T, K]");
    assert_eq!(weights.num_experts(), plan.num_experts(), "{name}: w_in [E, D, C] and the plan disagree on E");
    assert_eq!(width, weights.d_model(), "{name}: tokens [T, D] and w_in [E, D, C] disagree on D");
    check_weights(name, weights);
    check_types(name, tokens, gates, weights);
}

fn check_weights<B: MoeBackend>(name: &str, weights: &FfnWeights<B>) {
    let (e, d, f, c) = (weights.num_experts(), weights.d_model(), weights.d_hidden(), weights.columns());
    assert!(d > 0 && f > 0, "{name}: D and F must be at least 1, got {d} and {f}");
    assert_eq!(c, weights.activation.columns(f), "{name}: w_in [E, D, C] and w_out [E, F, D] disagree on F");
    assert_eq!(weights.w_out.dims(), [e, f, d], "{name}: w_out must be [E, F, D]");
    if let Some(bias) = &weights.b_in {
        assert_eq!(bias.dims(), [e, c], "{name}: b_in must be [E, C]");
    }
    if let Some(bias) = &weights.b_out {
        assert_eq!(bias.dims(), [e, d], "{name}: b_out must be [E, D]");
    }
}

fn check_types<B: MoeBackend>(op: &str, tokens: &Tensor<B, 2>, gates: &Tensor<B, 2>, weights: &FfnWeights<B>) {
    let check = |name: &str, dtype| check_dtypes(&format!("{op}: tokens and {name}"), [tokens.dtype(), dtype]);
    check("gates", gates.dtype());
    check("w_in", weights.w_in.dtype());
    check("w_out", weights.w_out.dtype());
    weights.b_in.iter().for_each(|bias| check("b_in", bias.dtype()));
    weights.b_out.iter().for_each(|bias| check("b_out", bias.dtype()));
}

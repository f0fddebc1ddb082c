//! The grouped feed-forward network made of the other ops: on the device when those are, in any dtype.

use burn::tensor::Tensor;
use burn::tensor::activation::relu;
use burn::tensor::ops::FloatTensor;

use super::reduce::sum_dim;
use super::{unwrap, wrap, zeros};
use crate::{Activation, ExpertPlan, FfnGrads, FfnNeeds, FfnSaved, FfnWeights, MoeBackend};

/// Output `[T, D]` and pre-activation `[R, C]`.
pub(crate) fn expert_ffn<B: MoeBackend>(
    tokens: FloatTensor<B>,
    gates: FloatTensor<B>,
    weights: FfnWeights<B>,
    plan: &ExpertPlan<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    if plan.num_rows() == 0 {
        let tensor = wrap::<B, 2>(tokens.clone());
        let z = zeros::<B, 2>([0, weights.columns()], &tensor.device(), tensor.dtype());
        return (tokens, unwrap::<B, 2>(z));
    }
    let activation = weights.activation;
    let rows = B::moe_dispatch(tokens, plan);
    let z = linear::<B>(rows, weights.w_in, weights.b_in, plan);
    let hidden = activate::<B>(activation, z.clone());
    let rows = linear::<B>(hidden, weights.w_out, weights.b_out, plan);
    (B::moe_combine(rows, gates, plan), z)
}

/// Rows `[R, I]` times the matrix of their expert, plus its bias.
pub(super) fn linear<B: MoeBackend>(
    rows: FloatTensor<B>,
    weight: Tensor<B, 3>,
    bias: Option<Tensor<B, 2>>,
    plan: &ExpertPlan<B>,
) -> FloatTensor<B> {
    let ones = bias.as_ref().map(|_| ones_like_rows::<B>(&rows));
    let product = B::moe_grouped_matmul(rows, unwrap(weight), plan);
    match (bias, ones) {
        (Some(bias), Some(ones)) => B::float_add(product, bias_rows::<B>(bias, ones, plan)),
        _ => product,
    }
}

/// A bias is the product of a column of ones with `[E, 1, O]`: neither it nor its gradient needs an index.
fn bias_rows<B: MoeBackend>(bias: Tensor<B, 2>, ones: FloatTensor<B>, plan: &ExpertPlan<B>) -> FloatTensor<B> {
    B::moe_grouped_matmul(ones, unwrap(bias.unsqueeze_dim::<3>(1)), plan)
}

fn ones_like_rows<B: MoeBackend>(rows: &FloatTensor<B>) -> FloatTensor<B> {
    let rows = wrap::<B, 2>(rows.clone());
    let [num_rows, _] = rows.dims();
    unwrap(Tensor::<B, 2>::ones([num_rows, 1], (&rows.device(), rows.dtype())))
}

pub(super) fn activate<B: MoeBackend>(activation: Activation, z: FloatTensor<B>) -> FloatTensor<B> {
    match activation {
        Activation::SwiGlu => B::moe_swiglu(z),
        Activation::Gelu => B::moe_gelu(z),
        Activation::Relu => unwrap(relu(wrap::<B, 2>(z))),
    }
}

fn activate_backward<B: MoeBackend>(activation: Activation, z: FloatTensor<B>, grad: FloatTensor<B>) -> FloatTensor<B> {
    match activation {
        Activation::SwiGlu => B::moe_swiglu_backward(z, grad),
        Activation::Gelu => B::moe_gelu_backward(z, grad),
        Activation::Relu => unwrap(wrap::<B, 2>(grad).mask_fill(wrap::<B, 2>(z).lower_equal_elem(0.0), 0.0)),
    }
}

/// Gradients from `grad` `[T, D]`.
pub(crate) fn expert_ffn_backward<B: MoeBackend>(
    saved: FfnSaved<B>,
    grad: FloatTensor<B>,
    needs: FfnNeeds,
) -> FfnGrads<B> {
    if saved.plan.num_rows() == 0 {
        return zero_gradients(saved, needs);
    }
    let FfnSaved { tokens, gates, weights, pre_activation: z, plan } = saved;
    let activation = weights.activation;
    let grad_rows = B::moe_dispatch(grad, &plan);
    let gate_of_row = wrap::<B, 2>(gates).reshape([plan.num_rows(), 1]).select(0, plan.slot_of_row.clone());

    let grad_hidden = wrap::<B, 2>(B::moe_grouped_matmul_transposed(grad_rows.clone(), unwrap(weights.w_out), &plan));
    let hidden = wrap::<B, 2>(activate::<B>(activation, z.clone()));
    let grad_gates = needs.gates.then(|| {
        let output_bias = weights.b_out.map(|bias| (bias, grad_rows.clone()));
        gate_gradient::<B>(grad_hidden.clone() * hidden.clone(), output_bias, &plan)
    });
    let grad_z = activate_backward::<B>(activation, z, unwrap(grad_hidden * gate_of_row.clone()));

    let outer = |lhs: FloatTensor<B>, rhs: &FloatTensor<B>| B::moe_grouped_outer(lhs, rhs.clone(), &plan);
    let bias = |lhs: FloatTensor<B>, rhs: &FloatTensor<B>| unwrap(wrap::<B, 3>(outer(lhs, rhs)).squeeze_dim::<2>(1));
    FfnGrads {
        w_in: needs.w_in.then(|| outer(B::moe_dispatch(tokens, &plan), &grad_z)),
        w_out: needs.w_out.then(|| outer(unwrap(hidden * gate_of_row.clone()), &grad_rows)),
        b_in: needs.b_in.then(|| bias(ones_like_rows::<B>(&grad_z), &grad_z)),
        b_out: needs.b_out.then(|| bias(unwrap(gate_of_row), &grad_rows)),
        gates: grad_gates,
        tokens: needs.tokens.then(|| {
            let grad_tokens = B::moe_grouped_matmul_transposed(grad_z, unwrap(weights.w_in), &plan);
            B::moe_dispatch_backward(grad_tokens, &plan)
        }),
    }
}

/// The gradients when there are no tokens: no op of burn is sure to accept an empty tensor.
fn zero_gradients<B: MoeBackend>(saved: FfnSaved<B>, needs: FfnNeeds) -> FfnGrads<B> {
    fn like<B: MoeBackend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
        unwrap(zeros::<B, D>(tensor.dims(), &tensor.device(), tensor.dtype()))
    }
    let FfnSaved { tokens, gates, weights, .. } = saved;
    FfnGrads {
        tokens: needs.tokens.then(|| like::<B, 2>(wrap(tokens))),
        gates: needs.gates.then(|| like::<B, 2>(wrap(gates))),
        w_in: needs.w_in.then(|| like(weights.w_in)),
        w_out: needs.w_out.then(|| like(weights.w_out)),
        b_in: weights.b_in.filter(|_| needs.b_in).map(like),
        b_out: weights.b_out.filter(|_| needs.b_out).map(like),
    }
}

/// From the products `[R, F]` of activations and their gradients before the gate, and the output bias with the gradient
/// `[R, D]` of its rows: `[T, K]`.
fn gate_gradient<B: MoeBackend>(
    products: Tensor<B, 2>,
    output_bias: Option<(Tensor<B, 2>, FloatTensor<B>)>,
    plan: &ExpertPlan<B>,
) -> FloatTensor<B> {
    let mut by_row = sum_dim(products, 1);
    if let Some((bias, grad_rows)) = output_bias {
        let bias = bias_rows::<B>(bias, ones_like_rows::<B>(&grad_rows), plan);
        by_row = by_row + sum_dim(wrap::<B, 2>(bias) * wrap::<B, 2>(grad_rows), 1);
    }
    unwrap(by_row.select(0, plan.row_of_slot.clone()).reshape([plan.num_tokens, plan.top_k]))
}

//! Gradients over any [`MoeBackend`].
//!
//! Each op saves the node of an input only when the other input needs a gradient, the way burn's own matrix product
//! does, so that gradient checkpointing can recompute it.

mod attention;
mod expert_ffn;
mod grouped;
mod linear;
mod norm;
mod reduce;
mod softmax;
mod top_k;

use burn_autodiff::Autodiff;
use burn_autodiff::NodeId;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind, binary, unary};

use burn::tensor::ops::{FloatTensor, IntTensor};

use crate::{ExpertPlan, FfnSummed, FfnWeights, MoeBackend};
use grouped::{Grouped, grouped};

impl<B: MoeBackend, C: CheckpointStrategy> MoeBackend for Autodiff<B, C> {
    fn moe_with_threads_awake<R>(work: impl FnOnce() -> R) -> R {
        B::moe_with_threads_awake(work)
    }

    fn moe_top_k_indices(scores: FloatTensor<Self>, k: usize) -> IntTensor<Self> {
        B::moe_top_k_indices(scores.primitive, k)
    }

    fn moe_top_k_values(scores: FloatTensor<Self>, indices: IntTensor<Self>) -> FloatTensor<Self> {
        top_k::values::<B, C>(scores, indices)
    }

    fn moe_unchosen(scores: FloatTensor<Self>, indices: IntTensor<Self>) -> FloatTensor<Self> {
        top_k::unchosen::<B, C>(scores, indices)
    }

    fn moe_plan(experts: IntTensor<Self>, num_experts: usize) -> ExpertPlan<Self> {
        B::moe_plan(experts, num_experts).cast()
    }

    fn moe_dispatch(tokens: FloatTensor<Self>, plan: &ExpertPlan<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Dispatch;

        impl<B: MoeBackend> Backward<B, 1> for Dispatch {
            type State = ExpertPlan<B>;

            fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
                let plan = ops.state;
                unary::<B, _>(ops.parents, ops.node, grads, |grad| B::moe_dispatch_backward(grad, &plan));
            }
        }

        let plan = plan.cast::<B>();
        let prep = Dispatch.prepare::<C>([tokens.node]).compute_bound().stateful();
        let output = B::moe_dispatch(tokens.primitive, &plan);
        match prep {
            OpsKind::Tracked(prep) => prep.finish(plan, output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn moe_combine(rows: FloatTensor<Self>, gates: FloatTensor<Self>, plan: &ExpertPlan<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Combine;

        impl<B: MoeBackend> Backward<B, 2> for Combine {
            type State = (Option<NodeId>, Option<NodeId>, ExpertPlan<B>);

            fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
                let (rows, gates, plan) = ops.state;
                let rows = rows.map(|node| checkpointer.retrieve_node_output(node));
                let gates = gates.map(|node| checkpointer.retrieve_node_output(node));
                binary::<B, _, _>(
                    ops.parents,
                    ops.node,
                    grads,
                    |grad| B::moe_combine_backward_rows(grad, gates.expect(SAVED), &plan),
                    |grad| B::moe_combine_backward_gates(grad, rows.expect(SAVED), &plan),
                );
            }
        }

        let plan = plan.cast::<B>();
        let (needs_gates, needs_rows) = (rows.is_tracked(), gates.is_tracked());
        let prep = Combine.prepare::<C>([rows.node.clone(), gates.node.clone()]);
        match prep.compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let saved_rows = needs_rows.then(|| prep.checkpoint(&rows));
                let saved_gates = needs_gates.then(|| prep.checkpoint(&gates));
                let output = B::moe_combine(rows.primitive, gates.primitive, &plan);
                prep.finish((saved_rows, saved_gates, plan), output)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::moe_combine(rows.primitive, gates.primitive, &plan)),
        }
    }

    fn moe_grouped_matmul(
        rows: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        plan: &ExpertPlan<Self>,
    ) -> FloatTensor<Self> {
        grouped::<B, C>(Grouped::Product, rows, weight, plan)
    }

    fn moe_grouped_matmul_transposed(
        rows: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        plan: &ExpertPlan<Self>,
    ) -> FloatTensor<Self> {
        grouped::<B, C>(Grouped::Transposed, rows, weight, plan)
    }

    fn moe_grouped_outer(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>, plan: &ExpertPlan<Self>) -> FloatTensor<Self> {
        grouped::<B, C>(Grouped::Outer, lhs, rhs, plan)
    }

    fn moe_linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        linear::linear::<B, C, false>(x, weight)
    }

    fn moe_linear_onto(base: FloatTensor<Self>, x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        linear::linear_onto::<B, C>(base, x, weight)
    }

    fn moe_linear_backward_x(grad: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        linear::linear::<B, C, true>(grad, weight)
    }

    fn moe_expert_ffn(
        tokens: FloatTensor<Self>,
        gates: FloatTensor<Self>,
        weights: FfnWeights<Self>,
        plan: &ExpertPlan<Self>,
    ) -> FloatTensor<Self> {
        expert_ffn::expert_ffn(tokens, gates, weights, plan)
    }

    fn moe_expert_ffn_summing(
        tokens: FloatTensor<Self>,
        gates: FloatTensor<Self>,
        shares: FloatTensor<Self>,
        weights: FfnWeights<Self>,
        plan: &ExpertPlan<Self>,
    ) -> FfnSummed<Self> {
        expert_ffn::expert_ffn_summing(tokens, gates, shares, weights, plan)
    }

    fn moe_swiglu(input: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct SwiGlu;

        impl<B: MoeBackend> Backward<B, 1> for SwiGlu {
            type State = NodeId;

            fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
                let input = checkpointer.retrieve_node_output(ops.state);
                unary::<B, _>(ops.parents, ops.node, grads, |grad| B::moe_swiglu_backward(input, grad));
            }
        }

        from_input::<B, C, _>(SwiGlu, input, B::moe_swiglu)
    }

    fn moe_gelu(input: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Gelu;

        impl<B: MoeBackend> Backward<B, 1> for Gelu {
            type State = NodeId;

            fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
                let input = checkpointer.retrieve_node_output(ops.state);
                unary::<B, _>(ops.parents, ops.node, grads, |grad| B::moe_gelu_backward(input, grad));
            }
        }

        from_input::<B, C, _>(Gelu, input, B::moe_gelu)
    }

    fn moe_rms_norm(x: FloatTensor<Self>, gamma: FloatTensor<Self>, epsilon: f64) -> FloatTensor<Self> {
        norm::rms_norm::<B, C>(x, gamma, epsilon)
    }

    fn moe_layer_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        norm::layer_norm::<B, C>(x, gamma, beta, epsilon)
    }

    fn moe_softmax(x: FloatTensor<Self>) -> FloatTensor<Self> {
        softmax::softmax::<B, C>(x)
    }

    fn moe_log_sum_exp(x: FloatTensor<Self>) -> FloatTensor<Self> {
        softmax::log_sum_exp::<B, C>(x)
    }

    fn moe_cross_entropy(logits: FloatTensor<Self>, targets: IntTensor<Self>) -> FloatTensor<Self> {
        softmax::cross_entropy::<B, C>(logits, targets)
    }

    fn moe_sum_dim(x: FloatTensor<Self>, dim: usize) -> FloatTensor<Self> {
        reduce::sum_dim::<B, C>(x, dim)
    }

    fn moe_divide_rows(x: FloatTensor<Self>, divisors: FloatTensor<Self>) -> FloatTensor<Self> {
        reduce::divide_rows::<B, C>(x, divisors)
    }

    fn moe_rotary(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        inverse: bool,
    ) -> FloatTensor<Self> {
        attention::rotary::<B, C>(x, cos, sin, inverse)
    }

    fn moe_causal_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        scale: f64,
    ) -> [FloatTensor<Self>; 2] {
        attention::causal_attention::<B, C>([query, key, value], scale)
    }
}

/// Hands every tracked parent its gradient.
fn register<B: MoeBackend, const N: usize>(
    grads: &mut Gradients,
    parents: [Option<NodeId>; N],
    found: [FloatTensor<B>; N],
) {
    for (parent, grad) in parents.into_iter().zip(found) {
        if let Some(parent) = parent {
            grads.register::<B>(parent, grad);
        }
    }
}

/// An op of one input whose gradient needs that input and nothing else.
fn from_input<B, C, O>(
    op: O,
    input: FloatTensor<Autodiff<B, C>>,
    forward: impl FnOnce(FloatTensor<B>) -> FloatTensor<B>,
) -> FloatTensor<Autodiff<B, C>>
where
    B: MoeBackend,
    C: CheckpointStrategy,
    O: Backward<B, 1, State = NodeId>,
{
    match op.prepare::<C>([input.node.clone()]).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let saved = prep.checkpoint(&input);
            prep.finish(saved, forward(input.primitive))
        }
        OpsKind::UnTracked(prep) => prep.finish(forward(input.primitive)),
    }
}

const SAVED: &str = "an input is saved whenever the other one is tracked";

//! The grouped products under autodiff.
//!
//! With `rows` `[R, I]`, `weight` `[E, I, O]` and `grad` `[R, O]` the three products are each other's gradients, the way
//! the three layouts of a matrix product are.

use burn::tensor::ops::FloatTensor;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind, binary};
use burn_autodiff::{Autodiff, NodeId};

use super::SAVED;
use crate::{ExpertPlan, MoeBackend};

/// Which of the products.
#[derive(Clone, Copy, Debug)]
pub(super) enum Grouped {
    /// `[R, I]` and `[E, I, O]` to `[R, O]`.
    Product,
    /// `[R, O]` and `[E, I, O]` to `[R, I]`.
    Transposed,
    /// `[R, I]` and `[R, O]` to `[E, I, O]`.
    Outer,
}

impl Grouped {
    fn forward<B: MoeBackend>(self, lhs: FloatTensor<B>, rhs: FloatTensor<B>, plan: &ExpertPlan<B>) -> FloatTensor<B> {
        match self {
            Self::Product => B::moe_grouped_matmul(lhs, rhs, plan),
            Self::Transposed => B::moe_grouped_matmul_transposed(lhs, rhs, plan),
            Self::Outer => B::moe_grouped_outer(lhs, rhs, plan),
        }
    }

    fn backward_lhs<B: MoeBackend>(
        self,
        grad: FloatTensor<B>,
        rhs: FloatTensor<B>,
        plan: &ExpertPlan<B>,
    ) -> FloatTensor<B> {
        match self {
            Self::Product => B::moe_grouped_matmul_transposed(grad, rhs, plan),
            Self::Transposed => B::moe_grouped_matmul(grad, rhs, plan),
            Self::Outer => B::moe_grouped_matmul_transposed(rhs, grad, plan),
        }
    }

    fn backward_rhs<B: MoeBackend>(
        self,
        grad: FloatTensor<B>,
        lhs: FloatTensor<B>,
        plan: &ExpertPlan<B>,
    ) -> FloatTensor<B> {
        match self {
            Self::Product => B::moe_grouped_outer(lhs, grad, plan),
            Self::Transposed => B::moe_grouped_outer(grad, lhs, plan),
            Self::Outer => B::moe_grouped_matmul(lhs, grad, plan),
        }
    }
}

impl<B: MoeBackend> Backward<B, 2> for Grouped {
    type State = (Option<NodeId>, Option<NodeId>, ExpertPlan<B>);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let (lhs, rhs, plan) = ops.state;
        let lhs = lhs.map(|node| checkpointer.retrieve_node_output(node));
        let rhs = rhs.map(|node| checkpointer.retrieve_node_output(node));
        binary::<B, _, _>(
            ops.parents,
            ops.node,
            grads,
            |grad| self.backward_lhs(grad, rhs.expect(SAVED), &plan),
            |grad| self.backward_rhs(grad, lhs.expect(SAVED), &plan),
        );
    }
}

/// Records one of the products; an input is kept only when the other one needs a gradient.
pub(super) fn grouped<B: MoeBackend, C: CheckpointStrategy>(
    product: Grouped,
    lhs: FloatTensor<Autodiff<B, C>>,
    rhs: FloatTensor<Autodiff<B, C>>,
    plan: &ExpertPlan<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    let plan = plan.cast::<B>();
    let (needs_rhs, needs_lhs) = (lhs.is_tracked(), rhs.is_tracked());
    let prep = product.prepare::<C>([lhs.node.clone(), rhs.node.clone()]);
    match prep.compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let saved_lhs = needs_lhs.then(|| prep.checkpoint(&lhs));
            let saved_rhs = needs_rhs.then(|| prep.checkpoint(&rhs));
            let output = product.forward(lhs.primitive, rhs.primitive, &plan);
            prep.finish((saved_lhs, saved_rhs, plan), output)
        }
        OpsKind::UnTracked(prep) => prep.finish(product.forward(lhs.primitive, rhs.primitive, &plan)),
    }
}

//! The product of rows with one matrix under autodiff.

use burn::tensor::ops::FloatTensor;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind, binary};
use burn_autodiff::{Autodiff, NodeId};

use super::SAVED;
use crate::MoeBackend;

#[derive(Debug)]
struct Linear;

impl<B: MoeBackend> Backward<B, 2> for Linear {
    type State = (Option<NodeId>, Option<NodeId>);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let (x, weight) = ops.state;
        let x = x.map(|node| checkpointer.retrieve_node_output(node));
        let weight = weight.map(|node| checkpointer.retrieve_node_output(node));
        binary::<B, _, _>(
            ops.parents,
            ops.node,
            grads,
            |grad| B::moe_linear_backward_x(grad, weight.expect(SAVED)),
            |grad| B::moe_linear_backward_weight(x.expect(SAVED), grad),
        );
    }
}

pub(super) fn linear<B: MoeBackend, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    weight: FloatTensor<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    let (needs_weight, needs_x) = (x.is_tracked(), weight.is_tracked());
    match Linear.prepare::<C>([x.node.clone(), weight.node.clone()]).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let saved_x = needs_x.then(|| prep.checkpoint(&x));
            let saved_weight = needs_weight.then(|| prep.checkpoint(&weight));
            prep.finish((saved_x, saved_weight), B::moe_linear(x.primitive, weight.primitive))
        }
        OpsKind::UnTracked(prep) => prep.finish(B::moe_linear(x.primitive, weight.primitive)),
    }
}

//! The product of rows with one matrix, or with its transpose, under autodiff.

use burn::tensor::ops::FloatTensor;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind, binary};
use burn_autodiff::{Autodiff, NodeId};

use super::SAVED;
use crate::MoeBackend;

/// `x W`, or `x W^T`.
#[derive(Debug)]
struct Linear<const TRANSPOSED: bool>;

impl<B: MoeBackend, const TRANSPOSED: bool> Backward<B, 2> for Linear<TRANSPOSED> {
    /// `x` and the weight, each where the other's gradient is wanted.
    type State = (Option<NodeId>, Option<NodeId>);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let (x, weight) = ops.state;
        let x = x.map(|node| checkpointer.retrieve_node_output(node));
        let weight = weight.map(|node| checkpointer.retrieve_node_output(node));
        binary::<B, _, _>(
            ops.parents,
            ops.node,
            grads,
            |grad| product::<B>(grad, weight.expect(SAVED), !TRANSPOSED),
            |grad| {
                let (rows, columns) = if TRANSPOSED { (grad, x.expect(SAVED)) } else { (x.expect(SAVED), grad) };
                B::moe_linear_backward_weight(rows, columns)
            },
        );
    }
}

pub(super) fn linear<B: MoeBackend, C: CheckpointStrategy, const TRANSPOSED: bool>(
    x: FloatTensor<Autodiff<B, C>>,
    weight: FloatTensor<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    let (needs_weight, needs_x) = (x.is_tracked(), weight.is_tracked());
    match Linear::<TRANSPOSED>.prepare::<C>([x.node.clone(), weight.node.clone()]).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let saved_x = needs_x.then(|| prep.checkpoint(&x));
            let saved_weight = needs_weight.then(|| prep.checkpoint(&weight));
            prep.finish((saved_x, saved_weight), product::<B>(x.primitive, weight.primitive, TRANSPOSED))
        }
        OpsKind::UnTracked(prep) => prep.finish(product::<B>(x.primitive, weight.primitive, TRANSPOSED)),
    }
}

/// `base + x W`.
#[derive(Debug)]
struct LinearOnto;

impl<B: MoeBackend> Backward<B, 3> for LinearOnto {
    /// `x` and the weight, each where the other's gradient is wanted.
    type State = (Option<NodeId>, Option<NodeId>);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let (x, weight) = ops.state;
        let grad = grads.consume::<B>(&ops.node);
        let [base_id, x_id, weight_id] = ops.parents.map(|parent| parent.map(|node| node.id));
        if let (Some(id), Some(weight)) = (x_id, weight) {
            let weight = checkpointer.retrieve_node_output(weight);
            grads.register::<B>(id, B::moe_linear_backward_x(grad.clone(), weight));
        }
        if let (Some(id), Some(x)) = (weight_id, x) {
            let x = checkpointer.retrieve_node_output(x);
            grads.register::<B>(id, B::moe_linear_backward_weight(x, grad.clone()));
        }
        if let Some(id) = base_id {
            grads.register::<B>(id, grad);
        }
    }
}

pub(super) fn linear_onto<B: MoeBackend, C: CheckpointStrategy>(
    base: FloatTensor<Autodiff<B, C>>,
    x: FloatTensor<Autodiff<B, C>>,
    weight: FloatTensor<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    let (needs_weight, needs_x) = (x.is_tracked(), weight.is_tracked());
    let parents = [base.node, x.node.clone(), weight.node.clone()];
    match LinearOnto.prepare::<C>(parents).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let saved_x = needs_x.then(|| prep.checkpoint(&x));
            let saved_weight = needs_weight.then(|| prep.checkpoint(&weight));
            let output = B::moe_linear_onto(base.primitive, x.primitive, weight.primitive);
            prep.finish((saved_x, saved_weight), output)
        }
        OpsKind::UnTracked(prep) => prep.finish(B::moe_linear_onto(base.primitive, x.primitive, weight.primitive)),
    }
}

fn product<B: MoeBackend>(x: FloatTensor<B>, weight: FloatTensor<B>, transposed: bool) -> FloatTensor<B> {
    if transposed { B::moe_linear_backward_x(x, weight) } else { B::moe_linear(x, weight) }
}

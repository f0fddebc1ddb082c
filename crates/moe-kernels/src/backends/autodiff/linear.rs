//! The product of rows with one matrix, or with its transpose, under autodiff.

use burn::tensor::ops::FloatTensor;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind, binary};
use burn_autodiff::{Autodiff, NodeId};

use super::SAVED;
use crate::MoeBackend;

/// `x` times the weight.
#[derive(Debug)]
pub(super) struct Plain;

/// `x` times the transposed weight.
#[derive(Debug)]
pub(super) struct Transposed;

/// One of the two products and its gradients.
pub(super) trait Linear<B: MoeBackend>: Backward<B, 2, State = Saved> {
    fn forward(x: FloatTensor<B>, weight: FloatTensor<B>) -> FloatTensor<B>;
    fn grad_x(grad: FloatTensor<B>, weight: FloatTensor<B>) -> FloatTensor<B>;
    fn grad_weight(x: FloatTensor<B>, grad: FloatTensor<B>) -> FloatTensor<B>;
}

/// `x` and the weight, each where the other's gradient is wanted.
type Saved = (Option<NodeId>, Option<NodeId>);

impl<B: MoeBackend> Linear<B> for Plain {
    fn forward(x: FloatTensor<B>, weight: FloatTensor<B>) -> FloatTensor<B> {
        B::moe_linear(x, weight)
    }

    fn grad_x(grad: FloatTensor<B>, weight: FloatTensor<B>) -> FloatTensor<B> {
        B::moe_linear_backward_x(grad, weight)
    }

    fn grad_weight(x: FloatTensor<B>, grad: FloatTensor<B>) -> FloatTensor<B> {
        B::moe_linear_backward_weight(x, grad)
    }
}

impl<B: MoeBackend> Linear<B> for Transposed {
    fn forward(x: FloatTensor<B>, weight: FloatTensor<B>) -> FloatTensor<B> {
        B::moe_linear_backward_x(x, weight)
    }

    fn grad_x(grad: FloatTensor<B>, weight: FloatTensor<B>) -> FloatTensor<B> {
        B::moe_linear(grad, weight)
    }

    fn grad_weight(x: FloatTensor<B>, grad: FloatTensor<B>) -> FloatTensor<B> {
        B::moe_linear_backward_weight(grad, x)
    }
}

impl<B: MoeBackend> Backward<B, 2> for Plain {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        backward::<B, Self>(ops, grads, checkpointer);
    }
}

impl<B: MoeBackend> Backward<B, 2> for Transposed {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        backward::<B, Self>(ops, grads, checkpointer);
    }
}

fn backward<B: MoeBackend, L: Linear<B>>(ops: Ops<Saved, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
    let (x, weight) = ops.state;
    let x = x.map(|node| checkpointer.retrieve_node_output(node));
    let weight = weight.map(|node| checkpointer.retrieve_node_output(node));
    binary::<B, _, _>(
        ops.parents,
        ops.node,
        grads,
        |grad| L::grad_x(grad, weight.expect(SAVED)),
        |grad| L::grad_weight(x.expect(SAVED), grad),
    );
}

pub(super) fn linear<B: MoeBackend, C: CheckpointStrategy, L: Linear<B>>(
    product: L,
    x: FloatTensor<Autodiff<B, C>>,
    weight: FloatTensor<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    let (needs_weight, needs_x) = (x.is_tracked(), weight.is_tracked());
    match product.prepare::<C>([x.node.clone(), weight.node.clone()]).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let saved_x = needs_x.then(|| prep.checkpoint(&x));
            let saved_weight = needs_weight.then(|| prep.checkpoint(&weight));
            prep.finish((saved_x, saved_weight), L::forward(x.primitive, weight.primitive))
        }
        OpsKind::UnTracked(prep) => prep.finish(L::forward(x.primitive, weight.primitive)),
    }
}

//! Sums along one dimension, and division by one number per row, under autodiff.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{Shape, TensorMetadata};
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn_autodiff::{Autodiff, NodeId};

use super::register;
use crate::MoeBackend;

#[derive(Debug)]
struct SumDim;

impl<B: MoeBackend> Backward<B, 1> for SumDim {
    type State = Shape;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        unary::<B, _>(ops.parents, ops.node, grads, |grad| B::float_expand(grad, ops.state));
    }
}

pub(super) fn sum_dim<B: MoeBackend, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    dim: usize,
) -> FloatTensor<Autodiff<B, C>> {
    let (shape, prep) = (x.primitive.shape(), SumDim.prepare::<C>([x.node]).compute_bound().stateful());
    let output = B::moe_sum_dim(x.primitive, dim);
    match prep {
        OpsKind::Tracked(prep) => prep.finish(shape, output),
        OpsKind::UnTracked(prep) => prep.finish(output),
    }
}

#[derive(Debug)]
struct DivideRows;

impl<B: MoeBackend> Backward<B, 2> for DivideRows {
    type State = (FloatTensor<B>, NodeId);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let (output, divisors) = ops.state;
        let divisors = checkpointer.retrieve_node_output(divisors);
        let grad = grads.consume::<B>(&ops.node);
        let found = B::moe_divide_rows_backward(output, divisors, grad);
        register::<B, 2>(grads, ops.parents.map(|parent| parent.map(|node| node.id)), found);
    }
}

pub(super) fn divide_rows<B: MoeBackend, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    divisors: FloatTensor<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    match DivideRows.prepare::<C>([x.node.clone(), divisors.node.clone()]).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let saved = prep.checkpoint(&divisors);
            let output = B::moe_divide_rows(x.primitive, divisors.primitive);
            prep.finish((output.clone(), saved), output)
        }
        OpsKind::UnTracked(prep) => prep.finish(B::moe_divide_rows(x.primitive, divisors.primitive)),
    }
}

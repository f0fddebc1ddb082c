//! The chosen scores of top-K, and the others, under autodiff.

use burn::tensor::TensorMetadata;
use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind, unary};

use crate::MoeBackend;

#[derive(Debug)]
struct TopKValues;

#[derive(Debug, Clone)]
struct State<B: Backend> {
    indices: IntTensor<B>,
    num_experts: usize,
}

impl<B: MoeBackend> Backward<B, 1> for TopKValues {
    type State = State<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let State { indices, num_experts } = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |grad| B::moe_top_k_backward(grad, indices, num_experts));
    }
}

pub(super) fn values<B: MoeBackend, C: CheckpointStrategy>(
    scores: FloatTensor<Autodiff<B, C>>,
    indices: IntTensor<B>,
) -> FloatTensor<Autodiff<B, C>> {
    let [_, num_experts] = scores.primitive.shape().dims();
    match TopKValues.prepare::<C>([scores.node]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let values = B::moe_top_k_values(scores.primitive, indices.clone());
            prep.finish(State { indices, num_experts }, values)
        }
        OpsKind::UnTracked(prep) => prep.finish(B::moe_top_k_values(scores.primitive, indices)),
    }
}

#[derive(Debug)]
struct Unchosen;

impl<B: MoeBackend> Backward<B, 1> for Unchosen {
    type State = IntTensor<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        unary::<B, _>(ops.parents, ops.node, grads, |grad| B::moe_unchosen(grad, ops.state));
    }
}

pub(super) fn unchosen<B: MoeBackend, C: CheckpointStrategy>(
    scores: FloatTensor<Autodiff<B, C>>,
    indices: IntTensor<B>,
) -> FloatTensor<Autodiff<B, C>> {
    match Unchosen.prepare::<C>([scores.node]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let output = B::moe_unchosen(scores.primitive, indices.clone());
            prep.finish(indices, output)
        }
        OpsKind::UnTracked(prep) => prep.finish(B::moe_unchosen(scores.primitive, indices)),
    }
}

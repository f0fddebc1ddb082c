//! Softmax and its relatives under autodiff.

use burn::tensor::ops::{FloatTensor, IntTensor};
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn_autodiff::{Autodiff, NodeId};

use super::from_input;
use crate::MoeBackend;

#[derive(Debug)]
struct Softmax;

impl<B: MoeBackend> Backward<B, 1> for Softmax {
    type State = FloatTensor<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let output = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |grad| B::moe_softmax_backward(output, grad));
    }
}

pub(super) fn softmax<B: MoeBackend, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    let prep = Softmax.prepare::<C>([x.node]).compute_bound().stateful();
    let output = B::moe_softmax(x.primitive);
    match prep {
        OpsKind::Tracked(prep) => prep.finish(output.clone(), output),
        OpsKind::UnTracked(prep) => prep.finish(output),
    }
}

#[derive(Debug)]
struct LogSumExp;

impl<B: MoeBackend> Backward<B, 1> for LogSumExp {
    type State = NodeId;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let x = checkpointer.retrieve_node_output(ops.state);
        unary::<B, _>(ops.parents, ops.node, grads, |grad| B::moe_log_sum_exp_backward(x, grad));
    }
}

pub(super) fn log_sum_exp<B: MoeBackend, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    from_input::<B, C, _>(LogSumExp, x, B::moe_log_sum_exp)
}

#[derive(Debug)]
struct CrossEntropy;

impl<B: MoeBackend> Backward<B, 1> for CrossEntropy {
    type State = (NodeId, IntTensor<B>);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let (logits, targets) = ops.state;
        let logits = checkpointer.retrieve_node_output(logits);
        unary::<B, _>(ops.parents, ops.node, grads, |grad| B::moe_cross_entropy_backward(logits, targets, grad));
    }
}

pub(super) fn cross_entropy<B: MoeBackend, C: CheckpointStrategy>(
    logits: FloatTensor<Autodiff<B, C>>,
    targets: IntTensor<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    match CrossEntropy.prepare::<C>([logits.node.clone()]).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let state = (prep.checkpoint(&logits), targets.clone());
            prep.finish(state, B::moe_cross_entropy(logits.primitive, targets))
        }
        OpsKind::UnTracked(prep) => prep.finish(B::moe_cross_entropy(logits.primitive, targets)),
    }
}

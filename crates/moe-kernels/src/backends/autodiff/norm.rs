//! Normalisation of rows under autodiff: gain, shift and input get their gradients from one pass.

use burn::tensor::ops::FloatTensor;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};
use burn_autodiff::{Autodiff, NodeId};

use super::register;
use crate::MoeBackend;

/// Nodes of `x` and gain, and epsilon.
type State = (NodeId, NodeId, f64);

#[derive(Debug)]
struct RmsNorm;

impl<B: MoeBackend> Backward<B, 2> for RmsNorm {
    type State = State;

    fn backward(self, ops: Ops<State, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let (x, gamma, epsilon) = ops.state;
        let [x, gamma] = [x, gamma].map(|node| checkpointer.retrieve_node_output(node));
        let grad = grads.consume::<B>(&ops.node);
        let parents = ops.parents.map(|parent| parent.map(|node| node.id));
        register::<B, 2>(grads, parents, B::moe_rms_norm_backward(x, gamma, epsilon, grad));
    }
}

pub(super) fn rms_norm<B: MoeBackend, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    gamma: FloatTensor<Autodiff<B, C>>,
    epsilon: f64,
) -> FloatTensor<Autodiff<B, C>> {
    let prep = RmsNorm.prepare::<C>([x.node.clone(), gamma.node.clone()]).compute_bound();
    match prep.stateful() {
        OpsKind::Tracked(mut prep) => {
            let state = (prep.checkpoint(&x), prep.checkpoint(&gamma), epsilon);
            prep.finish(state, B::moe_rms_norm(x.primitive, gamma.primitive, epsilon))
        }
        OpsKind::UnTracked(prep) => prep.finish(B::moe_rms_norm(x.primitive, gamma.primitive, epsilon)),
    }
}

#[derive(Debug)]
struct LayerNorm;

impl<B: MoeBackend> Backward<B, 3> for LayerNorm {
    type State = State;

    fn backward(self, ops: Ops<State, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let (x, gamma, epsilon) = ops.state;
        let [x, gamma] = [x, gamma].map(|node| checkpointer.retrieve_node_output(node));
        let grad = grads.consume::<B>(&ops.node);
        let parents = ops.parents.map(|parent| parent.map(|node| node.id));
        register::<B, 3>(grads, parents, B::moe_layer_norm_backward(x, gamma, epsilon, grad));
    }
}

pub(super) fn layer_norm<B: MoeBackend, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    gamma: FloatTensor<Autodiff<B, C>>,
    beta: FloatTensor<Autodiff<B, C>>,
    epsilon: f64,
) -> FloatTensor<Autodiff<B, C>> {
    let prep = LayerNorm.prepare::<C>([x.node.clone(), gamma.node.clone(), beta.node.clone()]).compute_bound();
    match prep.stateful() {
        OpsKind::Tracked(mut prep) => {
            let state = (prep.checkpoint(&x), prep.checkpoint(&gamma), epsilon);
            prep.finish(state, B::moe_layer_norm(x.primitive, gamma.primitive, beta.primitive, epsilon))
        }
        OpsKind::UnTracked(prep) => {
            prep.finish(B::moe_layer_norm(x.primitive, gamma.primitive, beta.primitive, epsilon))
        }
    }
}

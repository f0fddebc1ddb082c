//! Rotary positions and causal attention under autodiff.

use burn::tensor::backend::AutodiffBackend;
use burn::tensor::ops::FloatTensor;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn_autodiff::{Autodiff, NodeId};

use super::register;
use crate::MoeBackend;

#[derive(Debug)]
struct Rotary;

impl<B: MoeBackend> Backward<B, 1> for Rotary {
    /// Cosines, sines, direction of the forward pass.
    type State = (FloatTensor<B>, FloatTensor<B>, bool);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (cos, sin, inverse) = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |grad| B::moe_rotary(grad, cos, sin, !inverse));
    }
}

pub(super) fn rotary<B: MoeBackend, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    cos: FloatTensor<Autodiff<B, C>>,
    sin: FloatTensor<Autodiff<B, C>>,
    inverse: bool,
) -> FloatTensor<Autodiff<B, C>> {
    let (cos, sin) = (cos.primitive, sin.primitive);
    let prep = Rotary.prepare::<C>([x.node]).compute_bound().stateful();
    let output = B::moe_rotary(x.primitive, cos.clone(), sin.clone(), inverse);
    match prep {
        OpsKind::Tracked(prep) => prep.finish((cos, sin, inverse), output),
        OpsKind::UnTracked(prep) => prep.finish(output),
    }
}

#[derive(Debug)]
struct CausalAttention;

impl<B: MoeBackend> Backward<B, 3> for CausalAttention {
    /// Nodes of query, key and value; both outputs; the scale.
    type State = ([NodeId; 3], [FloatTensor<B>; 2], f64);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let (inputs, outputs, scale) = ops.state;
        let inputs = inputs.map(|node| checkpointer.retrieve_node_output(node));
        let grad = grads.consume::<B>(&ops.node);
        let parents = ops.parents.map(|parent| parent.map(|node| node.id));
        register::<B, 3>(grads, parents, B::moe_causal_attention_backward(inputs, outputs, scale, grad));
    }
}

/// The second output, the log-sum-exp of the scores, gets no gradient.
pub(super) fn causal_attention<B: MoeBackend, C: CheckpointStrategy>(
    inputs: [FloatTensor<Autodiff<B, C>>; 3],
    scale: f64,
) -> [FloatTensor<Autodiff<B, C>>; 2] {
    let prep = CausalAttention.prepare::<C>(inputs.each_ref().map(|input| input.node.clone()));
    match prep.compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let nodes = inputs.each_ref().map(|input| prep.checkpoint(input));
            let [output, lse] = forward::<B, C>(&inputs, scale);
            let outputs = [output.clone(), lse.clone()];
            [prep.finish((nodes, outputs, scale), output), constant::<B, C>(lse)]
        }
        OpsKind::UnTracked(prep) => {
            let [output, lse] = forward::<B, C>(&inputs, scale);
            [prep.finish(output), constant::<B, C>(lse)]
        }
    }
}

/// Borrows, for the tensors live until the op is recorded: a backward pass of another thread frees what nobody holds.
fn forward<B: MoeBackend, C: CheckpointStrategy>(
    inputs: &[FloatTensor<Autodiff<B, C>>; 3],
    scale: f64,
) -> [FloatTensor<B>; 2] {
    let [query, key, value] = inputs.each_ref().map(|input| input.primitive.clone());
    B::moe_causal_attention(query, key, value, scale)
}

fn constant<B: MoeBackend, C: CheckpointStrategy>(value: FloatTensor<B>) -> FloatTensor<Autodiff<B, C>> {
    Autodiff::<B, C>::from_inner(value)
}

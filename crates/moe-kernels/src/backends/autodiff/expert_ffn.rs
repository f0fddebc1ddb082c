//! The grouped feed-forward network under autodiff.
//!
//! Its inputs are saved as nodes, which gradient checkpointing can recompute; the pre-activation is saved itself.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};
use burn_autodiff::{Autodiff, NodeId};

use crate::portable::{unwrap, wrap};
use crate::{Activation, ExpertPlan, FfnGrads, FfnNeeds, FfnSaved, FfnWeights, MoeBackend};

#[derive(Debug)]
struct ExpertFfn;

/// What is kept between the passes: nodes in the order tokens, gates, weights.
#[derive(Debug, Clone)]
struct State<B: Backend> {
    inputs: Vec<NodeId>,
    has_bias: [bool; 2],
    activation: Activation,
    pre_activation: FloatTensor<B>,
    plan: ExpertPlan<B>,
}

pub(super) fn expert_ffn<B: MoeBackend, C: CheckpointStrategy>(
    tokens: FloatTensor<Autodiff<B, C>>,
    gates: FloatTensor<Autodiff<B, C>>,
    weights: FfnWeights<Autodiff<B, C>>,
    plan: &ExpertPlan<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    let (activation, has_bias) = (weights.activation, [weights.b_in.is_some(), weights.b_out.is_some()]);
    let mut inputs = vec![tokens, gates, unwrap(weights.w_in), unwrap(weights.w_out)];
    inputs.extend(weights.b_in.map(unwrap));
    inputs.extend(weights.b_out.map(unwrap));
    let plan = plan.cast::<B>();
    match inputs.len() {
        4 => record::<B, C, 4>(inputs, has_bias, activation, plan),
        5 => record::<B, C, 5>(inputs, has_bias, activation, plan),
        _ => record::<B, C, 6>(inputs, has_bias, activation, plan),
    }
}

fn record<B: MoeBackend, C: CheckpointStrategy, const N: usize>(
    inputs: Vec<FloatTensor<Autodiff<B, C>>>,
    has_bias: [bool; 2],
    activation: Activation,
    plan: ExpertPlan<B>,
) -> FloatTensor<Autodiff<B, C>> {
    let nodes = std::array::from_fn::<_, N, _>(|i| inputs[i].node.clone());
    // The tensors live until the op is recorded: a backward pass of another thread frees what nobody holds.
    let primitives = inputs.iter().map(|input| input.primitive.clone()).collect::<Vec<_>>();
    let (tokens, gates, weights) = sorted::<B>(primitives.into_iter(), has_bias, activation);
    match ExpertFfn.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let saved = inputs.iter().map(|input| prep.checkpoint(input)).collect();
            let (output, pre_activation) = B::moe_expert_ffn_saving(tokens, gates, weights, &plan);
            prep.finish(State { inputs: saved, has_bias, activation, pre_activation, plan }, output)
        }
        OpsKind::UnTracked(prep) => prep.finish(B::moe_expert_ffn(tokens, gates, weights, &plan)),
    }
}

/// The list of inputs by name.
fn sorted<B: MoeBackend>(
    mut inputs: impl Iterator<Item = FloatTensor<B>>,
    has_bias: [bool; 2],
    activation: Activation,
) -> (FloatTensor<B>, FloatTensor<B>, FfnWeights<B>) {
    let mut next = || inputs.next().expect("there is an input for every name");
    let (tokens, gates, w_in, w_out) = (next(), next(), wrap(next()), wrap(next()));
    let [b_in, b_out] = has_bias.map(|has| has.then(|| wrap::<B, 2>(next())));
    (tokens, gates, FfnWeights { w_in, w_out, b_in, b_out, activation })
}

impl<B: MoeBackend, const N: usize> Backward<B, N> for ExpertFfn {
    type State = State<B>;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let State { inputs, has_bias, activation, pre_activation, plan } = ops.state;
        let inputs: Vec<FloatTensor<B>> =
            inputs.into_iter().map(|node| checkpointer.retrieve_node_output(node)).collect();
        let (tokens, gates, weights) = sorted::<B>(inputs.into_iter(), has_bias, activation);
        let grad = grads.consume::<B>(&ops.node);

        let needs = needs(ops.parents.each_ref().map(Option::is_some), has_bias);
        let saved = FfnSaved { tokens, gates, weights, pre_activation, plan };
        let found = B::moe_expert_ffn_backward(saved, grad, needs);
        for (parent, grad) in ops.parents.into_iter().zip(in_order(found, has_bias)) {
            if let (Some(parent), Some(grad)) = (parent, grad) {
                grads.register::<B>(parent.id, grad);
            }
        }
    }
}

fn needs<const N: usize>(tracked: [bool; N], [has_b_in, has_b_out]: [bool; 2]) -> FfnNeeds {
    FfnNeeds {
        tokens: tracked[0],
        gates: tracked[1],
        w_in: tracked[2],
        w_out: tracked[3],
        b_in: has_b_in && tracked[4],
        b_out: has_b_out && tracked[N - 1],
    }
}

fn in_order<B: Backend>(grads: FfnGrads<B>, [has_b_in, has_b_out]: [bool; 2]) -> Vec<Option<FloatTensor<B>>> {
    let mut list = vec![grads.tokens, grads.gates, grads.w_in, grads.w_out];
    list.extend(has_b_in.then_some(grads.b_in));
    list.extend(has_b_out.then_some(grads.b_out));
    list
}

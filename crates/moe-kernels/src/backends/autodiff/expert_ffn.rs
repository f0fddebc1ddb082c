//! The grouped feed-forward network under autodiff.
//!
//! Its inputs are saved as nodes, which gradient checkpointing can recompute; the pre-activation is saved itself.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::FloatTensor;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};
use burn_autodiff::{Autodiff, NodeId};

use crate::portable::{unwrap, wrap};
use crate::{Activation, ExpertPlan, FfnGrads, FfnNeeds, FfnSaved, FfnSummed, FfnWeights, MoeBackend};

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
    record(tokens, gates, weights, plan, |[tokens, gates], weights, plan, tracked| match tracked {
        true => {
            let (output, pre_activation) = B::moe_expert_ffn_saving(tokens, gates, weights, plan);
            (output, Some(pre_activation), ())
        }
        false => (B::moe_expert_ffn(tokens, gates, weights, plan), None, ()),
    })
    .0
}

/// The sums are no part of the graph.
pub(super) fn expert_ffn_summing<B: MoeBackend, C: CheckpointStrategy>(
    tokens: FloatTensor<Autodiff<B, C>>,
    gates: FloatTensor<Autodiff<B, C>>,
    shares: FloatTensor<Autodiff<B, C>>,
    weights: FfnWeights<Autodiff<B, C>>,
    plan: &ExpertPlan<Autodiff<B, C>>,
) -> FfnSummed<Autodiff<B, C>> {
    let run = |[tokens, gates]: [FloatTensor<B>; 2], weights, plan: &ExpertPlan<B>, _| {
        let found = B::moe_expert_ffn_summing(tokens, gates, shares.primitive, weights, plan);
        let constants = [found.pre_activation.clone(), found.sums, found.totals];
        (found.output, Some(found.pre_activation), constants)
    };
    let (output, constants) = record(tokens, gates, weights, plan, run);
    let [pre_activation, sums, totals] = constants.map(Autodiff::<B, C>::from_inner);
    FfnSummed { output, pre_activation, sums, totals }
}

/// Runs the op and puts it into the graph. `run` is told whether it is tracked; then it must give the pre-activation.
fn record<B: MoeBackend, C: CheckpointStrategy, R>(
    tokens: FloatTensor<Autodiff<B, C>>,
    gates: FloatTensor<Autodiff<B, C>>,
    weights: FfnWeights<Autodiff<B, C>>,
    plan: &ExpertPlan<Autodiff<B, C>>,
    run: impl FnOnce(
        [FloatTensor<B>; 2],
        FfnWeights<B>,
        &ExpertPlan<B>,
        bool,
    ) -> (FloatTensor<B>, Option<FloatTensor<B>>, R),
) -> (FloatTensor<Autodiff<B, C>>, R) {
    let (activation, has_bias) = (weights.activation, [weights.b_in.is_some(), weights.b_out.is_some()]);
    let mut inputs = vec![tokens, gates, unwrap(weights.w_in), unwrap(weights.w_out)];
    inputs.extend(weights.b_in.map(unwrap));
    inputs.extend(weights.b_out.map(unwrap));
    let (plan, count) = (plan.cast::<B>(), inputs.len());
    let run = |inputs: Vec<FloatTensor<B>>, tracked| {
        let (tokens, gates, weights) = sorted::<B>(inputs.into_iter(), has_bias, activation);
        run([tokens, gates], weights, &plan, tracked)
    };
    let rest = |pre_activation| State { inputs: Vec::new(), has_bias, activation, pre_activation, plan: plan.clone() };
    match count {
        4 => record_inputs::<B, C, R, 4>(inputs, run, rest),
        5 => record_inputs::<B, C, R, 5>(inputs, run, rest),
        _ => record_inputs::<B, C, R, 6>(inputs, run, rest),
    }
}

/// `rest` makes the state from the pre-activation, all but the inputs.
fn record_inputs<B: MoeBackend, C: CheckpointStrategy, R, const N: usize>(
    inputs: Vec<FloatTensor<Autodiff<B, C>>>,
    run: impl FnOnce(Vec<FloatTensor<B>>, bool) -> (FloatTensor<B>, Option<FloatTensor<B>>, R),
    rest: impl FnOnce(FloatTensor<B>) -> State<B>,
) -> (FloatTensor<Autodiff<B, C>>, R) {
    let nodes = std::array::from_fn::<_, N, _>(|i| inputs[i].node.clone());
    // The tensors live until the op is recorded: a backward pass of another thread frees what nobody holds.
    let primitives = inputs.iter().map(|input| input.primitive.clone()).collect::<Vec<_>>();
    match ExpertFfn.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let saved = inputs.iter().map(|input| prep.checkpoint(input)).collect();
            let (output, pre_activation, more) = run(primitives, true);
            let pre_activation = pre_activation.expect("a tracked op keeps its pre-activation");
            (prep.finish(State { inputs: saved, ..rest(pre_activation) }, output), more)
        }
        OpsKind::UnTracked(prep) => {
            let (output, _, more) = run(primitives, false);
            (prep.finish(output), more)
        }
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

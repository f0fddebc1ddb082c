//! The grouped feed-forward network on tensors of the CPU backends: f32 through the loops, other dtypes through the
//! portable body.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorMetadata};

use super::{HostBackend, HostTensor, all_f32};
use crate::cpu::expert_ffn::{self, Needs, Problem};
use crate::cpu::unset::Unset;
use crate::host_plan::HostPlan;
use crate::portable::{self, unwrap};
use crate::{Activation, ExpertPlan, FfnGrads, FfnNeeds, FfnSaved, FfnSummed, FfnWeights};

/// The inputs, contiguous.
struct Inputs<T> {
    tokens: T,
    gates: T,
    w_in: T,
    w_out: T,
    b_in: Option<T>,
    b_out: Option<T>,
    activation: Activation,
    d_hidden: usize,
}

impl<T: HostTensor> Inputs<T> {
    fn new<B: HostBackend<FloatTensorPrimitive = T>>(tokens: T, gates: T, weights: &FfnWeights<B>) -> Self {
        let bias = |bias: &Option<Tensor<B, 2>>| bias.clone().map(|bias| unwrap(bias).contiguous());
        Self {
            tokens: tokens.contiguous(),
            gates: gates.contiguous(),
            w_in: unwrap(weights.w_in.clone()).contiguous(),
            w_out: unwrap(weights.w_out.clone()).contiguous(),
            b_in: bias(&weights.b_in),
            b_out: bias(&weights.b_out),
            activation: weights.activation,
            d_hidden: weights.d_hidden(),
        }
    }

    fn problem<'a>(&'a self, plan: &'a HostPlan) -> Problem<'a> {
        Problem {
            d_model: self.tokens.shape()[1],
            d_hidden: self.d_hidden,
            activation: self.activation,
            plan,
            tokens: self.tokens.values(),
            gates: self.gates.values(),
            w_in: self.w_in.values(),
            w_out: self.w_out.values(),
            b_in: self.b_in.as_ref().map(T::values),
            b_out: self.b_out.as_ref().map(T::values),
        }
    }
}

/// Whether the loops can take these inputs.
fn fits<B: HostBackend>(tokens: &FloatTensor<B>, gates: &FloatTensor<B>, weights: &FfnWeights<B>) -> bool {
    let biases = [&weights.b_in, &weights.b_out];
    let weights = [unwrap(weights.w_in.clone()), unwrap(weights.w_out.clone())];
    let biases = biases.into_iter().flatten().map(|bias| unwrap(bias.clone()));
    let parameters: Vec<_> = weights.into_iter().chain(biases).collect();
    all_f32::<B>(&[tokens, gates]) && all_f32::<B>(&parameters.iter().collect::<Vec<_>>())
}

/// Output `[T, D]` and, if `keep`, the pre-activation `[R, C]`.
pub(in crate::backends) fn forward<B: HostBackend>(
    tokens: FloatTensor<B>,
    gates: FloatTensor<B>,
    weights: FfnWeights<B>,
    plan: &ExpertPlan<B>,
    keep: bool,
) -> (FloatTensor<B>, Option<FloatTensor<B>>) {
    if !fits(&tokens, &gates, &weights) {
        let (output, pre_activation) = portable::expert_ffn::<B>(tokens, gates, weights, plan);
        return (output, keep.then_some(pre_activation));
    }
    let (inputs, plan) = (Inputs::new(tokens, gates, &weights), plan.on_host());
    let problem = inputs.problem(&plan);
    let (num_tokens, num_rows) = (problem.num_tokens(), plan.num_served());

    let (output_len, len) = (num_tokens * problem.d_model, num_rows * problem.columns());
    let mut output = Unset::new(output_len);
    let mut pre_activation = keep.then(|| Unset::new(len));
    expert_ffn::forward(&problem, pre_activation.as_mut().map(|z| z.slots(len)), output.slots(output_len));
    // SAFETY: the forward pass has written every slot of both.
    let (output, pre_activation) =
        unsafe { (output.assume_set(output_len), pre_activation.map(|z| z.assume_set(len))) };
    let tensor = |values, shape: [usize; 2]| FloatTensor::<B>::from_values(values, shape.into());
    (tensor(output, [num_tokens, problem.d_model]), pre_activation.map(|z| tensor(z, [num_rows, problem.columns()])))
}

pub(in crate::backends) fn forward_summing<B: HostBackend>(
    tokens: FloatTensor<B>,
    gates: FloatTensor<B>,
    shares: FloatTensor<B>,
    weights: FfnWeights<B>,
    plan: &ExpertPlan<B>,
) -> FfnSummed<B> {
    if !fits(&tokens, &gates, &weights) || !all_f32::<B>(&[&shares]) {
        return portable::expert_ffn_summing::<B>(tokens, gates, shares, weights, plan);
    }
    let (inputs, plan, shares) = (Inputs::new(tokens, gates, &weights), plan.on_host(), shares.contiguous());
    let problem = inputs.problem(&plan);
    let (num_tokens, num_rows, num_experts) = (problem.num_tokens(), plan.num_served(), plan.num_experts());

    let (output_len, len) = (num_tokens * problem.d_model, num_rows * problem.columns());
    let (mut output, mut pre_activation) = (Unset::new(output_len), Unset::new(len));
    let slots = (pre_activation.slots(len), output.slots(output_len));
    let sums = expert_ffn::forward_summing(&problem, shares.values(), slots.0, slots.1);
    // SAFETY: the forward pass has written every slot of both.
    let (output, pre_activation) = unsafe { (output.assume_set(output_len), pre_activation.assume_set(len)) };
    FfnSummed {
        output: FloatTensor::<B>::from_values(output, [num_tokens, problem.d_model].into()),
        pre_activation: FloatTensor::<B>::from_values(pre_activation, [num_rows, problem.columns()].into()),
        sums: FloatTensor::<B>::from_values(sums.outputs, [num_experts, problem.d_model].into()),
        totals: FloatTensor::<B>::from_values(sums.shares, [num_experts].into()),
    }
}

pub(in crate::backends) fn backward<B: HostBackend>(
    saved: FfnSaved<B>,
    grad: FloatTensor<B>,
    needs: FfnNeeds,
) -> FfnGrads<B> {
    if !fits(&saved.tokens, &saved.gates, &saved.weights) {
        return portable::expert_ffn_backward::<B>(saved, grad, needs);
    }
    let FfnSaved { tokens, gates, weights, pre_activation, plan } = saved;
    let (inputs, plan) = (Inputs::new(tokens, gates, &weights), plan.on_host());
    let (problem, grad) = (inputs.problem(&plan), grad.contiguous());
    // After a forward pass nobody else holds the pre-activation, so that it is overwritten where it lies.
    let mut pre_activation = pre_activation.contiguous();
    let FfnNeeds { tokens, gates: _, w_in, w_out, b_in, b_out } = needs;
    let wanted = Needs { tokens, w_in, w_out, b_in, b_out };
    let found = expert_ffn::backward(&problem, pre_activation.values_mut(), grad.values(), wanted);

    let like = |tensor: &FloatTensor<B>, grad| FloatTensor::<B>::from_values(grad, tensor.shape());
    FfnGrads {
        tokens: needs.tokens.then(|| like(&inputs.tokens, found.tokens)),
        gates: needs.gates.then(|| like(&inputs.gates, found.gates)),
        w_in: needs.w_in.then(|| like(&inputs.w_in, found.w_in)),
        w_out: needs.w_out.then(|| like(&inputs.w_out, found.w_out)),
        b_in: inputs.b_in.as_ref().filter(|_| needs.b_in).map(|bias| like(bias, found.b_in)),
        b_out: inputs.b_out.as_ref().filter(|_| needs.b_out).map(|bias| like(bias, found.b_out)),
    }
}

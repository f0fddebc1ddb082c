//! Load-balance loss: the product of how often experts are chosen and how probable they are.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use moe_kernels::{MoeBackend, softmax_rows, sum_dim, unchosen};
use serde::{Deserialize, Serialize};

use super::{one_hot, zero};
use crate::Routing;
use crate::ranks::mean_over_ranks;

/// What `f_i` counts in the [load-balance loss](load_balance_loss), in which libraries differ; `T` tokens, `E` experts, `K` experts per token.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum BalanceConvention {
    /// Share of the `T * K` slots: 1 when balanced, whatever `K`. Switch Transformer, Megatron-LM, MegaBlocks,
    /// Default MoE.
    #[default]
    Switch,
    /// Slots per token, not divided by `K`: `K` when balanced. Hugging Face, which also pools all layers into one
    /// batch ([`load_balance_loss_pooled`]).
    HuggingFace,
    /// Share of first choices only. GShard ([Lepikhin et al., 2020](https://arxiv.org/abs/2006.16668)), V-MoE, Tutel. Under noise the
    /// probabilities are those with noise, as the choices are (V-MoE); in the other conventions they are without.
    #[serde(rename = "gshard")]
    GShard,
    /// As `Switch`, for each sequence by itself: [`sequence_balance_loss`]. DeepSeek-V3.
    Sequence,
}

/// The load-balance loss of one layer, `[1]`, f32; 0 for an empty batch.
///
/// `L = E * sum_i f_i P_i`, where `P_i` is the mean probability of expert `i` over the tokens and `f_i` its share of
/// the choices, a constant for the gradient ([Fedus et al., 2021](https://arxiv.org/abs/2101.03961), eq. 4 to 6), counted as the
/// convention says. The gradient flows through the probabilities only. [`BalanceConvention::Sequence`] takes the batch for one sequence here.
///
/// # Panics
///
/// With [`BalanceConvention::Sequence`] as [`sequence_balance_loss`].
pub fn load_balance_loss<B: MoeBackend>(routing: &Routing<B>, convention: BalanceConvention) -> Tensor<B, 1> {
    if routing.num_tokens() == 0 {
        return zero(routing);
    }
    let tokens = routing.num_tokens() as f64;
    let fractions = match convention {
        BalanceConvention::Switch if routing.plan.is_partial() => shares(mean_over_ranks(slot_counts(routing))),
        BalanceConvention::Switch => slot_counts(routing) / (tokens * routing.top_k() as f64),
        BalanceConvention::HuggingFace => slot_counts(routing) / tokens,
        BalanceConvention::GShard => first_choices(routing) / tokens,
        BalanceConvention::Sequence => return sequence_balance_loss(routing, 1),
    };
    let fractions = mean_over_ranks(fractions);
    let probs = sum_dim(weighed_probs(routing, convention), 0).squeeze_dim::<1>(0) / tokens;
    (fractions * probs).sum() * routing.num_experts() as f64
}

/// What `P_i` is the mean of, `[T, E]`.
fn weighed_probs<B: MoeBackend>(routing: &Routing<B>, convention: BalanceConvention) -> Tensor<B, 2> {
    match &routing.noise {
        Some(noise) if convention == BalanceConvention::GShard => softmax_rows(noise.logits.clone()),
        _ => routing.probs.clone(),
    }
}

/// The load-balance loss of each sequence by itself, averaged over the sequences, `[1]`, f32; 0 for an empty batch.
///
/// `(1 / B) sum_b E sum_i f_bi P_bi`, where `f_bi` and `P_bi` are taken over the tokens of sequence `b` alone, and `f_bi` is the share of its
/// slots: 1 when every sequence is balanced (DeepSeek-V3's complementary sequence-wise loss,
/// [DeepSeek-AI, 2024](https://arxiv.org/abs/2412.19437), eq. 17 to 20). Ours: `f` counts the experts that were chosen, with selection bias
/// and groups, not the `K` largest scores.
///
/// # Panics
///
/// Panics unless the tokens are those of `num_sequences` sequences of one length, and for a partial decision about tokens, whose slots per
/// token differ; not where it was a capacity that made it partial.
pub fn sequence_balance_loss<B: MoeBackend>(routing: &Routing<B>, num_sequences: usize) -> Tensor<B, 1> {
    let (tokens, experts, top_k) = (routing.num_tokens(), routing.num_experts(), routing.top_k());
    let whole = num_sequences > 0 && tokens.is_multiple_of(num_sequences);
    assert!(whole, "sequence_balance_loss: {tokens} tokens are not {num_sequences} sequences of one length");
    if tokens == 0 {
        return zero(routing);
    }
    let len = tokens / num_sequences;
    let chosen = chosen_experts(routing).reshape([num_sequences, len, experts]);
    let fractions = sum_dim(chosen, 1) / (len * top_k) as f64;
    let probs = sum_dim(routing.probs.clone().reshape([num_sequences, len, experts]), 1) / len as f64;
    (fractions * probs).sum() * (experts as f64 / num_sequences as f64)
}

/// 1 where a token chose an expert, `[T, E]`, a constant in the dtype of the routing.
fn chosen_experts<B: MoeBackend>(routing: &Routing<B>) -> Tensor<B, 2> {
    let before_capacity = routing.before_capacity.is_some();
    assert!(before_capacity || !routing.plan.is_partial(), "sequence_balance_loss: tokens must have K experts each");
    let ones = routing.probs.clone().detach().ones_like();
    ones.clone() - unchosen(ones, routing.experts.clone())
}

/// The Hugging Face form of a whole model, `[1]`, f32: the tokens of all layers count as one batch.
///
/// # Panics
///
/// Panics when there are no layers, or when they differ in `E`.
pub fn load_balance_loss_pooled<B: MoeBackend>(routings: &[Routing<B>]) -> Tensor<B, 1> {
    let num_experts = routings.first().expect("load_balance_loss_pooled: no layers").num_experts();
    assert!(
        routings.iter().all(|r| r.num_experts() == num_experts),
        "load_balance_loss_pooled: layers differ in their number of experts"
    );
    let tokens = routings.iter().map(Routing::num_tokens).sum::<usize>() as f64;
    if tokens == 0.0 {
        return zero(&routings[0]);
    }
    let counts = sum(routings.iter().map(slot_counts));
    let probs = sum(routings.iter().map(|r| sum_dim(r.probs.clone(), 0).squeeze_dim::<1>(0)));
    (mean_over_ranks(counts / tokens) * (probs / tokens)).sum() * num_experts as f64
}

fn sum<B: Backend>(tensors: impl Iterator<Item = Tensor<B, 1>>) -> Tensor<B, 1> {
    tensors.reduce(|a, b| a + b).expect("at least one layer")
}

/// Slots per expert, `[E]`, in the dtype of the routing.
fn slot_counts<B: MoeBackend>(routing: &Routing<B>) -> Tensor<B, 1> {
    routing.demand().float().cast(routing.probs.dtype())
}

/// Counts divided by their sum, or by 1 where it is 0.
fn shares<B: Backend>(counts: Tensor<B, 1>) -> Tensor<B, 1> {
    let sum = counts.clone().sum().clamp_min(1.0).expand(counts.dims());
    counts / sum
}

/// Tokens per expert counting only the most probable one, `[E]`, in the dtype of the routing.
fn first_choices<B: MoeBackend>(routing: &Routing<B>) -> Tensor<B, 1> {
    let first = routing.experts.clone().slice([0..routing.num_tokens(), 0..1]);
    sum_dim(one_hot(first, routing), 0).squeeze_dim(0)
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;

    use super::*;
    use crate::routing::RouterNoise;

    /// Relative, f32.
    const TOLERANCE: f64 = 1e-5;

    fn matrix(rows: [[f32; 3]; 2]) -> Tensor<Flex, 2> {
        Tensor::from_data(rows, &Default::default())
    }

    /// Choices by probabilities with noise, 0.2, 0.7, 0.1 and 0.6, 0.3, 0.1.
    fn noisy_routing() -> Routing<Flex> {
        let (probs, noisy) = (matrix([[0.5, 0.4, 0.1], [0.3, 0.3, 0.4]]), matrix([[0.2, 0.7, 0.1], [0.6, 0.3, 0.1]]));
        let (gates, experts) = moe_kernels::top_k(noisy.clone(), 1);
        let noise = RouterNoise { std: noisy.ones_like(), logits: noisy.log() };
        Routing { noise: Some(noise), ..Routing::new(probs.clone().log(), probs, gates, experts) }
    }

    #[test]
    fn gshards_loss_is_of_the_probabilities_with_noise_and_the_others_without() {
        let loss = |convention| load_balance_loss(&noisy_routing(), convention).into_data().iter::<f64>().next();
        // f = (0.5, 0.5, 0); P = (0.4, 0.5, 0.1) with noise, (0.4, 0.35, 0.25) without.
        for (convention, expected) in [
            (BalanceConvention::GShard, 1.35),
            (BalanceConvention::Switch, 1.125),
            (BalanceConvention::HuggingFace, 1.125),
        ] {
            let found = loss(convention).expect("one number");
            assert!((found - expected).abs() < TOLERANCE * expected, "{convention:?}: {found}");
        }
    }
}

//! Decisions in which tokens have different numbers of experts.

use burn::tensor::{Bool, ElementConversion, Tensor};
use moe_kernels::{MoeBackend, chosen, sum_dim, top_k};

use crate::Routing;

/// The decision in which expert `e` serves token `t` where `members` says so, with the gate `scores_te`.
///
/// `K` is the largest number of experts of a token, at least 1; a token with fewer has slots that nobody serves, whose
/// expert is `E` and whose gate is zero. Best first. Reads one number from the device.
///
/// # Shapes
///
/// - logits, probs, scores: `[T, E]`; the scores of members are not negative
/// - members: `[T, E]`
pub(super) fn route_members<B: MoeBackend>(
    logits: Tensor<B, 2>,
    probs: Tensor<B, 2>,
    scores: Tensor<B, 2>,
    members: Tensor<B, 2, Bool>,
) -> Routing<B> {
    let [tokens, num_experts] = scores.dims();
    let counts = sum_dim(members.clone().float(), 1);
    let most = counts.max().into_scalar().elem::<f64>().max(1.0) as usize;
    let strangers = members.bool_not();
    let ranked = scores.clone().detach().mask_fill(strangers.clone(), -1.0);
    let (ranked, experts) = top_k(ranked, most);
    let nobody = ranked.lower_elem(0.0);
    let experts = experts.mask_fill(nobody, num_experts as i64);

    // The score of nobody is zero: a column that is not learned.
    let nobodys = Tensor::zeros([tokens, 1], (&scores.device(), scores.dtype()));
    let gates = chosen(Tensor::cat(vec![scores.clone(), nobodys], 1), experts.clone());
    Routing { scores, ..Routing::partial(logits, probs, gates, experts) }
}

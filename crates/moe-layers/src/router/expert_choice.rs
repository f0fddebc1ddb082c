//! Expert choice: each expert takes the tokens that it scores best.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use moe_kernels::{MoeBackend, softmax_rows, top_k, unchosen};

use super::RouterConfig;
use super::members::route_members;
use super::scores::{check_width, logits, routing_dtype};
use crate::Routing;

/// Lets each expert take the tokens that it scores best ([Zhou et al., 2022](https://arxiv.org/abs/2202.09368)). Created by
/// [`RouterConfig`].
///
/// Every expert serves the same number of tokens, `C = ceil(T K / E)`; a token may have any number of experts, or none.
/// The softmax is over the experts of a token, the choice over the tokens of an expert; a gate is the softmax value.
///
/// **Not for causal models**: whether a token is served depends on the tokens after it, in training and in evaluation, and a
/// decoder that sees one token at a time chooses otherwise than it learned to.
#[derive(Module, Debug)]
pub struct ExpertChoiceRouter<B: Backend> {
    /// `[D, E]`.
    pub weight: Param<Tensor<B, 2>>,
    top_k: usize,
}

impl<B: Backend> ExpertChoiceRouter<B> {
    pub(super) fn new(base: &RouterConfig, device: &B::Device) -> Self {
        Self { weight: base.init_weight(device), top_k: base.top_k }
    }
}

impl<B: MoeBackend> ExpertChoiceRouter<B> {
    /// Each expert takes `ceil(T K / E)` tokens; the earlier token wins a tie.
    ///
    /// Reads one number from the device: how many experts the most wanted token has.
    ///
    /// # Shapes
    ///
    /// - tokens: `[T, D]`
    /// - output: `K` is that number; see [`Routing::partial`]
    ///
    /// # Panics
    ///
    /// Panics when the tokens do not have width `D`.
    pub fn forward(&self, tokens: Tensor<B, 2>) -> Routing<B> {
        check_width("ExpertChoiceRouter", &tokens, &self.weight);
        let (dtype, device) = (routing_dtype(tokens.dtype()), tokens.device());
        let ([num_tokens, _], [_, num_experts]) = (tokens.dims(), self.weight.dims());
        if num_tokens == 0 {
            return Routing::empty(num_experts, self.top_k, dtype, &device);
        }
        let logits = logits(tokens, &self.weight);
        let probs = softmax_rows(logits.clone());
        let taken = (num_tokens * self.top_k).div_ceil(num_experts);
        let (_, taken) = top_k(probs.clone().detach().transpose(), taken);
        let ones = Tensor::ones([num_experts, num_tokens], (&device, dtype));
        let members = unchosen(ones, taken).transpose().equal_elem(0.0);
        route_members(logits, probs.clone(), probs, members)
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::Distribution;

    use super::*;
    use crate::router::{Router, RouterRule};

    fn router(d_model: usize, num_experts: usize, top_k: usize) -> ExpertChoiceRouter<Flex> {
        let config = RouterConfig::new(d_model, num_experts, top_k).with_rule(RouterRule::ExpertChoice);
        match config.init(&Default::default()) {
            Router::ExpertChoice(router) => router,
            other => panic!("not the router that was asked for: {other:?}"),
        }
    }

    #[test]
    fn every_expert_serves_the_same_number_of_tokens() {
        let tokens = Tensor::random([30, 6], Distribution::Normal(0.0, 3.0), &Default::default());
        let routing = router(6, 4, 2).forward(tokens);
        assert_eq!(routing.counts().into_data().iter::<i64>().collect::<Vec<_>>(), [15; 4]);
    }

    /// Against a sort of each column of the probabilities; `T K / E` is 22 / 5.
    #[test]
    fn an_expert_takes_the_tokens_that_it_scores_best() {
        let tokens = Tensor::random([11, 6], Distribution::Normal(0.0, 2.0), &Default::default());
        let routing = router(6, 5, 2).forward(tokens);
        let probs: Vec<f32> = routing.probs.to_data().to_vec().expect("f32");
        let mut expected = vec![vec![]; 11];
        for e in 0..5 {
            let mut order: Vec<usize> = (0..11).collect();
            order.sort_by(|&a, &b| probs[b * 5 + e].total_cmp(&probs[a * 5 + e]));
            order[..5].iter().for_each(|&t| expected[t].push(e as i64));
        }
        let width = routing.experts.dims()[1];
        let experts: Vec<i64> = routing.experts.to_data().iter::<i64>().collect();
        let gates: Vec<f32> = routing.gates.to_data().to_vec().expect("f32");
        assert_eq!(width, expected.iter().map(Vec::len).max().expect("eleven tokens"));
        for t in 0..11 {
            let row = t * width..(t + 1) * width;
            let mut served: Vec<i64> = experts[row.clone()].iter().copied().filter(|&e| e < 5).collect();
            served.sort_unstable();
            assert_eq!(served, expected[t], "token {t}");
            for (&e, &gate) in experts[row.clone()].iter().zip(&gates[row]) {
                assert_eq!(gate, if e < 5 { probs[t * 5 + e as usize] } else { 0.0 });
            }
        }
    }
}

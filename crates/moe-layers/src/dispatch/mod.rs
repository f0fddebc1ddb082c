//! How tokens reach their experts: siblings with one signature, chosen by the caller.

mod capacity;
mod dense;
mod grouped;

pub use capacity::{Capacity, DropPolicy};
pub use dense::dense;
pub use grouped::grouped;

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::Tensor;

    use super::*;
    use crate::{Moe, MoeConfig, Routing};

    /// A layer of width 8 with four experts, and its decision about three tokens.
    fn routed() -> (Moe<Flex>, Routing<Flex>) {
        let moe = MoeConfig::new(8, 16, 4, 2).init::<Flex>(&Default::default());
        let routing = moe.router.forward(ones(3, 8));
        (moe, routing)
    }

    fn ones(rows: usize, width: usize) -> Tensor<Flex, 2> {
        Tensor::ones([rows, width], &Default::default())
    }

    #[test]
    #[should_panic(expected = "dense: tokens [T, D] and routing disagree on T")]
    fn the_oracle_of_another_number_of_tokens_panics() {
        let (moe, routing) = routed();
        dense(ones(1, 8), &moe.experts, &routing);
    }

    #[test]
    #[should_panic(expected = "dense: tokens [T, D] and routing disagree on T")]
    fn a_decision_about_one_token_is_not_one_about_all() {
        let moe = routed().0;
        let routing = moe.router.forward(ones(1, 8));
        dense(ones(3, 8), &moe.experts, &routing);
    }

    #[test]
    #[should_panic(expected = "dense: tokens [T, D] and experts disagree on D")]
    fn the_oracle_of_another_width_panics() {
        let (moe, routing) = routed();
        dense(ones(3, 6), &moe.experts, &routing);
    }

    #[test]
    #[should_panic(expected = "dense: experts and routing disagree on E")]
    fn the_oracle_of_another_number_of_experts_panics() {
        let other = MoeConfig::new(8, 16, 5, 2).init::<Flex>(&Default::default());
        dense(ones(3, 8), &other.experts, &routed().1);
    }

    #[test]
    #[should_panic(expected = "expert_ffn: tokens [T, D] and the plan disagree on T")]
    fn dispatching_another_number_of_tokens_panics() {
        let (moe, routing) = routed();
        grouped(ones(2, 8), &moe.experts, &routing);
    }

    #[test]
    #[should_panic(expected = "expert_ffn: tokens [T, D] and w_in [E, D, C] disagree on D")]
    fn dispatching_tokens_of_another_width_panics() {
        let (moe, routing) = routed();
        grouped(ones(3, 6), &moe.experts, &routing);
    }

    #[test]
    #[should_panic(expected = "expert_ffn: w_in [E, D, C] and the plan disagree on E")]
    fn dispatching_to_another_number_of_experts_panics() {
        let other = MoeConfig::new(8, 16, 5, 2).init::<Flex>(&Default::default());
        grouped(ones(3, 8), &other.experts, &routed().1);
    }
}

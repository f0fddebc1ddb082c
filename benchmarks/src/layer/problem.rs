//! One layer with its weights, its tokens and its routing, made of numbers that Python can make as well.
//!
//! The routing is a router's: tokens have unit variance and so have the logits; feature 0 of every token is 1, so that
//! row 0 of the router's weight is a bias, which makes loads as uneven as one likes.

use burn::module::{AutodiffModule, Param};
use burn::tensor::{DType, Tensor};
use moe_kernels::AutodiffMoeBackend;
use moe_layers::{Experts, Moe, MoeConfig, Routing};
use moe_tests::Case;
use moe_train::config::Dtype;

use super::Shape;
use crate::data::{hashed, tensor};

/// Seeds of the numbers; `torch/layer.py` has the same.
const TOKENS: u64 = 1;
const ROUTER: u64 = 2;
const W_IN: u64 = 3;
const W_OUT: u64 = 4;

/// What one layer is measured on.
pub(crate) struct Problem<B: AutodiffMoeBackend> {
    pub(crate) case: Case,
    pub(crate) dtype: Dtype,
    pub(crate) skew: f64,
    pub(crate) moe: Moe<B>,
    pub(crate) device: B::Device,
}

impl<B: AutodiffMoeBackend> Problem<B> {
    pub(crate) fn new(shape: &Shape, skew: f64, dtype: Dtype, device: &B::Device) -> Self {
        let case = shape.case;
        let (d, f, e) = (case.d_model, case.d_hidden, case.experts);
        let mut moe: Moe<B> = MoeConfig::new(d, f, e, case.top_k).with_normalize_gates(true).init(device);
        *moe.router.weight_mut().expect("a learned router") = Param::from_tensor(router(&case, skew, device));
        moe.experts.w_in = Param::from_tensor(tensor([e, d, 2 * f], W_IN, (d as f64).sqrt().recip(), device));
        moe.experts.w_out = Param::from_tensor(tensor([e, f, d], W_OUT, (f as f64).sqrt().recip(), device));
        Self { case, dtype, skew, moe, device: device.clone() }
    }

    pub(crate) fn experts(&self) -> &Experts<B> {
        &self.moe.experts
    }

    /// New tokens `[T, D]` that get a gradient, in the dtype that is measured.
    pub(crate) fn tokens(&self) -> Tensor<B, 2> {
        self.tokens_as(self.dtype)
    }

    /// The same tokens, rounded the same way, in another dtype.
    pub(crate) fn tokens_as(&self, dtype: Dtype) -> Tensor<B, 2> {
        let (t, d) = (self.case.tokens, self.case.d_model);
        let mut numbers = hashed(t * d, TOKENS, 3f64.sqrt());
        numbers.iter_mut().step_by(d).for_each(|first| *first = 1.0);
        let tokens = Tensor::<B, 1>::from_floats(numbers.as_slice(), &self.device).reshape([t, d]);
        tokens.cast(DType::from(self.dtype)).cast(DType::from(dtype)).detach().require_grad()
    }

    /// The router's decision about those tokens; its gates are a leaf that gets a gradient. Made without autodiff, which
    /// would keep the router's graph until some backward pass.
    pub(crate) fn routing(&self) -> Routing<B> {
        let routing = self.moe.valid().router.forward(self.tokens().inner());
        let [logits, probs, gates] = [routing.logits, routing.probs, routing.gates].map(Tensor::from_inner);
        Routing::new(logits, probs, gates.require_grad(), Tensor::from_inner(routing.experts))
    }
}

fn router<B: AutodiffMoeBackend>(case: &Case, skew: f64, device: &B::Device) -> Tensor<B, 2> {
    let (d, e) = (case.d_model, case.experts);
    let mut numbers = hashed(d * e, ROUTER, (3.0 / d as f64).sqrt());
    for (expert, bias) in numbers[..e].iter_mut().enumerate() {
        *bias = -(skew as f32) * ((expert + 1) as f32).ln();
    }
    Tensor::<B, 1>::from_floats(numbers.as_slice(), device).reshape([d, e])
}

/// Slots of each expert, `[E]`.
pub(crate) fn loads<B: AutodiffMoeBackend>(routing: &Routing<B>) -> Vec<usize> {
    routing.counts().into_data().iter::<i64>().map(|count| count as usize).collect()
}

/// Slots of the busiest expert over the mean.
pub(crate) fn load_ratio(loads: &[usize]) -> f64 {
    let busiest = loads.iter().copied().max().unwrap_or(0);
    (busiest * loads.len()) as f64 / loads.iter().sum::<usize>().max(1) as f64
}

#[cfg(test)]
mod tests {
    use moe_train::backend::Training;

    use super::*;

    fn ratio(shape: &str, skew: f64) -> f64 {
        let problem = Problem::<Training>::new(&shape.parse().unwrap(), skew, Dtype::F32, &Default::default());
        load_ratio(&loads(&problem.routing()))
    }

    #[test]
    fn without_skew_loads_are_even_and_with_it_they_are_not() {
        let even = ratio("2000,64,8,8,2", 0.0);
        let uneven = ratio("2000,64,8,8,2", 2.0);
        assert!(even < 1.5 && uneven > 2.5, "{even} {uneven}");
    }

    #[test]
    fn a_token_with_every_expert_loads_them_equally() {
        assert_eq!(ratio("50,16,8,4,4", 3.0), 1.0);
    }

    #[test]
    fn the_busiest_of_idle_experts_is_not_infinitely_busy() {
        assert_eq!(load_ratio(&[0, 0]), 0.0);
        assert_eq!(load_ratio(&[6, 2, 1]), 2.0);
    }
}

//! Expert feed-forward networks with stacked weights; they know nothing of routing.

mod dense;

use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::tensor::activation::relu;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
pub use dense::{DenseFeedForward, DenseFeedForwardConfig, project};
pub use moe_kernels::Activation;
use moe_kernels::{ExpertPlan, FfnWeights, MoeBackend, gelu, grouped_matmul, swiglu};

/// Configuration to create [`Experts`] using the [init function](ExpertsConfig::init).
#[derive(Config, Debug)]
pub struct ExpertsConfig {
    /// Number of experts, `E`.
    pub num_experts: usize,
    /// Width of a token, `D`.
    pub d_model: usize,
    /// Width inside an expert, `F`.
    pub d_hidden: usize,
    /// Between the two products. Default: SwiGLU
    #[config(default = "Activation::SwiGlu")]
    pub activation: Activation,
    /// Whether both products add a bias, which starts at zero. Default: false
    #[config(default = false)]
    pub bias: bool,
    /// How every expert's matrices start. Default: uniform in `+-1 / sqrt(fan in)`, as burn's `Linear`
    #[config(default = "default_initializer()")]
    pub initializer: Initializer,
}

pub(crate) fn default_initializer() -> Initializer {
    Initializer::KaimingUniform { gain: 1.0 / 3f64.sqrt(), fan_out_only: false }
}

impl ExpertsConfig {
    /// Creates the experts on `device`.
    ///
    /// # Panics
    ///
    /// Panics when a size is zero.
    pub fn init<B: Backend>(&self, device: &B::Device) -> Experts<B> {
        let (e, d, f) = (self.num_experts, self.d_model, self.d_hidden);
        assert!(e > 0 && d > 0 && f > 0, "ExpertsConfig: no size may be zero, got E = {e}, D = {d}, F = {f}");
        let f_in = self.activation.columns(f);
        let matrix = |shape: [usize; 3]| self.initializer.init_with(shape, Some(shape[1]), Some(shape[2]), device);
        let bias = |width| self.bias.then(|| Initializer::Zeros.init([e, width], device));
        Experts {
            w_in: matrix([e, d, f_in]),
            w_out: matrix([e, f, d]),
            b_in: bias(f_in),
            b_out: bias(d),
            activation: self.activation,
        }
    }
}

/// `E` feed-forward networks `activation(x W_in + b_in) W_out + b_out`. Created by [`ExpertsConfig`].
#[derive(Module, Debug)]
pub struct Experts<B: Backend> {
    /// `[E, D, 2F]` for SwiGLU, gate columns first; otherwise `[E, D, F]`.
    pub w_in: Param<Tensor<B, 3>>,
    /// `[E, F, D]`.
    pub w_out: Param<Tensor<B, 3>>,
    /// `[E, 2F]` or `[E, F]`.
    pub b_in: Option<Param<Tensor<B, 2>>>,
    /// `[E, D]`.
    pub b_out: Option<Param<Tensor<B, 2>>>,
    /// Between the two products.
    #[module(skip)]
    pub activation: Activation,
}

impl<B: Backend> Experts<B> {
    /// Number of experts, `E`.
    pub fn num_experts(&self) -> usize {
        self.w_in.dims()[0]
    }

    /// Width of a token, `D`.
    pub fn d_model(&self) -> usize {
        self.w_in.dims()[1]
    }

    /// Width inside an expert, `F`.
    pub fn d_hidden(&self) -> usize {
        self.w_out.dims()[1]
    }

    /// The parameters in `dtype`, for [`expert_ffn`](moe_kernels::expert_ffn).
    pub fn weights(&self, dtype: DType) -> FfnWeights<B> {
        let bias = |bias: &Option<Param<Tensor<B, 2>>>| bias.as_ref().map(|bias| bias.val().cast(dtype));
        FfnWeights {
            w_in: self.w_in.val().cast(dtype),
            w_out: self.w_out.val().cast(dtype),
            b_in: bias(&self.b_in),
            b_out: bias(&self.b_out),
            activation: self.activation,
        }
    }
}

impl<B: MoeBackend> Experts<B> {
    /// Applies to each row the expert that the plan assigns to it.
    ///
    /// # Shapes
    ///
    /// - rows: `[R, D]`, sorted by expert
    /// - output: `[R, D]`, dtype of the rows
    ///
    /// # Panics
    ///
    /// Panics when the shapes do not fit the plan.
    pub fn forward(&self, rows: Tensor<B, 2>, plan: &ExpertPlan<B>) -> Tensor<B, 2> {
        let hidden = grouped_linear(rows, &self.w_in, self.b_in.as_ref(), plan);
        grouped_linear(activate(self.activation, hidden), &self.w_out, self.b_out.as_ref(), plan)
    }
}

/// The activation as an op on its own.
///
/// # Shapes
///
/// - input: `[R, C]` with `C = activation.columns(F)`
/// - output: `[R, F]`
pub fn activate<B: MoeBackend>(activation: Activation, input: Tensor<B, 2>) -> Tensor<B, 2> {
    match activation {
        Activation::SwiGlu => swiglu(input),
        Activation::Gelu => gelu(input),
        Activation::Relu => relu(input),
    }
}

/// A bias is the product of a column of ones with `[E, 1, O]`: its gradient then is a grouped sum, not a scatter.
fn grouped_linear<B: MoeBackend>(
    rows: Tensor<B, 2>,
    weight: &Param<Tensor<B, 3>>,
    bias: Option<&Param<Tensor<B, 2>>>,
    plan: &ExpertPlan<B>,
) -> Tensor<B, 2> {
    let (dtype, device, num_rows) = (rows.dtype(), rows.device(), rows.dims()[0]);
    let product = grouped_matmul(rows, weight.val().cast(dtype), plan);
    match bias {
        None => product,
        Some(bias) => {
            let ones = Tensor::ones([num_rows, 1], (&device, dtype));
            product + grouped_matmul(ones, bias.val().cast(dtype).unsqueeze_dim(1), plan)
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;

    use super::*;

    #[test]
    fn swiglu_doubles_the_columns_of_the_first_matrix() {
        let shapes = |activation| {
            let config = ExpertsConfig::new(3, 4, 5).with_activation(activation).with_bias(true);
            let experts = config.init::<Flex>(&Default::default());
            (experts.w_in.dims(), experts.b_in.expect("bias is on").dims())
        };
        assert_eq!(shapes(Activation::SwiGlu), ([3, 4, 10], [3, 10]));
        assert_eq!(shapes(Activation::Gelu), ([3, 4, 5], [3, 5]));
    }

    #[test]
    #[should_panic(expected = "no size may be zero")]
    fn a_zero_width_panics() {
        ExpertsConfig::new(3, 4, 0).init::<Flex>(&Default::default());
    }

    #[test]
    #[should_panic(expected = "grouped_matmul: rows [R, I] and the plan disagree on R = T * K")]
    fn rows_of_another_plan_panic() {
        let experts = ExpertsConfig::new(3, 4, 5).init::<Flex>(&Default::default());
        let plan = ExpertPlan::<Flex>::new(Tensor::zeros([3, 2], &Default::default()), 3);
        experts.forward(Tensor::ones([5, 4], &Default::default()), &plan);
    }

    #[test]
    #[should_panic(expected = "no size may be zero, got E = 0, D = 4, F = 5")]
    fn no_experts_panic() {
        ExpertsConfig::new(0, 4, 5).init::<Flex>(&Default::default());
    }

    #[test]
    #[should_panic(expected = "no size may be zero, got E = 3, D = 0, F = 5")]
    fn tokens_without_width_panic() {
        ExpertsConfig::new(3, 0, 5).init::<Flex>(&Default::default());
    }
}

//! What goes into the grouped feed-forward op and what its backward pass needs and yields.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;

use crate::{Activation, ExpertPlan};

/// Stacked parameters of `E` feed-forward networks `activation(x W_in + b_in) W_out + b_out`.
///
/// `C` is [`activation.columns(F)`](Activation::columns): `2F` for SwiGLU, gate columns first, otherwise `F`.
#[derive(Debug, Clone)]
pub struct FfnWeights<B: Backend> {
    /// `[E, D, C]`.
    pub w_in: Tensor<B, 3>,
    /// `[E, F, D]`.
    pub w_out: Tensor<B, 3>,
    /// `[E, C]`.
    pub b_in: Option<Tensor<B, 2>>,
    /// `[E, D]`.
    pub b_out: Option<Tensor<B, 2>>,
    /// Between the two products.
    pub activation: Activation,
}

impl<B: Backend> FfnWeights<B> {
    /// Number of experts, `E`.
    pub fn num_experts(&self) -> usize {
        self.w_in.dims()[0]
    }

    /// Width of a token, `D`.
    pub fn d_model(&self) -> usize {
        self.w_in.dims()[1]
    }

    /// Columns of the first product, `C`.
    pub fn columns(&self) -> usize {
        self.w_in.dims()[2]
    }

    /// Width inside an expert, `F`.
    pub fn d_hidden(&self) -> usize {
        self.w_out.dims()[1]
    }
}

/// What the backward pass of the op works from: the inputs, and of everything computed only the pre-activation.
#[derive(Debug, Clone)]
pub struct FfnSaved<B: Backend> {
    /// `[T, D]`.
    pub tokens: FloatTensor<B>,
    /// `[T, K]`.
    pub gates: FloatTensor<B>,
    /// The parameters.
    pub weights: FfnWeights<B>,
    /// `x W_in + b_in` of every row, `[R, C]`.
    pub pre_activation: FloatTensor<B>,
    /// Who serves whom.
    pub plan: ExpertPlan<B>,
}

/// Which gradients are wanted; a frozen parameter costs nothing, and the gates next to nothing either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FfnNeeds {
    /// Of the tokens.
    pub tokens: bool,
    /// Of the gates.
    pub gates: bool,
    /// Of `w_in`.
    pub w_in: bool,
    /// Of `w_out`.
    pub w_out: bool,
    /// Of `b_in`.
    pub b_in: bool,
    /// Of `b_out`.
    pub b_out: bool,
}

/// The gradients that were wanted, in the shapes of the inputs.
#[derive(Debug, Clone)]
pub struct FfnGrads<B: Backend> {
    /// `[T, D]`.
    pub tokens: Option<FloatTensor<B>>,
    /// `[T, K]`.
    pub gates: Option<FloatTensor<B>>,
    /// `[E, D, C]`.
    pub w_in: Option<FloatTensor<B>>,
    /// `[E, F, D]`.
    pub w_out: Option<FloatTensor<B>>,
    /// `[E, C]`.
    pub b_in: Option<FloatTensor<B>>,
    /// `[E, D]`.
    pub b_out: Option<FloatTensor<B>>,
}

/// Result of [`moe_expert_ffn_summing`](crate::MoeBackend::moe_expert_ffn_summing).
#[derive(Debug, Clone)]
pub struct FfnSummed<B: Backend> {
    /// `[T, D]`.
    pub output: FloatTensor<B>,
    /// `x W_in + b_in` of every row, `[R, C]`, for the backward pass.
    pub pre_activation: FloatTensor<B>,
    /// Outputs of each expert before the gate, times their shares, summed over its rows: `[E, D]`, f32 (f64 if the
    /// tokens are).
    pub sums: FloatTensor<B>,
    /// Shares of each expert, summed over its rows: `[E]`, dtype of `sums`.
    pub totals: FloatTensor<B>,
}

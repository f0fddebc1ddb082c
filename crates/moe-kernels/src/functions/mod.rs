//! The ops on tensors: shapes are checked here, once, for every backend.

mod activation;
mod attention;
mod expert_ffn;
mod grouped;
mod linear;
mod norm;
mod optim;
mod reduce;
mod rotary;
mod routing;
mod rows;
mod softmax;
mod threads;

pub use activation::{gelu, swiglu};
pub use attention::causal_attention;
pub use expert_ffn::{expert_ffn, expert_ffn_summing};
pub use grouped::{grouped_matmul, grouped_matmul_transposed, grouped_outer};
pub use linear::{linear, linear_onto, linear_transposed};
pub use norm::{layer_norm, rms_norm};
pub use optim::{adamw_step, adamw_step_scaled, sum_of_squares};
pub use reduce::{divide_rows, sum_dim};
pub use rotary::rotary;
pub use routing::{chosen, top_k, unchosen};
pub use rows::{combine_rows, dispatch_rows};
pub use softmax::{cross_entropy_rows, log_sum_exp_rows, softmax_rows};
pub use threads::with_threads_awake;

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor, TensorPrimitive};

fn primitive<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}

fn tensor<B: Backend, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

/// A kernel reads all its operands as one type, and would take the bits of another one for numbers.
fn check_dtypes(what: &str, dtypes: [DType; 2]) {
    assert!(dtypes[0] == dtypes[1], "{what} must have one dtype, got {dtypes:?}");
}

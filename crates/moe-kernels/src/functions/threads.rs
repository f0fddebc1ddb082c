//! Around the ops.

use crate::MoeBackend;

/// Runs `work`, as a training step or a validation, with the threads that share its ops kept awake.
///
/// On a CPU backend an op splits its work over rayon's threads. Those go to sleep between two ops, and a step of a small model is
/// hundreds of short ones. In here they look for work until `work` ends, or 50 ms pass without any; `work` itself runs on a thread of
/// rayon's pool. `work` is the same to the last bit. On any other backend it just runs.
///
/// One at a time: within another `work`, on a thread of a rayon pool, or while another thread is in here, `work` runs where it is
/// called, without more.
///
/// ```
/// use burn::backend::{Autodiff, Flex};
/// use burn::tensor::Tensor;
/// use moe_kernels::with_threads_awake;
///
/// type B = Autodiff<Flex>;
/// let x = Tensor::<B, 2>::ones([2, 3], &Default::default()).require_grad();
/// let grad = with_threads_awake::<B, _>(|| x.grad(&x.clone().powf_scalar(2.0).sum().backward()));
/// assert_eq!(grad.unwrap().into_data(), burn::tensor::TensorData::from([[2.0_f32; 3]; 2]));
/// ```
pub fn with_threads_awake<B: MoeBackend, R: Send>(work: impl FnOnce() -> R + Send) -> R {
    B::moe_with_threads_awake(work)
}

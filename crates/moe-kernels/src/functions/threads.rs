//! Around the ops.

use crate::MoeBackend;

/// Runs `work`, as a training step or a validation, with the threads that share its ops kept awake.
///
/// On a CPU backend an op splits its work over the threads of a rayon pool. Those go to sleep between two ops, and a step of a small
/// model is hundreds of short ones. In here they look for work until `work` ends, or 50 ms pass without any. The results are the same to the
/// last bit.
///
/// That needs a thread of the pool: on any other `work` just runs, as it does within another `work` and on other backends. A program
/// makes its main thread one, before anything else uses rayon, by `rayon::ThreadPoolBuilder::new().use_current_thread().build_global()`. Its
/// ops are then shared without waking another thread first. Not a program whose threads train side by side: the main thread takes part
/// in the work of others only while it waits in an op.
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
pub fn with_threads_awake<B: MoeBackend, R>(work: impl FnOnce() -> R) -> R {
    B::moe_with_threads_awake(work)
}

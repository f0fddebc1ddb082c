//! Gradients of a rank as vectors, and back.

use burn::module::{AutodiffModule, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};

/// Puts what `exchange` returns in the place of every gradient of `model`, as a vector, in the order of its parameters.
pub(super) fn exchanged_gradients<B: AutodiffBackend, M: AutodiffModule<B>>(
    model: &M,
    mut grads: GradientsParams,
    exchange: &mut dyn FnMut(Tensor<B::InnerBackend, 1>) -> Tensor<B::InnerBackend, 1>,
) -> GradientsParams {
    model.visit(&mut Exchange::<B::InnerBackend> { grads: &mut grads, exchange });
    grads
}

struct Exchange<'a, I: Backend> {
    grads: &'a mut GradientsParams,
    exchange: &'a mut dyn FnMut(Tensor<I, 1>) -> Tensor<I, 1>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Exchange<'_, B::InnerBackend> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let Some(grad) = self.grads.remove::<B::InnerBackend, D>(param.id) else { return };
        let shape = grad.shape();
        let vector = grad.reshape([shape.num_elements()]);
        let exchanged = (self.exchange)(vector).reshape(shape);
        self.grads.register::<B::InnerBackend, D>(param.id, exchanged);
    }
}

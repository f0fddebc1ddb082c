//! Optimizers for matrices, applied to stacks of matrices.

use burn::optim::{LearningRate, SimpleOptimizer};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

/// Steps every matrix of a stack `[E, .., I, O]` with an optimizer for matrices, each with a state of its own.
///
/// burn's [`Muon`](burn::optim::Muon) orthogonalises one matrix and panics at any other rank; the orthogonalisation is
/// not elementwise, so a stack must not be flattened into one matrix. A matrix `[I, O]` is stepped as the inner optimizer
/// does, bit for bit.
///
/// ```
/// use burn::backend::{Autodiff, Flex};
/// use burn::module::Module;
/// use burn::optim::adaptor::OptimizerAdaptor;
/// use burn::optim::{Muon, MuonConfig};
/// use burn::tensor::backend::AutodiffBackend;
/// use excitation_optim::PerExpert;
///
/// type B = Autodiff<Flex>;
/// # type Model = burn::nn::Linear<B>;
/// let muon: OptimizerAdaptor<PerExpert<Muon<Flex>>, Model, B> = PerExpert::new(MuonConfig::new().build()).into();
/// ```
#[derive(Clone, Debug)]
pub struct PerExpert<O> {
    matrices: O,
}

impl<O> PerExpert<O> {
    /// `matrices` steps one matrix.
    pub fn new(matrices: O) -> Self {
        Self { matrices }
    }
}

impl<B: Backend, O: SimpleOptimizer<B>> SimpleOptimizer<B> for PerExpert<O> {
    /// One state per matrix.
    type State<const D: usize> = Vec<Option<O::State<2>>>;

    /// # Panics
    ///
    /// Panics when the parameter has fewer than two dimensions.
    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<B, D>,
        grad: Tensor<B, D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<B, D>, Option<Self::State<D>>) {
        assert!(D >= 2, "PerExpert steps matrices and stacks of them, got rank {D}: give vectors to another optimizer");
        let shape = tensor.dims();
        let (tensors, grads) = (matrices(tensor), matrices(grad));
        let states = state.unwrap_or_else(|| tensors.iter().map(|_| None).collect());
        let stepped = tensors.into_iter().zip(grads).zip(states);
        let stepped = stepped.map(|((tensor, grad), state)| self.matrices.step(lr, tensor, grad, state));
        let (tensors, states): (Vec<_>, Vec<_>) = stepped.unzip();
        (Tensor::cat(tensors, 0).reshape(shape), Some(states))
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &B::Device) -> Self::State<D> {
        state.into_iter().map(|state| state.map(|state| O::to_device(state, device))).collect()
    }
}

/// `[.., I, O]` to its matrices `[I, O]`.
fn matrices<B: Backend, const D: usize>(stack: Tensor<B, D>) -> Vec<Tensor<B, 2>> {
    let shape = stack.dims();
    let (rows, columns) = (shape[D - 2], shape[D - 1]);
    let count = shape[..D - 2].iter().product::<usize>();
    let flat: Tensor<B, 2> = stack.reshape([count * rows, columns]);
    (0..count).map(|i| flat.clone().slice([i * rows..(i + 1) * rows, 0..columns])).collect()
}

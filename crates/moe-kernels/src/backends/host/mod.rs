//! What the CPU backends share: their tensors as slices, in and out of the loops of [`cpu`](crate::cpu).

pub(super) mod activation;
pub(super) mod attention;
#[expect(unsafe_code, reason = "takes what `cpu` has written")]
pub(super) mod expert_ffn;
mod fused;
pub(super) mod grouped;
pub(super) mod linear;
pub(super) mod norm;
mod ops;
pub(super) mod optim;
pub(super) mod rows;
pub(super) mod softmax;
pub(super) mod top_k;

pub(super) use fused::fused_ops;
pub(super) use ops::host_ops;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Shape, TensorMetadata};

use crate::MoeBackend;

/// A float tensor whose numbers are at hand.
pub(crate) trait HostTensor: TensorMetadata {
    /// The same numbers in row-major order, without gaps; shared when they are already.
    fn contiguous(self) -> Self;

    /// The numbers of a contiguous f32 tensor.
    fn values(&self) -> &[f32];

    /// The numbers of a contiguous f32 tensor, to change: copied first when another tensor shares them.
    fn values_mut(&mut self) -> &mut [f32];

    /// A tensor of these numbers, which are moved.
    fn from_values(values: Vec<f32>, shape: Shape) -> Self;
}

/// A backend whose float tensors are [`HostTensor`]s.
pub(crate) trait HostBackend: MoeBackend<FloatTensorPrimitive: HostTensor> {}

impl<B: MoeBackend<FloatTensorPrimitive: HostTensor>> HostBackend for B {}

const CONTIGUOUS_F32: &str = "the tensor is contiguous and f32";

/// Whether all tensors are f32, as the loops need them.
fn all_f32<B: Backend>(tensors: &[&B::FloatTensorPrimitive]) -> bool {
    tensors.iter().all(|tensor| tensor.dtype() == DType::F32)
}

#[cfg(feature = "flex")]
impl HostTensor for burn_flex::FlexTensor {
    fn contiguous(self) -> Self {
        self.to_contiguous()
    }

    fn values(&self) -> &[f32] {
        self.as_slice().expect(CONTIGUOUS_F32)
    }

    fn values_mut(&mut self) -> &mut [f32] {
        self.storage_mut()
    }

    fn from_values(values: Vec<f32>, shape: Shape) -> Self {
        Self::from_data(burn::tensor::TensorData::new(values, shape))
    }
}

#[cfg(feature = "ndarray")]
impl HostTensor for burn_ndarray::NdArrayTensor {
    fn contiguous(self) -> Self {
        match &self {
            Self::F32(numbers) if numbers.view().as_slice().is_none() => {
                let values = numbers.view().iter().copied().collect();
                Self::from_values(values, self.shape())
            }
            _ => self,
        }
    }

    fn values(&self) -> &[f32] {
        let Self::F32(numbers) = self else { panic!("{CONTIGUOUS_F32}") };
        numbers.view().to_slice().expect(CONTIGUOUS_F32)
    }

    fn values_mut(&mut self) -> &mut [f32] {
        let Self::F32(numbers) = self else { panic!("{CONTIGUOUS_F32}") };
        numbers.ensure_owned().as_slice_mut().expect(CONTIGUOUS_F32)
    }

    fn from_values(values: Vec<f32>, shape: Shape) -> Self {
        Self::from_data(burn::tensor::TensorData::new(values, shape))
    }
}

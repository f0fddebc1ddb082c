//! What every launch needs: readable inputs, outputs, numbers of cubes, vector widths.

use burn::tensor::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl::ir::StorageType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::cubecl::{calculate_cube_count_elemwise, ir::AddressType};
use burn_cubecl::kernel::{into_contiguous, into_contiguous_aligned};
use burn_cubecl::ops::numeric::{empty_device_contiguous_dtype, zeros_client};
use burn_cubecl::ops::reshape;
use burn_cubecl::tensor::CubeTensor;

/// Units of a cube in kernels that do not say otherwise: several planes on every device, and below every limit.
pub(super) const UNITS: usize = 256;

/// Elements of a vector, where sizes allow one: 16 bytes of f32, the widest access of most GPUs.
const VECTOR: usize = 4;

/// The matrix with columns side by side; rows may be padded, as CUDA's allocations are.
pub(super) fn rows_in_order<R: CubeRuntime>(tensor: CubeTensor<R>) -> CubeTensor<R> {
    copied(tensor, into_contiguous_aligned)
}

/// The tensor without gaps, so that an index into it is a position.
pub(super) fn flat<R: CubeRuntime>(tensor: CubeTensor<R>) -> CubeTensor<R> {
    copied(tensor, into_contiguous)
}

/// An empty tensor stays as it is: to copy it would be a kernel of no cubes, which CUDA refuses.
fn copied<R: CubeRuntime>(tensor: CubeTensor<R>, copy: fn(CubeTensor<R>) -> CubeTensor<R>) -> CubeTensor<R> {
    if tensor.meta.num_elements() == 0 { tensor } else { copy(tensor) }
}

/// Uninitialised and without gaps, beside `like`.
pub(super) fn empty<R: CubeRuntime, const D: usize>(
    like: &CubeTensor<R>,
    shape: [usize; D],
    dtype: DType,
) -> CubeTensor<R> {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), Shape::new(shape), dtype)
}

/// Zeros without gaps, beside `like`. burn's own have padded rows on CUDA.
pub(super) fn zeros<R: CubeRuntime>(like: &CubeTensor<R>, shape: impl Into<Shape>, dtype: DType) -> CubeTensor<R> {
    let (shape, client, device) = (shape.into(), like.client.clone(), like.device.clone());
    match shape.num_elements() {
        // CUDA refuses a kernel of no cubes.
        0 => empty_device_contiguous_dtype(client, device, shape, dtype),
        numbers => reshape(zeros_client(client, device, [numbers].into(), dtype), shape),
    }
}

/// At least `cubes` cubes in as many dimensions as the device needs; a kernel compares `CUBE_POS` with the exact number.
pub(super) fn cube_count<R: CubeRuntime>(client: &ComputeClient<R>, cubes: usize) -> CubeCount {
    calculate_cube_count_elemwise(client, cubes, CubeDim::new_1d(1))
}

/// Cubes of [`UNITS`] for one unit an item; a kernel compares `ABSOLUTE_POS` with the number of items.
pub(super) fn one_unit_each<R: CubeRuntime>(client: &ComputeClient<R>, items: usize) -> (CubeCount, CubeDim) {
    (cube_count(client, items.div_ceil(UNITS)), CubeDim::new_1d(UNITS as u32))
}

/// Elements that one access may take: a vector when it divides every row and every step from row to row.
pub(super) fn vector_size<R: CubeRuntime>(tensors: &[&CubeTensor<R>]) -> usize {
    vector_size_up_to(VECTOR, tensors)
}

/// [`vector_size`] with vectors of at most `most` elements.
pub(super) fn vector_size_up_to<R: CubeRuntime>(most: usize, tensors: &[&CubeTensor<R>]) -> usize {
    let whole = |tensor: &CubeTensor<R>, size: usize| {
        let (shape, strides) = (tensor.meta.shape(), tensor.meta.strides());
        let last = shape.num_dims() - 1;
        let supported = tensor.client.io_optimized_vector_sizes(tensor.dtype.size()).any(|s| s == size);
        let steps = strides.iter().take(last).all(|stride| stride.is_multiple_of(size));
        supported && shape[last].is_multiple_of(size) && steps
    };
    let mut sizes = [8, 4].into_iter().filter(|&size| size <= most);
    sizes.find(|&size| tensors.iter().all(|tensor| whole(tensor, size))).unwrap_or(1)
}

/// The widest address any of the tensors needs.
pub(super) fn address_type<R: CubeRuntime>(tensors: &[&CubeTensor<R>]) -> AddressType {
    tensors.iter().map(|tensor| tensor.required_address_type()).max().unwrap_or_default()
}

pub(super) fn storage(dtype: DType) -> StorageType {
    dtype.into()
}

/// The type sums are taken in: f64 for f64, f32 for all others.
pub(super) fn accumulator(dtype: DType) -> StorageType {
    storage(if dtype == DType::F64 { DType::F64 } else { DType::F32 })
}

/// The two sizes of a matrix.
pub(super) fn dims2<R: CubeRuntime>(tensor: &CubeTensor<R>) -> [usize; 2] {
    [tensor.meta.shape()[0], tensor.meta.shape()[1]]
}

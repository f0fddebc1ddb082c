//! One unit an element of the output: the ground truth on the device, and what always works.

use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, cubecl};

use super::{Operands, Product};
use crate::cube::launch::{accumulator, address_type, one_unit_each, storage};

pub(super) fn launch<R: CubeRuntime>(operands: Operands<R>, output: &CubeTensor<R>) {
    let Operands { product, lhs, rhs, offsets, .. } = operands;
    let (count, dim) = one_unit_each(&output.client, output.meta.num_elements());
    let address = address_type(&[&lhs, &rhs, output]);
    let types = [storage(lhs.dtype), accumulator(lhs.dtype), storage(offsets.dtype)];
    let (lhs, rhs, offsets) = (lhs.into_tensor_arg(), rhs.into_tensor_arg(), offsets.into_tensor_arg());
    let (client, target) = (&output.client, output.clone().into_tensor_arg());
    // SAFETY: units beyond the last element end at once; offsets are in `0..=R`. Rows beyond the last offset, which only a partial plan has, are
    // not written: the output is zero there.
    unsafe {
        if product == Product::Outer {
            outer_kernel::launch_unchecked(client, count, dim, address, lhs, rhs, offsets, target, types);
        } else {
            let transposed = product == Product::Transposed;
            rows_kernel::launch_unchecked(client, count, dim, address, lhs, rhs, offsets, target, transposed, types);
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn rows_kernel<F: Float, A: Float, I: Int>(
    lhs: &Tensor<F>,
    weight: &Tensor<F>,
    offsets: &Tensor<I>,
    output: &mut Tensor<F>,
    #[comptime] transposed: bool,
    #[define(F, A, I)] _types: [StorageType; 3],
) {
    let width = output.shape(1);
    let (row, column) = (ABSOLUTE_POS / width, ABSOLUTE_POS % width);
    if row >= output.shape(0) {
        terminate!();
    }
    let experts = weight.shape(0);
    if usize::cast_from(offsets[experts]) <= row {
        terminate!();
    }
    let mut expert = 0usize;
    while usize::cast_from(offsets[expert + 1]) <= row {
        expert += 1;
    }
    let (along_k, along_column) =
        if comptime!(transposed) { (weight.stride(2), weight.stride(1)) } else { (weight.stride(1), weight.stride(2)) };
    let start = expert * weight.stride(0) + column * along_column;

    let mut sum = A::new(0.0);
    for k in 0..lhs.shape(1) {
        sum += A::cast_from(lhs[row * lhs.stride(0) + k]) * A::cast_from(weight[start + k * along_k]);
    }
    output[ABSOLUTE_POS] = F::cast_from(sum);
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn outer_kernel<F: Float, A: Float, I: Int>(
    lhs: &Tensor<F>,
    rhs: &Tensor<F>,
    offsets: &Tensor<I>,
    output: &mut Tensor<F>,
    #[define(F, A, I)] _types: [StorageType; 3],
) {
    let (d_in, d_out) = (output.shape(1), output.shape(2));
    let (line, o) = (ABSOLUTE_POS / d_out, ABSOLUTE_POS % d_out);
    let (expert, i) = (line / d_in, line % d_in);
    if expert >= output.shape(0) {
        terminate!();
    }
    let mut sum = A::new(0.0);
    for row in usize::cast_from(offsets[expert])..usize::cast_from(offsets[expert + 1]) {
        sum += A::cast_from(lhs[row * lhs.stride(0) + i]) * A::cast_from(rhs[row * rhs.stride(0) + o]);
    }
    output[ABSOLUTE_POS] = F::cast_from(sum);
}

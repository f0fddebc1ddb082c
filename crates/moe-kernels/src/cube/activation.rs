//! SwiGLU and its gradient, one launch each.

use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, cubecl};

use super::launch::{accumulator, address_type, dims2, empty, one_unit_each, rows_in_order, storage, vector_size};

/// `[R, 2F]` to `[R, F]`: `silu(z[.., ..F]) * z[.., F..]`.
pub fn swiglu<R: CubeRuntime>(input: CubeTensor<R>) -> CubeTensor<R> {
    let ([rows, width], dtype) = (dims2(&input), input.dtype);
    let output = empty(&input, [rows, width / 2], dtype);
    let input = rows_in_order(input);
    // The halves of a row begin at multiples of what divides their width.
    let vector = vector_size(&[&input, &output]);
    let items = output.meta.num_elements() / vector;
    if items == 0 {
        return output;
    }
    let (count, dim) = one_unit_each(&output.client, items);
    // SAFETY: units beyond the last item end at once.
    unsafe {
        swiglu_kernel::launch_unchecked(
            &output.client,
            count,
            dim,
            address_type(&[&input, &output]),
            vector,
            input.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            [storage(dtype), accumulator(dtype)],
        );
    }
    output
}

/// Gradient of [`swiglu`]: `input` `[R, 2F]`, `grad` `[R, F]`, to `[R, 2F]`.
pub fn swiglu_backward<R: CubeRuntime>(input: CubeTensor<R>, grad: CubeTensor<R>) -> CubeTensor<R> {
    let ([rows, width], dtype) = (dims2(&input), input.dtype);
    let output = empty(&input, [rows, width], dtype);
    let (input, grad) = (rows_in_order(input), rows_in_order(grad));
    let vector = vector_size(&[&input, &grad, &output]);
    let items = rows * width / 2 / vector;
    if items == 0 {
        return output;
    }
    let (count, dim) = one_unit_each(&output.client, items);
    // SAFETY: units beyond the last item end at once.
    unsafe {
        swiglu_backward_kernel::launch_unchecked(
            &output.client,
            count,
            dim,
            address_type(&[&input, &output]),
            vector,
            input.into_tensor_arg(),
            grad.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            [storage(dtype), accumulator(dtype)],
        );
    }
    output
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn swiglu_kernel<F: Float, A: Float, N: Size>(
    input: &Tensor<Vector<F, N>>,
    output: &mut Tensor<Vector<F, N>>,
    #[define(F, A)] _types: [StorageType; 2],
) {
    let width = output.shape(1) / N::value();
    let (row, column) = (ABSOLUTE_POS / width, ABSOLUTE_POS % width);
    if row >= output.shape(0) {
        terminate!();
    }
    let start = row * (input.stride(0) / N::value()) + column;
    let gate = Vector::<A, N>::cast_from(input[start]);
    let up = Vector::<A, N>::cast_from(input[start + width]);
    output[ABSOLUTE_POS] = Vector::cast_from(sigmoid::<A, N>(gate) * gate * up);
}

/// With `s = sigmoid(g)`: `d silu(g)/dg = s + g * s * (1 - s)`.
#[cube(launch_unchecked, address_type = "dynamic")]
fn swiglu_backward_kernel<F: Float, A: Float, N: Size>(
    input: &Tensor<Vector<F, N>>,
    grad: &Tensor<Vector<F, N>>,
    output: &mut Tensor<Vector<F, N>>,
    #[define(F, A)] _types: [StorageType; 2],
) {
    let width = grad.shape(1) / N::value();
    let (row, column) = (ABSOLUTE_POS / width, ABSOLUTE_POS % width);
    if row >= grad.shape(0) {
        terminate!();
    }
    let start = row * (input.stride(0) / N::value()) + column;
    let gate = Vector::<A, N>::cast_from(input[start]);
    let up = Vector::<A, N>::cast_from(input[start + width]);
    let grad = Vector::<A, N>::cast_from(grad[row * (grad.stride(0) / N::value()) + column]);

    let one = Vector::<A, N>::new(A::new(1.0));
    let sigmoid = sigmoid::<A, N>(gate);
    let silu = gate * sigmoid;
    let slope = sigmoid + silu * (one - sigmoid);
    let target = row * width * 2 + column;
    output[target] = Vector::cast_from(grad * up * slope);
    output[target + width] = Vector::cast_from(grad * silu);
}

/// `1 / (1 + exp(-x))` from `exp(-|x|)`, which is never above 1: shader languages promise nothing about infinity.
#[cube]
fn sigmoid<A: Float, N: Size>(x: Vector<A, N>) -> Vector<A, N> {
    let one = Vector::<A, N>::new(A::new(1.0));
    let zero = Vector::<A, N>::new(A::new(0.0));
    // Not a negation: the CUDA compiler of CubeCL 0.10 writes that of a vector as C++ has none.
    let small = Vector::exp(zero - Vector::abs(x));
    let positive = one / (one + small);
    select_many(x.less_than(zero), small * positive, positive)
}

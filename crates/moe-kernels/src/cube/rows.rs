//! From tokens to sorted rows and back: gathers, and sums over `K` in the order of `k`.
//!
//! `T` and `R` are counted in the plan's index tensors and not in the data: without tokens, a gradient that burn has
//! broadcast on CubeCL arrives here with one row.

use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, cubecl};

use super::launch::{
    UNITS, accumulator, address_type, cube_count, dims2, empty, flat, one_unit_each, rows_in_order, storage,
    vector_size,
};

/// Units that share the dot product of two rows: the width of a plane on most devices.
const LANES: usize = 32;

/// `[T, D]` to `[R, D]`: row `r` is token `token_of_row[r]`.
pub fn dispatch<R: CubeRuntime>(tokens: CubeTensor<R>, token_of_row: CubeTensor<R>) -> CubeTensor<R> {
    let [_, width] = dims2(&tokens);
    let output = empty(&tokens, [token_of_row.meta.num_elements(), width], tokens.dtype);
    let (tokens, index) = (rows_in_order(tokens), flat(token_of_row));
    let vector = vector_size(&[&tokens, &output]);
    let items = output.meta.num_elements() / vector;
    if items == 0 {
        return output;
    }
    let (count, dim) = one_unit_each(&output.client, items);
    // SAFETY: units beyond the last item end at once; the plan's indices are in range.
    unsafe {
        gather_kernel::launch_unchecked(
            &output.client,
            count,
            dim,
            address_type(&[&tokens, &output]),
            vector,
            tokens.clone().into_tensor_arg(),
            index.clone().into_tensor_arg(),
            output.clone().into_tensor_arg(),
            [storage(tokens.dtype), storage(index.dtype)],
        );
    }
    output
}

/// Gradient of [`dispatch`]: `[R, D]` to `[T, D]`, the sum of a token's `K` rows.
pub fn dispatch_backward<R: CubeRuntime>(
    grad: CubeTensor<R>,
    row_of_slot: CubeTensor<R>,
    top_k: usize,
) -> CubeTensor<R> {
    sum_over_k(grad, None, row_of_slot, top_k)
}

/// `rows` `[R, D]` and `gates` `[T, K]` to `[T, D]`: `y_t = sum_k gate_tk * row(t, k)`.
pub fn combine<R: CubeRuntime>(rows: CubeTensor<R>, gates: CubeTensor<R>, row_of_slot: CubeTensor<R>) -> CubeTensor<R> {
    let [_, top_k] = dims2(&gates);
    sum_over_k(rows, Some(gates), row_of_slot, top_k)
}

fn sum_over_k<R: CubeRuntime>(
    rows: CubeTensor<R>,
    gates: Option<CubeTensor<R>>,
    row_of_slot: CubeTensor<R>,
    top_k: usize,
) -> CubeTensor<R> {
    let ([_, width], dtype) = (dims2(&rows), rows.dtype);
    let output = empty(&rows, [row_of_slot.meta.num_elements() / top_k, width], dtype);
    let (rows, index, weighted) = (rows_in_order(rows), flat(row_of_slot), gates.is_some());
    let vector = vector_size(&[&rows, &output]);
    let items = output.meta.num_elements() / vector;
    if items == 0 {
        return output;
    }
    // Without gates the kernel does not read this argument; any tensor of the type fills the place.
    let gates = gates.map_or_else(|| rows.clone(), flat);
    let (count, dim) = one_unit_each(&output.client, items);
    // SAFETY: units beyond the last item end at once; the plan's indices are in range.
    unsafe {
        sum_over_k_kernel::launch_unchecked(
            &output.client,
            count,
            dim,
            address_type(&[&rows, &output]),
            vector,
            rows.into_tensor_arg(),
            gates.into_tensor_arg(),
            index.clone().into_tensor_arg(),
            output.clone().into_tensor_arg(),
            top_k,
            weighted,
            [storage(dtype), accumulator(dtype), storage(index.dtype)],
        );
    }
    output
}

/// Gradient of [`combine`] with respect to the rows: `[T, D]` to `[R, D]`, `grad_r = gate(slot) * grad(token)`.
pub fn combine_backward_rows<R: CubeRuntime>(
    grad: CubeTensor<R>,
    gates: CubeTensor<R>,
    slot_of_row: CubeTensor<R>,
) -> CubeTensor<R> {
    let ([_, width], [_, top_k], dtype) = (dims2(&grad), dims2(&gates), grad.dtype);
    let output = empty(&grad, [slot_of_row.meta.num_elements(), width], dtype);
    let (grad, gates, index) = (rows_in_order(grad), flat(gates), flat(slot_of_row));
    let vector = vector_size(&[&grad, &output]);
    let items = output.meta.num_elements() / vector;
    if items == 0 {
        return output;
    }
    let (count, dim) = one_unit_each(&output.client, items);
    // SAFETY: units beyond the last item end at once; the plan's indices are in range.
    unsafe {
        scaled_gather_kernel::launch_unchecked(
            &output.client,
            count,
            dim,
            address_type(&[&grad, &output]),
            vector,
            grad.into_tensor_arg(),
            gates.into_tensor_arg(),
            index.clone().into_tensor_arg(),
            output.clone().into_tensor_arg(),
            top_k,
            [storage(dtype), accumulator(dtype), storage(index.dtype)],
        );
    }
    output
}

/// Gradient of [`combine`] with respect to the gates: `grad` `[T, D]`, `rows` `[R, D]`, to `[T, K]`, dot products.
pub fn combine_backward_gates<R: CubeRuntime>(
    grad: CubeTensor<R>,
    rows: CubeTensor<R>,
    row_of_slot: CubeTensor<R>,
    top_k: usize,
) -> CubeTensor<R> {
    let (slots, dtype) = (row_of_slot.meta.num_elements(), grad.dtype);
    let output = empty(&grad, [slots / top_k, top_k], dtype);
    let (grad, rows, index) = (rows_in_order(grad), rows_in_order(rows), flat(row_of_slot));
    let vector = vector_size(&[&grad, &rows]);
    if slots == 0 {
        return output;
    }
    // SAFETY: slots beyond the last are neither read nor written; the plan's indices are in range.
    unsafe {
        row_dot_kernel::launch_unchecked(
            &output.client,
            cube_count(&output.client, slots.div_ceil(UNITS / LANES)),
            CubeDim::new_1d(UNITS as u32),
            address_type(&[&grad, &rows]),
            vector,
            grad.into_tensor_arg(),
            rows.into_tensor_arg(),
            index.clone().into_tensor_arg(),
            output.clone().into_tensor_arg(),
            top_k,
            [storage(dtype), accumulator(dtype), storage(index.dtype)],
        );
    }
    output
}

/// Position of vector `column` of row `row`; strides count scalars.
#[cube]
fn at<F: Float, N: Size>(matrix: &Tensor<Vector<F, N>>, row: usize, column: usize) -> usize {
    row * (matrix.stride(0) / N::value()) + column
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn gather_kernel<F: Float, I: Int, N: Size>(
    tokens: &Tensor<Vector<F, N>>,
    token_of_row: &Tensor<I>,
    output: &mut Tensor<Vector<F, N>>,
    #[define(F, I)] _types: [StorageType; 2],
) {
    let width = output.shape(1) / N::value();
    let (row, column) = (ABSOLUTE_POS / width, ABSOLUTE_POS % width);
    if row >= output.shape(0) {
        terminate!();
    }
    let token = usize::cast_from(token_of_row[row]);
    output[ABSOLUTE_POS] = tokens[at(tokens, token, column)];
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn sum_over_k_kernel<F: Float, A: Float, I: Int, N: Size>(
    rows: &Tensor<Vector<F, N>>,
    gates: &Tensor<F>,
    row_of_slot: &Tensor<I>,
    output: &mut Tensor<Vector<F, N>>,
    top_k: usize,
    #[comptime] weighted: bool,
    #[define(F, A, I)] _types: [StorageType; 3],
) {
    let width = output.shape(1) / N::value();
    let (token, column) = (ABSOLUTE_POS / width, ABSOLUTE_POS % width);
    if token >= output.shape(0) {
        terminate!();
    }
    let mut sum = Vector::<A, N>::new(A::new(0.0));
    for slot in token * top_k..(token + 1) * top_k {
        let row = usize::cast_from(row_of_slot[slot]);
        let value = Vector::<A, N>::cast_from(rows[at(rows, row, column)]);
        if comptime!(weighted) {
            sum += Vector::new(A::cast_from(gates[slot])) * value;
        } else {
            sum += value;
        }
    }
    output[ABSOLUTE_POS] = Vector::cast_from(sum);
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn scaled_gather_kernel<F: Float, A: Float, I: Int, N: Size>(
    grad: &Tensor<Vector<F, N>>,
    gates: &Tensor<F>,
    slot_of_row: &Tensor<I>,
    output: &mut Tensor<Vector<F, N>>,
    top_k: usize,
    #[define(F, A, I)] _types: [StorageType; 3],
) {
    let width = output.shape(1) / N::value();
    let (row, column) = (ABSOLUTE_POS / width, ABSOLUTE_POS % width);
    if row >= output.shape(0) {
        terminate!();
    }
    let slot = usize::cast_from(slot_of_row[row]);
    let value = Vector::<A, N>::cast_from(grad[at(grad, slot / top_k, column)]);
    output[ABSOLUTE_POS] = Vector::cast_from(Vector::new(A::cast_from(gates[slot])) * value);
}

/// Each lane sums every `LANES`-th vector of its slot's row, then one lane sums the lanes in order.
#[cube(launch_unchecked, address_type = "dynamic")]
fn row_dot_kernel<F: Float, A: Float, I: Int, N: Size>(
    grad: &Tensor<Vector<F, N>>,
    rows: &Tensor<Vector<F, N>>,
    row_of_slot: &Tensor<I>,
    output: &mut Tensor<F>,
    top_k: usize,
    #[define(F, A, I)] _types: [StorageType; 3],
) {
    let mut partial = SharedMemory::<A>::new(UNITS);
    let unit = UNIT_POS as usize;
    let lane = unit % LANES;
    let slot = CUBE_POS * (UNITS / LANES) + unit / LANES;
    let inside = slot < output.shape(0) * output.shape(1);

    let mut sum = A::new(0.0);
    if inside {
        let row = usize::cast_from(row_of_slot[slot]);
        let mut sums = Vector::<A, N>::new(A::new(0.0));
        for column in range_stepped(lane, grad.shape(1) / N::value(), LANES) {
            let left = Vector::<A, N>::cast_from(grad[at(grad, slot / top_k, column)]);
            sums += left * Vector::cast_from(rows[at(rows, row, column)]);
        }
        #[unroll]
        for i in 0..N::value() {
            sum += sums[i];
        }
    }
    partial[unit] = sum;
    sync_cube();

    if inside && lane == 0 {
        let mut total = A::new(0.0);
        for i in unit..unit + LANES {
            total += partial[i];
        }
        output[slot] = F::cast_from(total);
    }
}

//! Random data, transfer, and comparison with an oracle in f64.

use std::cell::Cell;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::errors::note_error;

/// Allowed relative error in f32.
pub const RELATIVE: f64 = 1e-5;
/// Allowed absolute error in f32, for values near zero.
pub const ABSOLUTE: f64 = 1e-6;
/// Allowed relative error in f64, where oracles are central differences.
const RELATIVE_F64: f64 = 1e-7;
/// Allowed absolute error in f64, for values near zero.
const ABSOLUTE_F64: f64 = 1e-8;

/// Allowed errors where burn computes f32 products on matrix units: on CUDA it rounds their operands to TF32, 11 bits. Kernels of ours
/// sum f32 in f32, and the tests of kernels by name (`tests/cube`) hold them to [`RELATIVE`].
const RELATIVE_TF32: f64 = 2e-3;
/// The same for values near zero. The gradient of attention's input, behind a chain of such products, was seen 5.7e-4 off.
const ABSOLUTE_TF32: f64 = 1e-3;

thread_local! {
    /// Dtype of the tensors that this thread makes; the backend's own unless it is told.
    static DTYPE: Cell<Option<DType>> = const { Cell::new(None) };
}

/// Runs `test` on tensors in f64, with the tolerances of f64: a CPU backend then takes the portable bodies of all ops.
pub fn in_f64(test: impl FnOnce()) {
    DTYPE.set(Some(DType::F64));
    test();
    DTYPE.set(None);
}

/// `n` numbers in `-1..1`, the same for the same seed, each exactly representable in f32.
pub fn random(n: usize, seed: u64) -> Vec<f64> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..n).map(|_| f64::from(rng.random_range(-1.0f32..1.0))).collect()
}

/// The numbers as a tensor.
pub fn tensor<B: Backend, const D: usize>(values: &[f64], shape: [usize; D], device: &B::Device) -> Tensor<B, D> {
    let data = TensorData::new(values.to_vec(), shape);
    match DTYPE.get() {
        Some(dtype) => Tensor::from_data(data, (device, dtype)),
        None => Tensor::from_data(data, device),
    }
}

/// The tensor's numbers.
pub fn host<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f64> {
    match tensor.shape().num_elements() {
        // burn's iterator over what CUDA gives for no numbers panics.
        0 => Vec::new(),
        _ => tensor.into_data().iter::<f64>().collect(),
    }
}

/// `[0, width]`. On CUDA `Tensor::zeros` launches a kernel of no blocks for it, which is an error.
pub fn no_rows<B: Backend>(width: usize, device: &B::Device) -> Tensor<B, 2> {
    tensor(&[], [0, width], device)
}

/// Panics with the worst element when `actual` strays from `expected`. The name of a tensor ends `what`, behind a comma if more comes
/// before it.
///
/// The absolute tolerance grows with the largest expected value: a sum's rounding error follows its terms.
pub fn assert_close(what: &str, actual: &[f64], expected: &[f64]) {
    let (dtype, relative, absolute) = match DTYPE.get() {
        Some(DType::F64) => ("f64", RELATIVE_F64, ABSOLUTE_F64),
        _ if cfg!(feature = "cuda") => ("f32", RELATIVE_TF32, ABSOLUTE_TF32),
        _ => ("f32", RELATIVE, ABSOLUTE),
    };
    assert_eq!(actual.len(), expected.len(), "{what}: lengths differ");
    note_error(what, dtype, actual, expected);
    let scale = expected.iter().fold(1.0, |m: f64, e| m.max(e.abs()));
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        let allowed = absolute * scale + relative * e.abs();
        assert!((a - e).abs() <= allowed, "{what}[{i}]: got {a}, expected {e}, allowed error {allowed:e}");
    }
}

/// Central difference in f64: truncation near 1e-10, rounding near 1e-11.
const STEP: f64 = 1e-5;

/// The gradient of `sum(output * weight)` with respect to `input`, by nudging each number.
pub fn numeric_gradient(input: &[f64], weight: &[f64], output: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    let loss = |values: &[f64]| output(values).iter().zip(weight).map(|(y, w)| y * w).sum::<f64>();
    let mut values = input.to_vec();
    let mut at = |i: usize, amount: f64| {
        values[i] = input[i] + amount;
        let loss = loss(&values);
        values[i] = input[i];
        loss
    };
    (0..input.len()).map(|i| (at(i, STEP) - at(i, -STEP)) / (2.0 * STEP)).collect()
}

/// [`numeric_gradient`] where the output consists of `rows` parts, each made of its own part of the input alone:
/// `output` gets the number of a part and its input.
pub fn numeric_gradient_by_rows(
    input: &[f64],
    weight: &[f64],
    rows: usize,
    output: impl Fn(usize, &[f64]) -> Vec<f64>,
) -> Vec<f64> {
    let parts = input.chunks(input.len() / rows).zip(weight.chunks(weight.len() / rows)).enumerate();
    parts.flat_map(|(row, (input, weight))| numeric_gradient(input, weight, |input| output(row, input))).collect()
}

//! What the tests of kernels share: tensors of any type of the device, transfer, comparison.

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensorOps, IntTensorOps};
use burn::tensor::{DType, TensorData};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, CubeRuntime, ops::into_data_sync};
use moe_tests::{ABSOLUTE, RELATIVE, random};

/// A backend on the runtime; what its default types are does not matter.
pub(crate) type Plain<R> = CubeBackend<R, f32, i32, u32>;

/// Random numbers as a tensor.
pub(crate) fn floats<R: CubeRuntime>(shape: &[usize], seed: u64, dtype: DType, device: &R::Device) -> CubeTensor<R> {
    Plain::<R>::float_from_data(data(shape, seed, dtype), device)
}

/// Random numbers, rounded to the type.
pub(crate) fn data(shape: &[usize], seed: u64, dtype: DType) -> TensorData {
    TensorData::new(random(shape.iter().product(), seed), shape.to_vec()).convert_dtype(dtype)
}

/// The tensor's numbers.
pub(crate) fn host<R: CubeRuntime>(tensor: CubeTensor<R>) -> Vec<f64> {
    into_data_sync(tensor).iter::<f64>().collect()
}

/// Integers as a tensor.
pub(crate) fn ints<R: CubeRuntime>(values: &[usize], shape: &[usize], device: &R::Device) -> CubeTensor<R> {
    let values: Vec<i32> = values.iter().map(|&value| value as i32).collect();
    Plain::<R>::int_from_data(TensorData::new(values, shape.to_vec()), device)
}

/// The tensor's integers.
pub(crate) fn host_ints<R: CubeRuntime>(tensor: CubeTensor<R>) -> Vec<usize> {
    into_data_sync(tensor).iter::<i64>().map(|i| i as usize).collect()
}

/// Largest relative error of rounding to `dtype`, with room for the sum in f32.
pub(crate) fn rounding(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 1.02 / 2048.0,
        DType::BF16 => 1.02 / 256.0,
        _ => RELATIVE,
    }
}

/// What of the types the device computes with.
pub(crate) fn types<R: CubeRuntime>(device: &R::Device) -> Vec<DType> {
    let supported = |dtype: &DType| Plain::<R>::supports_dtype(device, *dtype);
    [DType::F32, DType::F16, DType::BF16].into_iter().filter(supported).collect()
}

/// Panics with the first element that strays further than rounding to a type explains.
pub(crate) fn assert_within(what: &str, actual: &[f64], expected: &[f64], relative: f64) {
    assert_eq!(actual.len(), expected.len(), "{what}: lengths differ");
    let scale = expected.iter().fold(1.0, |m: f64, e| m.max(e.abs()));
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        let allowed = ABSOLUTE * scale + relative * e.abs();
        assert!((a - e).abs() <= allowed, "{what}[{i}]: got {a}, expected {e}, allowed error {allowed:e}");
    }
}

//! Grouped products as one of the backend's own matrix products per busy expert.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor};

use super::{unwrap, wrap, zeros};
use crate::ExpertPlan;

pub(crate) fn grouped_matmul<B: Backend>(
    rows: FloatTensor<B>,
    weight: FloatTensor<B>,
    plan: &ExpertPlan<B>,
    transpose: bool,
) -> FloatTensor<B> {
    let (rows, weight) = (wrap::<B, 2>(rows), wrap::<B, 3>(weight));
    let weight = if transpose { weight.swap_dims(1, 2) } else { weight };
    let [_, d_in, d_out] = weight.dims();

    let host = plan.on_host();
    let mut products: Vec<_> = ((0..host.num_experts()).map(|expert| host.rows_of(expert)).enumerate())
        .filter(|(_, range)| !range.is_empty())
        .map(|(expert, range)| {
            let weight = weight.clone().slice(expert..expert + 1).reshape([d_in, d_out]);
            rows.clone().slice(range).matmul(weight)
        })
        .collect();
    let unserved = host.num_rows() - host.num_served();
    if unserved > 0 {
        products.push(Tensor::zeros([unserved, d_out], (&rows.device(), rows.dtype())));
    }
    unwrap(concatenate(products, [0, d_out], &rows.device(), rows.dtype()))
}

pub(crate) fn grouped_outer<B: Backend>(
    lhs: FloatTensor<B>,
    rhs: FloatTensor<B>,
    plan: &ExpertPlan<B>,
) -> FloatTensor<B> {
    let (lhs, rhs) = (wrap::<B, 2>(lhs), wrap::<B, 2>(rhs));
    let ([_, d_in], [_, d_out]) = (lhs.dims(), rhs.dims());
    let (device, dtype) = (lhs.device(), lhs.dtype());

    let lhs = lhs.swap_dims(0, 1);
    let outer = |range: std::ops::Range<usize>| match range.is_empty() {
        true => Tensor::zeros([1, d_in, d_out], (&device, dtype)),
        false => {
            let lhs = lhs.clone().slice([0..d_in, range.clone()]);
            lhs.matmul(rhs.clone().slice(range)).unsqueeze::<3>()
        }
    };
    let products = plan.host_ranges().into_iter().map(outer).collect();
    unwrap(concatenate(products, [0, d_in, d_out], &device, dtype))
}

/// The parts along the first dimension; an empty tensor of shape `empty` when there are none.
fn concatenate<B: Backend, const D: usize>(
    parts: Vec<Tensor<B, D>>,
    empty: [usize; D],
    device: &B::Device,
    dtype: DType,
) -> Tensor<B, D> {
    match parts.is_empty() {
        true => zeros(empty, device, dtype),
        false => Tensor::cat(parts, 0),
    }
}

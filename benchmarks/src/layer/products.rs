//! The floor on a GPU: burn's own matrix products, dense ones of equal FLOPs and batched ones on padded buckets.

use burn::tensor::DType;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use moe_tests::Case;
use moe_train::config::Dtype;

use super::contest::{Contestant, Pass, Side};
use crate::clock::{Time, timed};
use crate::data::tensor;
use crate::error::Result;
use crate::session::wait;

/// Names in tables and records.
pub(crate) const DENSE: &str = "burn matmul, dense";
pub(crate) const PADDED: &str = "burn matmul, padded";

/// The six products of a layer as batched products of equal size; a batch of one is the dense case.
pub(crate) struct Products<B: Backend> {
    name: &'static str,
    device: B::Device,
    rows: Tensor<B, 3>,
    hidden: Tensor<B, 3>,
    w_in: Tensor<B, 3>,
    w_out: Tensor<B, 3>,
    grad_output: Tensor<B, 3>,
    grad_z: Tensor<B, 3>,
}

impl<B: Backend> Products<B> {
    /// All rows times one expert's weights.
    pub(crate) fn dense(case: &Case, dtype: Dtype, device: &B::Device) -> Self {
        Self::new(DENSE, case, 1, case.tokens * case.top_k, dtype, device)
    }

    /// Every expert with as many rows as the busiest.
    pub(crate) fn padded(case: &Case, loads: &[usize], dtype: Dtype, device: &B::Device) -> Self {
        let busiest = loads.iter().copied().max().unwrap_or(0);
        Self::new(PADDED, case, case.experts, busiest, dtype, device)
    }

    fn new(name: &'static str, case: &Case, batch: usize, rows: usize, dtype: Dtype, device: &B::Device) -> Self {
        let (d, f) = (case.d_model, case.d_hidden);
        let make = |m, n, seed| tensor([batch, m, n], seed, 1.0, device).cast(DType::from(dtype));
        Self {
            name,
            device: device.clone(),
            rows: make(rows, d, 1),
            hidden: make(rows, f, 2),
            w_in: make(d, 2 * f, 3),
            w_out: make(f, d, 4),
            grad_output: make(rows, d, 5),
            grad_z: make(rows, 2 * f, 6),
        }
    }

    fn forward(&self) -> Vec<Tensor<B, 3>> {
        vec![self.rows.clone().matmul(self.w_in.clone()), self.hidden.clone().matmul(self.w_out.clone())]
    }

    fn backward(&self) -> Vec<Tensor<B, 3>> {
        vec![
            self.grad_output.clone().matmul(self.w_out.clone().transpose()),
            self.grad_z.clone().matmul(self.w_in.clone().transpose()),
            self.rows.clone().transpose().matmul(self.grad_z.clone()),
            self.hidden.clone().transpose().matmul(self.grad_output.clone()),
        ]
    }
}

impl<B: Backend> Contestant for Products<B> {
    fn name(&self) -> String {
        self.name.into()
    }

    fn side(&self) -> Side {
        Side::Products
    }

    fn run(&mut self, pass: Pass) -> Result<Time> {
        wait::<B>(&self.device)?;
        let (results, time) = timed(|| {
            let mut results = self.forward();
            if pass == Pass::Training {
                results.extend(self.backward());
            }
            wait::<B>(&self.device).map(|()| results)
        });
        results.map(|_| time)
    }
}

#[cfg(test)]
mod tests {
    use moe_train::backend::Plain;

    use super::super::Shape;
    use super::*;

    fn shapes(products: &Products<Plain>) -> Vec<[usize; 3]> {
        products.forward().iter().chain(&products.backward()).map(Tensor::dims).collect()
    }

    #[test]
    fn outputs_have_the_shapes_of_the_layers_gradients() {
        let case = "5,4,3,2,1".parse::<Shape>().unwrap().case;
        let dense = Products::<Plain>::dense(&case, Dtype::F32, &Default::default());
        assert_eq!(shapes(&dense), [[1, 5, 6], [1, 5, 4], [1, 5, 3], [1, 5, 4], [1, 4, 6], [1, 3, 4]]);
        let padded = Products::<Plain>::padded(&case, &[3, 2], Dtype::F32, &Default::default());
        assert_eq!(shapes(&padded), [[2, 3, 6], [2, 3, 4], [2, 3, 3], [2, 3, 4], [2, 4, 6], [2, 3, 4]]);
    }
}

//! Every CubeCL runtime: the kernels of [`cube`](crate::cube).
//!
//! Top-K of f64 scores is the one op that reads on the host, since its kernel ranks f32.

use burn::tensor::ops::{FloatTensor, FloatTensorOps, IntTensor, IntTensorOps};
use burn::tensor::{DType, Tensor, TensorMetadata};
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};

use crate::cube::grouped::{Operands, Product, batched_product, product};
use crate::ops::multiplies_a_vector;
use crate::{ExpertPlan, MoeBackend, cube, portable};

impl<R, F, I, BT> MoeBackend for CubeBackend<R, F, I, BT>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    fn moe_top_k_indices(scores: FloatTensor<Self>, k: usize) -> IntTensor<Self> {
        // The kernel ranks f32, which would make equal what f64 tells apart.
        if scores.dtype() == DType::F64 {
            return portable::top_k_indices::<Self>(scores, k);
        }
        cube::top_k_indices(scores, k, I::dtype())
    }

    fn moe_plan(experts: IntTensor<Self>, num_experts: usize) -> ExpertPlan<Self> {
        let shape = experts.shape();
        let tensors = cube::plan(experts, num_experts, I::dtype());
        ExpertPlan {
            num_tokens: shape[0],
            top_k: shape[1],
            num_experts,
            partial: false,
            offsets: Tensor::from_primitive(tensors.offsets),
            slot_of_row: Tensor::from_primitive(tensors.slot_of_row),
            row_of_slot: Tensor::from_primitive(tensors.row_of_slot),
            token_of_row: Tensor::from_primitive(tensors.token_of_row),
            host: None,
        }
    }

    fn moe_dispatch(tokens: FloatTensor<Self>, plan: &ExpertPlan<Self>) -> FloatTensor<Self> {
        cube::dispatch(tokens, plan.token_of_row.clone().into_primitive())
    }

    fn moe_dispatch_backward(grad: FloatTensor<Self>, plan: &ExpertPlan<Self>) -> FloatTensor<Self> {
        cube::dispatch_backward(grad, plan.row_of_slot.clone().into_primitive(), plan.top_k)
    }

    fn moe_combine(rows: FloatTensor<Self>, gates: FloatTensor<Self>, plan: &ExpertPlan<Self>) -> FloatTensor<Self> {
        cube::combine(rows, gates, plan.row_of_slot.clone().into_primitive())
    }

    fn moe_combine_backward_rows(
        grad: FloatTensor<Self>,
        gates: FloatTensor<Self>,
        plan: &ExpertPlan<Self>,
    ) -> FloatTensor<Self> {
        cube::combine_backward_rows(grad, gates, plan.slot_of_row.clone().into_primitive())
    }

    fn moe_combine_backward_gates(
        grad: FloatTensor<Self>,
        rows: FloatTensor<Self>,
        plan: &ExpertPlan<Self>,
    ) -> FloatTensor<Self> {
        cube::combine_backward_gates(grad, rows, plan.row_of_slot.clone().into_primitive(), plan.top_k)
    }

    fn moe_grouped_matmul(
        rows: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        plan: &ExpertPlan<Self>,
    ) -> FloatTensor<Self> {
        product(operands(Product::Plain, rows, weight, plan))
    }

    fn moe_grouped_matmul_transposed(
        rows: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        plan: &ExpertPlan<Self>,
    ) -> FloatTensor<Self> {
        product(operands(Product::Transposed, rows, weight, plan))
    }

    fn moe_grouped_outer(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>, plan: &ExpertPlan<Self>) -> FloatTensor<Self> {
        product(operands(Product::Outer, lhs, rhs, plan))
    }

    fn moe_matmul(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self> {
        if !multiplies_a_vector(&lhs.shape(), &rhs.shape()) {
            return Self::float_matmul(lhs, rhs);
        }
        let (mut shape, width) = (lhs.shape(), rhs.shape()[rhs.shape().num_dims() - 1]);
        let (last, device) = (shape.num_dims() - 1, lhs.device.clone());
        let (m, rows) = (shape[last - 1], shape[..last].iter().product::<usize>());
        if rows == 0 {
            shape[last] = width;
            return Self::float_zeros(shape, &device, lhs.dtype().into());
        }
        let offsets = Self::int_arange_step(0..(rows + 1) as i64, m, &device, I::dtype().into());
        batched_product(lhs, rhs, offsets)
    }

    fn moe_swiglu(input: FloatTensor<Self>) -> FloatTensor<Self> {
        cube::swiglu(input)
    }

    fn moe_swiglu_backward(input: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        cube::swiglu_backward(input, grad)
    }
}

fn operands<R, F, I, BT>(
    product: Product,
    lhs: FloatTensor<CubeBackend<R, F, I, BT>>,
    rhs: FloatTensor<CubeBackend<R, F, I, BT>>,
    plan: &ExpertPlan<CubeBackend<R, F, I, BT>>,
) -> Operands<R>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    let offsets = plan.offsets.clone().into_primitive();
    Operands { product, rows: plan.num_rows(), partial: plan.partial, lhs, rhs, offsets }
}

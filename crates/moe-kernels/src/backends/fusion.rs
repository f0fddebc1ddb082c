//! Any of the backends under Fusion: every op is one custom operation in the stream of the inner backend.
//!
//! A custom operation names its tensors; the tensors of a plan are among them, all four, so that an op sees the plan
//! as a whole. Where an operand is empty nothing is registered, since Fusion cannot hold an empty tensor as the
//! output of an operation: the result is then zeros.

use std::fmt;

use burn::tensor::backend::{Backend, BackendTypes};
use burn::tensor::ops::{FloatTensor, FloatTensorOps, IntTensor, IntTensorOps};
use burn::tensor::{DType, Element, Shape, Tensor, TensorData};
use burn_fusion::stream::{Operation, OperationStreams};
use burn_fusion::{Fusion, FusionBackend, FusionRuntime, FusionTensor};
use burn_ir::{CustomOpIr, HandleContainer, OperationIr, OperationOutput, TensorIr};

use crate::ops::multiplies_a_vector;
use crate::{ExpertPlan, MoeBackend};

type Runtime<B> = <B as FusionBackend>::FusionRuntime;
type Handles<B> = HandleContainer<<Runtime<B> as FusionRuntime>::FusionHandle>;

impl<B: FusionBackend + MoeBackend> MoeBackend for Fusion<B> {
    fn moe_top_k_indices(scores: FloatTensor<Self>, k: usize) -> IntTensor<Self> {
        let (shape, dtype) = (Shape::new([scores.shape[0], k]), index_type::<B>());
        if shape.num_elements() == 0 {
            return no_ints::<B>(shape, dtype, scores.client.device());
        }
        let [output] = register::<B, 1>("moe_top_k_indices", vec![scores], [(shape, dtype)], move |op, handles| {
            let ([scores], [output]) = op.as_fixed();
            let indices = B::moe_top_k_indices(handles.get_float_tensor::<B>(scores), k);
            handles.register_int_tensor::<B>(&output.id, indices);
        });
        output
    }

    fn moe_plan(experts: IntTensor<Self>, num_experts: usize) -> ExpertPlan<Self> {
        let (num_tokens, top_k, dtype) = (experts.shape[0], experts.shape[1], index_type::<B>());
        let sizes = [num_experts + 1, num_tokens * top_k, num_tokens * top_k, num_tokens * top_k];
        let tensors = if num_tokens == 0 {
            sizes.map(|size| no_ints::<B>(Shape::new([size]), dtype, experts.client.device()))
        } else {
            let outputs = sizes.map(|size| (Shape::new([size]), dtype));
            register::<B, 4>("moe_plan", vec![experts], outputs, move |op, handles| {
                let ([experts], outputs) = op.as_fixed::<1, 4>();
                let plan = B::moe_plan(handles.get_int_tensor::<B>(experts), num_experts);
                let tensors = [plan.offsets, plan.slot_of_row, plan.row_of_slot, plan.token_of_row];
                for (output, tensor) in outputs.iter().zip::<[_; 4]>(tensors) {
                    handles.register_int_tensor::<B>(&output.id, tensor.into_primitive());
                }
            })
        };
        Sizes { num_tokens, top_k, num_experts, partial: false }.plan(tensors)
    }

    fn moe_dispatch(tokens: FloatTensor<Self>, plan: &ExpertPlan<Self>) -> FloatTensor<Self> {
        let shape = [plan.num_rows(), tokens.shape[1]];
        with_plan("moe_dispatch", [tokens], plan, shape, |[tokens], plan| B::moe_dispatch(tokens, plan))
    }

    fn moe_dispatch_backward(grad: FloatTensor<Self>, plan: &ExpertPlan<Self>) -> FloatTensor<Self> {
        let shape = [plan.num_tokens, grad.shape[1]];
        with_plan("moe_dispatch_backward", [grad], plan, shape, |[grad], plan| B::moe_dispatch_backward(grad, plan))
    }

    fn moe_combine(rows: FloatTensor<Self>, gates: FloatTensor<Self>, plan: &ExpertPlan<Self>) -> FloatTensor<Self> {
        let shape = [plan.num_tokens, rows.shape[1]];
        with_plan("moe_combine", [rows, gates], plan, shape, |[rows, gates], plan| B::moe_combine(rows, gates, plan))
    }

    fn moe_combine_backward_rows(
        grad: FloatTensor<Self>,
        gates: FloatTensor<Self>,
        plan: &ExpertPlan<Self>,
    ) -> FloatTensor<Self> {
        let shape = [plan.num_rows(), grad.shape[1]];
        with_plan("moe_combine_backward_rows", [grad, gates], plan, shape, |[grad, gates], plan| {
            B::moe_combine_backward_rows(grad, gates, plan)
        })
    }

    fn moe_combine_backward_gates(
        grad: FloatTensor<Self>,
        rows: FloatTensor<Self>,
        plan: &ExpertPlan<Self>,
    ) -> FloatTensor<Self> {
        let shape = [plan.num_tokens, plan.top_k];
        with_plan("moe_combine_backward_gates", [grad, rows], plan, shape, |[grad, rows], plan| {
            B::moe_combine_backward_gates(grad, rows, plan)
        })
    }

    fn moe_grouped_matmul(
        rows: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        plan: &ExpertPlan<Self>,
    ) -> FloatTensor<Self> {
        let shape = [plan.num_rows(), weight.shape[2]];
        with_plan("moe_grouped_matmul", [rows, weight], plan, shape, |[rows, weight], plan| {
            B::moe_grouped_matmul(rows, weight, plan)
        })
    }

    fn moe_grouped_matmul_transposed(
        rows: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        plan: &ExpertPlan<Self>,
    ) -> FloatTensor<Self> {
        let shape = [plan.num_rows(), weight.shape[1]];
        with_plan("moe_grouped_matmul_transposed", [rows, weight], plan, shape, |[rows, weight], plan| {
            B::moe_grouped_matmul_transposed(rows, weight, plan)
        })
    }

    fn moe_grouped_outer(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>, plan: &ExpertPlan<Self>) -> FloatTensor<Self> {
        let shape = [plan.num_experts, lhs.shape[1], rhs.shape[1]];
        with_plan("moe_grouped_outer", [lhs, rhs], plan, shape, |[lhs, rhs], plan| B::moe_grouped_outer(lhs, rhs, plan))
    }

    fn moe_matmul(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self> {
        if !multiplies_a_vector(&lhs.shape, &rhs.shape) {
            return Self::float_matmul(lhs, rhs);
        }
        let (last, mut shape) = (lhs.shape.num_dims() - 1, lhs.shape.clone());
        shape[last] = rhs.shape[last];
        float_op::<B, 2>("moe_matmul", [lhs, rhs], Vec::new(), shape, |[lhs, rhs], _, _| B::moe_matmul(lhs, rhs))
    }

    fn moe_sum_dim(x: FloatTensor<Self>, dim: usize) -> FloatTensor<Self> {
        reduction::<B>("moe_sum_dim", x, dim, B::moe_sum_dim)
    }

    fn moe_max_dim(x: FloatTensor<Self>, dim: usize) -> FloatTensor<Self> {
        reduction::<B>("moe_max_dim", x, dim, B::moe_max_dim)
    }

    fn moe_swiglu(input: FloatTensor<Self>) -> FloatTensor<Self> {
        let shape = [input.shape[0], input.shape[1] / 2];
        without_plan::<B, 1>("moe_swiglu", [input], shape, |[input]| B::moe_swiglu(input))
    }

    fn moe_swiglu_backward(input: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        let shape = [input.shape[0], input.shape[1]];
        without_plan::<B, 2>("moe_swiglu_backward", [input, grad], shape, |[input, grad]| {
            B::moe_swiglu_backward(input, grad)
        })
    }
}

/// What of a plan is not a tensor.
#[derive(Clone, Copy)]
struct Sizes {
    num_tokens: usize,
    top_k: usize,
    num_experts: usize,
    partial: bool,
}

impl Sizes {
    /// The plan with these tensors: offsets, slot of row, row of slot, token of row.
    fn plan<B: Backend>(self, tensors: [IntTensor<B>; 4]) -> ExpertPlan<B> {
        let [offsets, slot_of_row, row_of_slot, token_of_row] = tensors.map(Tensor::from_primitive);
        let Self { num_tokens, top_k, num_experts, partial } = self;
        ExpertPlan {
            num_tokens,
            top_k,
            num_experts,
            partial,
            offsets,
            slot_of_row,
            row_of_slot,
            token_of_row,
            host: None,
        }
    }
}

fn index_type<B: BackendTypes>() -> DType {
    B::IntElem::dtype()
}

/// An op of float tensors and a plan.
fn with_plan<B: FusionBackend + MoeBackend, const N: usize, const D: usize>(
    name: &'static str,
    floats: [FloatTensor<Fusion<B>>; N],
    plan: &ExpertPlan<Fusion<B>>,
    shape: [usize; D],
    run: fn([FloatTensor<B>; N], &ExpertPlan<B>) -> FloatTensor<B>,
) -> FloatTensor<Fusion<B>> {
    let ExpertPlan { num_tokens, top_k, num_experts, partial, .. } = *plan;
    let sizes = Sizes { num_tokens, top_k, num_experts, partial };
    let indices = [&plan.offsets, &plan.slot_of_row, &plan.row_of_slot, &plan.token_of_row];
    let indices = indices.map(|tensor| tensor.clone().into_primitive());
    float_op::<B, N>(name, floats, indices.into(), Shape::new(shape), move |floats, op, handles| {
        let indices = [N, N + 1, N + 2, N + 3].map(|i| handles.get_int_tensor::<B>(&op.inputs[i]));
        run(floats, &sizes.plan(indices))
    })
}

/// An op of float tensors alone.
fn without_plan<B: FusionBackend + MoeBackend, const N: usize>(
    name: &'static str,
    floats: [FloatTensor<Fusion<B>>; N],
    shape: [usize; 2],
    run: fn([FloatTensor<B>; N]) -> FloatTensor<B>,
) -> FloatTensor<Fusion<B>> {
    float_op::<B, N>(name, floats, Vec::new(), Shape::new(shape), move |floats, _, _| run(floats))
}

/// A reduction along `dim`, apart from what is fused before and after it: see [`sum_dim`](crate::sum_dim).
fn reduction<B: FusionBackend + MoeBackend>(
    name: &'static str,
    x: FloatTensor<Fusion<B>>,
    dim: usize,
    run: fn(FloatTensor<B>, usize) -> FloatTensor<B>,
) -> FloatTensor<Fusion<B>> {
    let mut shape = x.shape.clone();
    shape[dim] = 1;
    float_op::<B, 1>(name, [x], Vec::new(), shape, move |[x], _, _| run(x, dim))
}

/// Zeros that are no operation: Fusion may put the filling of an empty tensor, and a number that stands beside it, into one kernel,
/// which then runs for nobody.
fn no_ints<B: FusionBackend>(shape: Shape, dtype: DType, device: &B::Device) -> IntTensor<Fusion<B>> {
    Fusion::<B>::int_from_data(TensorData::zeros::<i32, _>(shape).convert_dtype(dtype), device)
}

/// An op whose inputs are float tensors and then `others`, with a float output of the type of the first.
fn float_op<B: FusionBackend, const N: usize>(
    name: &'static str,
    floats: [FloatTensor<Fusion<B>>; N],
    others: Vec<FusionTensor<Runtime<B>>>,
    shape: Shape,
    run: impl Fn([FloatTensor<B>; N], &CustomOpIr, &mut Handles<B>) -> FloatTensor<B> + Send + Sync + 'static,
) -> FloatTensor<Fusion<B>> {
    let dtype = floats[0].dtype;
    let empty = floats.iter().any(|tensor| tensor.shape.num_elements() == 0);
    if empty || shape.num_elements() == 0 {
        // As for [`no_ints`].
        let device = floats[0].client.device();
        return match shape.num_elements() {
            0 => Fusion::<B>::float_from_data(TensorData::zeros::<f32, _>(shape).convert_dtype(dtype), device),
            _ => Fusion::<B>::float_zeros(shape, device, dtype.into()),
        };
    }
    let inputs = floats.into_iter().chain(others).collect();
    let [output] = register::<B, 1>(name, inputs, [(shape, dtype)], move |op, handles| {
        let floats = std::array::from_fn(|i| handles.get_float_tensor::<B>(&op.inputs[i]));
        let output = run(floats, op, handles);
        handles.register_float_tensor::<B>(&op.outputs[0].id, output);
    });
    output
}

/// Puts a custom operation into the stream and returns its outputs to come.
fn register<B: FusionBackend, const N: usize>(
    name: &'static str,
    inputs: Vec<FusionTensor<Runtime<B>>>,
    outputs: [(Shape, DType); N],
    run: impl Fn(&CustomOpIr, &mut Handles<B>) + Send + Sync + 'static,
) -> [FusionTensor<Runtime<B>>; N] {
    let client = inputs[0].client.clone();
    let streams = OperationStreams::with_inputs(&inputs);
    let outputs = outputs.map(|(shape, dtype)| TensorIr::uninit(client.create_empty_handle(), shape, dtype));
    let inputs: Vec<_> = inputs.into_iter().map(FusionTensor::into_ir).collect();
    let op = CustomOpIr::new(name, &inputs, &outputs);
    client.register(streams, OperationIr::Custom(op.clone()), Custom { op, run }).outputs()
}

/// A custom operation: its tensors, and what it does with their handles.
struct Custom<F> {
    op: CustomOpIr,
    run: F,
}

impl<F> fmt::Debug for Custom<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Custom").field(&self.op).finish()
    }
}

impl<R, F> Operation<R> for Custom<F>
where
    R: FusionRuntime,
    F: Fn(&CustomOpIr, &mut HandleContainer<R::FusionHandle>) + Send + Sync,
{
    fn execute(&self, handles: &mut HandleContainer<R::FusionHandle>) {
        (self.run)(&self.op, handles);
    }
}

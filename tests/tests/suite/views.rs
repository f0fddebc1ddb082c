//! Every op on operands that are views, and with an output that a view of goes on: values and gradients are those of operands that lie
//! row after row.

use burn::tensor::{Int, Tensor, TensorData};
use moe_kernels::{
    Activation, AutodiffMoeBackend, ExpertPlan, FfnWeights, combine_rows, dispatch_rows, expert_ffn, gelu,
    grouped_matmul, grouped_matmul_transposed, grouped_outer, linear, swiglu, top_k,
};
use moe_tests::{CASES, assert_close, host, on_every_path, random, tensor};

on_every_path!(
    top_k_takes_views,
    dispatch_and_combine_take_views,
    grouped_products_take_views,
    activations_take_views,
    a_linear_layer_takes_views,
    expert_ffn_takes_views,
);

/// How the numbers of a tensor lie in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    /// Row after row.
    Plain,
    /// The last dimension has the largest stride: a transposed view.
    Turned,
    /// Rows and columns of a larger tensor, behind others.
    Part,
}

/// A tensor with a gradient, and what of it an op is to see.
struct Leaf<B: AutodiffMoeBackend, const D: usize> {
    leaf: Tensor<B, D>,
    layout: Layout,
    shape: [usize; D],
}

impl<B: AutodiffMoeBackend, const D: usize> Leaf<B, D> {
    fn new(values: Tensor<B, D>, layout: Layout) -> Self {
        let shape = values.dims();
        let leaf = match layout {
            Layout::Plain => values,
            Layout::Turned => laid_out(values.swap_dims(D - 2, D - 1)),
            Layout::Part => {
                let beside = Tensor::cat(vec![values.clone().mul_scalar(3.0), values], D - 1);
                laid_out(Tensor::cat(vec![beside.clone().add_scalar(1.0), beside], D - 2))
            }
        };
        Self { leaf: leaf.require_grad(), layout, shape }
    }

    fn view(&self) -> Tensor<B, D> {
        self.of(self.leaf.clone())
    }

    /// The gradient of what the op saw.
    fn gradient(&self, grads: &B::Gradients) -> Vec<f64> {
        let grad = self.leaf.grad(grads).expect("the leaf was tracked");
        host(self.of(Tensor::<B, D>::from_inner(grad)))
    }

    fn of(&self, leaf: Tensor<B, D>) -> Tensor<B, D> {
        match self.layout {
            Layout::Plain => leaf,
            Layout::Turned => leaf.swap_dims(D - 2, D - 1),
            Layout::Part => {
                let mut ranges = self.shape.map(|size| 0..size);
                for dim in [D - 2, D - 1] {
                    ranges[dim] = self.shape[dim]..2 * self.shape[dim];
                }
                leaf.slice(ranges)
            }
        }
    }
}

/// The same numbers, row after row.
fn laid_out<B: AutodiffMoeBackend, const D: usize>(tensor: Tensor<B, D>) -> Tensor<B, D> {
    let (device, dtype) = (tensor.device(), tensor.dtype());
    Tensor::from_data(tensor.into_data(), (&device, dtype))
}

type Op<'a, B> = dyn Fn(&[Tensor<B, 2>], &[Tensor<B, 3>]) -> Tensor<B, 2> + 'a;

/// Output and gradients of `op` with operands of a layout; of its output, too, a view of that layout goes on.
fn results<B: AutodiffMoeBackend>(
    layout: Layout,
    matrices: &[[usize; 2]],
    stacks: &[[usize; 3]],
    device: &B::Device,
    op: &Op<'_, B>,
) -> Vec<Vec<f64>> {
    let mut seed = 0;
    let mut next = |len: usize| {
        seed += 1;
        random(len, seed)
    };
    let matrices = matrices.iter().map(|&[m, n]| Leaf::new(tensor::<B, 2>(&next(m * n), [m, n], device), layout));
    let matrices: Vec<_> = matrices.collect();
    let stacks = stacks.iter().map(|&[e, m, n]| Leaf::new(tensor::<B, 3>(&next(e * m * n), [e, m, n], device), layout));
    let stacks: Vec<_> = stacks.collect();

    let views =
        (matrices.iter().map(Leaf::view).collect::<Vec<_>>(), stacks.iter().map(Leaf::view).collect::<Vec<_>>());
    let output = op(&views.0, &views.1);
    let [m, n] = output.dims();
    let weight = tensor::<B, 2>(&next(m * n), [m, n], device);
    let loss = match layout {
        Layout::Plain => (output.clone() * weight).sum(),
        Layout::Turned => (output.clone().transpose() * laid_out(weight.transpose())).sum(),
        Layout::Part => {
            let half = m.div_ceil(2);
            let part = |rows: std::ops::Range<usize>| {
                (output.clone().slice([rows.clone()]) * weight.clone().slice([rows])).sum()
            };
            part(0..half) + part(half..m)
        }
    };
    let grads = loss.backward();
    let mut results = vec![host(output)];
    results.extend(matrices.iter().map(|leaf| leaf.gradient(&grads)));
    results.extend(stacks.iter().map(|leaf| leaf.gradient(&grads)));
    results
}

fn same_on_views<B: AutodiffMoeBackend>(
    name: &str,
    matrices: &[[usize; 2]],
    stacks: &[[usize; 3]],
    device: &B::Device,
    op: &Op<'_, B>,
) {
    let plain = results(Layout::Plain, matrices, stacks, device, op);
    for layout in [Layout::Turned, Layout::Part] {
        let found = results(layout, matrices, stacks, device, op);
        for (i, (found, expected)) in found.iter().zip(&plain).enumerate() {
            assert_close(&format!("{name}, {layout:?}, result {i}"), found, expected);
        }
    }
}

/// Sizes of [`CASES`]' second, `T, E, K, D, F`, and its plan.
fn sizes_and_plan<B: AutodiffMoeBackend>(device: &B::Device) -> ([usize; 5], ExpertPlan<B>) {
    let case = &CASES[1];
    let experts: Vec<i64> = case.assignment().into_iter().map(|expert| expert as i64).collect();
    let experts = TensorData::new(experts, [case.tokens, case.top_k]);
    let plan = ExpertPlan::new(Tensor::<B, 2, Int>::from_data(experts, device), case.experts);
    ([case.tokens, case.experts, case.top_k, case.d_model, case.d_hidden], plan)
}

fn top_k_takes_views<B: AutodiffMoeBackend>(device: &B::Device) {
    same_on_views::<B>("top_k", &[[21, 10]], &[], device, &|matrices, _| top_k(matrices[0].clone(), 3).0);
}

fn dispatch_and_combine_take_views<B: AutodiffMoeBackend>(device: &B::Device) {
    let ([t, _, k, d, _], plan) = sizes_and_plan::<B>(device);
    same_on_views::<B>("dispatch_rows", &[[t, d]], &[], device, &|matrices, _| {
        dispatch_rows(matrices[0].clone(), &plan)
    });
    same_on_views::<B>("combine_rows", &[[t * k, d], [t, k]], &[], device, &|matrices, _| {
        combine_rows(matrices[0].clone(), matrices[1].clone(), &plan)
    });
}

fn grouped_products_take_views<B: AutodiffMoeBackend>(device: &B::Device) {
    let ([t, e, k, d, f], plan) = sizes_and_plan::<B>(device);
    same_on_views::<B>("grouped_matmul", &[[t * k, d]], &[[e, d, f]], device, &|matrices, stacks| {
        grouped_matmul(matrices[0].clone(), stacks[0].clone(), &plan)
    });
    same_on_views::<B>("grouped_matmul_transposed", &[[t * k, d]], &[[e, f, d]], device, &|matrices, stacks| {
        grouped_matmul_transposed(matrices[0].clone(), stacks[0].clone(), &plan)
    });
    same_on_views::<B>("grouped_outer", &[[t * k, d], [t * k, f]], &[], device, &|matrices, _| {
        grouped_outer(matrices[0].clone(), matrices[1].clone(), &plan).reshape([e * d, f])
    });
}

fn activations_take_views<B: AutodiffMoeBackend>(device: &B::Device) {
    same_on_views::<B>("swiglu", &[[17, 22]], &[], device, &|matrices, _| swiglu(matrices[0].clone()));
    same_on_views::<B>("gelu", &[[17, 22]], &[], device, &|matrices, _| gelu(matrices[0].clone()));
}

fn a_linear_layer_takes_views<B: AutodiffMoeBackend>(device: &B::Device) {
    same_on_views::<B>("linear", &[[17, 22], [22, 9]], &[], device, &|matrices, _| {
        linear(matrices[0].clone(), matrices[1].clone())
    });
}

fn expert_ffn_takes_views<B: AutodiffMoeBackend>(device: &B::Device) {
    let ([t, e, k, d, f], plan) = sizes_and_plan::<B>(device);
    for activation in [Activation::SwiGlu, Activation::Relu] {
        let c = activation.columns(f);
        let matrices = [[t, d], [t, k], [e, c], [e, d]];
        same_on_views::<B>("expert_ffn", &matrices, &[[e, d, c], [e, f, d]], device, &|matrices, stacks| {
            let weights = FfnWeights {
                w_in: stacks[0].clone(),
                w_out: stacks[1].clone(),
                b_in: Some(matrices[2].clone()),
                b_out: Some(matrices[3].clone()),
                activation,
            };
            expert_ffn(matrices[0].clone(), matrices[1].clone(), weights, &plan)
        });
    }
}

//! The contestants of this workspace: the whole layer, its experts alone, their grouped products alone, and what stands
//! around them.

use burn::module::AutodiffModule;
use burn::tensor::{DType, Tensor};
use moe_kernels::{
    AutodiffMoeBackend, ExpertPlan, MoeBackend, combine_rows, dispatch_rows, grouped_matmul, swiglu, with_threads_awake,
};
use moe_layers::dispatch;

use super::contest::{Contestant, Pass, Side};
use super::problem::Problem;
use crate::clock::{Time, timed};
use crate::error::Result;
use crate::session::wait;

/// Names in tables and records.
pub(crate) const LAYER: &str = "moe layer";
pub(crate) const EXPERTS: &str = "moe experts";
pub(crate) const PRODUCTS: &str = "grouped products";
pub(crate) const ROUTER: &str = "router and sort";
pub(crate) const COMBINE: &str = "combine";

/// A part of the layer, as a function to its output.
pub(crate) struct Ours<'a, B: AutodiffMoeBackend> {
    name: &'static str,
    device: B::Device,
    forward: Box<dyn Fn() -> Tensor<B, 2> + 'a>,
}

/// All of them, the whole layer first.
pub(crate) fn contestants<B: AutodiffMoeBackend>(problem: &Problem<B>) -> Vec<Box<dyn Contestant + '_>> {
    vec![layer(problem), experts(problem), products(problem), router(problem), combine(problem)]
}

fn part<'a, B: AutodiffMoeBackend>(
    problem: &'a Problem<B>,
    name: &'static str,
    forward: impl Fn() -> Tensor<B, 2> + 'a,
) -> Box<dyn Contestant + 'a> {
    Box::new(Ours { name, device: problem.device.clone(), forward: Box::new(forward) })
}

/// Router, sort, experts, combine and the auxiliary losses' values.
fn layer<B: AutodiffMoeBackend>(problem: &Problem<B>) -> Box<dyn Contestant + '_> {
    let tokens = problem.tokens();
    part(problem, LAYER, move || problem.moe.forward(tokens.clone()).output)
}

/// From tokens and a routing that is there already to the output: dispatch, experts, combine.
fn experts<B: AutodiffMoeBackend>(problem: &Problem<B>) -> Box<dyn Contestant + '_> {
    let (tokens, routing) = (problem.tokens(), problem.routing());
    part(problem, EXPERTS, move || dispatch::grouped(tokens.clone(), problem.experts(), &routing))
}

/// On rows that are sorted already and weights that have the products' type already: two grouped products and the
/// activation, as PyTorch's `grouped_mm` is timed. Backward to the rows and both weights.
fn products<B: AutodiffMoeBackend>(problem: &Problem<B>) -> Box<dyn Contestant + '_> {
    let (dtype, plan) = (DType::from(problem.dtype), problem.routing().plan);
    let rows = leaf(dispatch_rows(problem.tokens(), &plan), dtype);
    let [w_in, w_out] = [&problem.experts().w_in, &problem.experts().w_out].map(|weight| leaf(weight.val(), dtype));
    part(problem, PRODUCTS, move || products_of_rows(rows.clone(), [w_in.clone(), w_out.clone()], &plan))
}

/// `swiglu(rows W_in) W_out`, rows sorted by expert.
pub(super) fn products_of_rows<B: MoeBackend>(
    rows: Tensor<B, 2>,
    [w_in, w_out]: [Tensor<B, 3>; 2],
    plan: &ExpertPlan<B>,
) -> Tensor<B, 2> {
    grouped_matmul(swiglu(grouped_matmul(rows, w_in, plan)), w_out, plan)
}

/// The same numbers, with a gradient of their own.
fn leaf<B: AutodiffMoeBackend, const D: usize>(tensor: Tensor<B, D>, dtype: DType) -> Tensor<B, D> {
    Tensor::from_inner(tensor.inner().cast(dtype)).require_grad()
}

/// From tokens to gates and the sorted plan; backward starts at the gates.
fn router<B: AutodiffMoeBackend>(problem: &Problem<B>) -> Box<dyn Contestant + '_> {
    let tokens = problem.tokens();
    part(problem, ROUTER, move || problem.moe.router.forward(tokens.clone()).gates)
}

/// What combining costs inside the fused experts: forward, gather and weighted sum; backward, the gather of the output's
/// gradient. The gates' gradient is a sum over what is computed anyway.
struct Combine<B: MoeBackend> {
    device: B::Device,
    plan: ExpertPlan<B>,
    /// `[R, D]`.
    rows: Tensor<B, 2>,
    /// `[T, K]`.
    gates: Tensor<B, 2>,
    /// `[T, D]`.
    grad: Tensor<B, 2>,
}

fn combine<B: AutodiffMoeBackend>(problem: &Problem<B>) -> Box<dyn Contestant> {
    let grad = problem.tokens().inner();
    let routing = problem.moe.valid().router.forward(grad.clone());
    let rows = dispatch_rows(grad.clone(), &routing.plan);
    let gates = routing.gates.cast(grad.dtype());
    Box::new(Combine::<B::InnerBackend> { device: problem.device.clone(), plan: routing.plan, rows, gates, grad })
}

impl<B: MoeBackend> Contestant for Combine<B> {
    fn name(&self) -> String {
        COMBINE.into()
    }

    fn side(&self) -> Side {
        Side::Ours
    }

    fn run(&mut self, pass: Pass) -> Result<Time> {
        wait::<B>(&self.device)?;
        let (results, time) = timed(|| {
            let output = combine_rows(self.rows.clone(), self.gates.clone(), &self.plan);
            let gathered = (pass == Pass::Training).then(|| dispatch_rows(self.grad.clone(), &self.plan));
            wait::<B>(&self.device).map(|()| (output, gathered))
        });
        results.map(|_| time)
    }
}

impl<B: AutodiffMoeBackend> Contestant for Ours<'_, B> {
    fn name(&self) -> String {
        self.name.into()
    }

    fn side(&self) -> Side {
        Side::Ours
    }

    /// With threads awake, as in the step of a training. Freeing the results is not part of the time, on neither side.
    fn run(&mut self, pass: Pass) -> Result<Time> {
        wait::<B>(&self.device)?;
        let (results, time) = timed(|| {
            with_threads_awake::<B, _>(|| {
                let output = (self.forward)();
                let gradients = (pass == Pass::Training).then(|| output.backward());
                wait::<B>(&self.device).map(|()| (output, gradients))
            })
        });
        results.map(|_| time)
    }
}

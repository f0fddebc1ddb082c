//! The contestants of this workspace: the whole layer, its experts alone, and what stands around them.

use burn::tensor::Tensor;
use moe_kernels::{AutodiffMoeBackend, combine_rows, dispatch_rows};
use moe_layers::dispatch;

use super::contest::{Contestant, Pass, Side};
use super::problem::Problem;
use crate::clock::{Time, timed};
use crate::error::{Error, Result};

/// Names in tables and records.
pub(crate) const LAYER: &str = "moe layer";
pub(crate) const EXPERTS: &str = "moe experts";
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
    vec![layer(problem), experts(problem), router(problem), combine(problem)]
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

/// From tokens to gates and the sorted plan; backward starts at the gates.
fn router<B: AutodiffMoeBackend>(problem: &Problem<B>) -> Box<dyn Contestant + '_> {
    let tokens = problem.tokens();
    part(problem, ROUTER, move || problem.moe.router.forward(tokens.clone()).gates)
}

/// From the experts' rows to the output. The fused experts have this inside: as an op of its own, whose gradient for the
/// rows is written out, it costs no less than in there.
fn combine<B: AutodiffMoeBackend>(problem: &Problem<B>) -> Box<dyn Contestant + '_> {
    let routing = problem.routing();
    let rows = leaf(dispatch_rows(problem.tokens(), &routing.plan));
    let gates = leaf(routing.gates.clone().cast(rows.dtype()));
    part(problem, COMBINE, move || combine_rows(rows.clone(), gates.clone(), &routing.plan))
}

/// The same numbers without a history, with a gradient of their own.
fn leaf<B: AutodiffMoeBackend>(tensor: Tensor<B, 2>) -> Tensor<B, 2> {
    Tensor::from_inner(tensor.inner()).require_grad()
}

impl<B: AutodiffMoeBackend> Ours<'_, B> {
    fn wait(&self) -> Result<()> {
        B::sync(&self.device).map_err(|error| Error::of("the device failed", format!("{error:?}")))
    }
}

impl<B: AutodiffMoeBackend> Contestant for Ours<'_, B> {
    fn name(&self) -> String {
        self.name.into()
    }

    fn side(&self) -> Side {
        Side::Ours
    }

    /// Freeing the results is not part of the time, on neither side.
    fn run(&mut self, pass: Pass) -> Result<Time> {
        self.wait()?;
        let (results, time) = timed(|| {
            let output = (self.forward)();
            let gradients = (pass == Pass::Training).then(|| output.backward());
            self.wait().map(|()| (output, gradients))
        });
        results.map(|_| time)
    }
}

//! Is what will be timed right? Output and all gradients against `dispatch::dense`, every expert on every token.
//!
//! f32: within `moe_tests::RELATIVE` of the largest value. bf16: at most twice the error of the oracle in bf16, both against
//! the oracle in f32. The oracle does `E / K` times the work, so big shapes are verified on fewer tokens.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, ElementConversion, Tensor};
use moe_kernels::{AutodiffMoeBackend, combine_rows, dispatch_rows};
use moe_layers::{Routing, dispatch};
use moe_train::config::Dtype;

use super::Shape;
use super::ours::products_of_rows;
use super::problem::Problem;
use crate::data::tensor;
use crate::error::{Error, Result};

/// FLOPs an oracle may take: some seconds on one core.
const CPU_LIMIT: u64 = 200_000_000_000;
const GPU_LIMIT: u64 = 20 * CPU_LIMIT;

/// In bf16, our error over that of the plain path in bf16.
const LOW_PRECISION_FACTOR: f64 = 2.0;

/// Seed of the gradient that backward starts with.
const UPSTREAM: u64 = 9;

/// Values by name, in f32. They stay on the device: the gradients of a large layer take longer to fetch than to compute.
type Values<B> = Vec<(&'static str, Tensor<B, 1>)>;

/// Which implementation computes the experts.
#[derive(Clone, Copy, PartialEq)]
enum Path {
    /// The one op of the layer.
    Grouped,
    /// The same in steps: dispatch, grouped products around the activation, combine.
    Steps,
    /// The oracle.
    Dense,
}

/// Verifies the experts alone, as one op and in steps, and the whole layer; returns the tokens it took.
pub(crate) fn verify<B: AutodiffMoeBackend>(
    shape: &Shape,
    skew: f64,
    dtype: Dtype,
    device: &B::Device,
    on_gpu: bool,
) -> Result<usize> {
    let shape = shape.limited(oracle_flops, if on_gpu { GPU_LIMIT } else { CPU_LIMIT });
    let problem = Problem::<B>::new(&shape, skew, dtype, device);
    type Run<B> = fn(&Problem<B>, Path, Dtype) -> Values<<B as AutodiffBackend>::InnerBackend>;
    type Parts<B> = [(&'static str, Run<B>, &'static [Path]); 2];
    let parts: Parts<B> = [("experts", experts, &[Path::Grouped, Path::Steps]), ("layer", layer, &[Path::Grouped])];
    for (what, values, paths) in parts {
        let exact = values(&problem, Path::Dense, Dtype::F32);
        let plain = (dtype == Dtype::Bf16).then(|| values(&problem, Path::Dense, dtype));
        for &path in paths {
            compare(what, &exact, &values(&problem, path, dtype), plain.as_ref())?;
        }
    }
    Ok(shape.case.tokens)
}

fn oracle_flops(shape: &Shape) -> u64 {
    shape.training_flops() * shape.case.experts as u64 / shape.case.top_k as u64
}

fn compare<B: Backend>(what: &str, exact: &Values<B>, found: &Values<B>, plain: Option<&Values<B>>) -> Result<()> {
    for (index, ((name, exact), (_, found))) in exact.iter().zip(found).enumerate() {
        let allowed = match plain {
            None => moe_tests::RELATIVE,
            Some(plain) => LOW_PRECISION_FACTOR * error(&plain[index].1, exact).max(moe_tests::RELATIVE),
        };
        let error = error(found, exact);
        if error.is_nan() || error > allowed {
            let message = format!("{name} has a relative error of {error:e}, {allowed:e} is allowed");
            return Err(Error::of(format!("wrong result, so nothing is timed: {what}"), message));
        }
    }
    Ok(())
}

/// Largest difference, relative to the largest expected value; NaN if anything is.
fn error<B: Backend>(found: &Tensor<B, 1>, expected: &Tensor<B, 1>) -> f64 {
    if found.dims() != expected.dims() {
        return f64::NAN;
    }
    let differences = (found.clone() - expected.clone()).abs();
    // A device's maximum may pass over what is no number.
    if differences.clone().is_nan().any().into_scalar().elem() {
        return f64::NAN;
    }
    let [worst, largest]: [f64; 2] = [differences, expected.clone().abs()].map(|all| all.max().into_scalar().elem());
    worst / largest.max(f64::MIN_POSITIVE)
}

/// Output and gradients of tokens, gates and weights under a routing that is given.
fn experts<B: AutodiffMoeBackend>(problem: &Problem<B>, path: Path, dtype: Dtype) -> Values<B::InnerBackend> {
    let tokens = problem.tokens_as(dtype);
    let routing = problem.routing();
    let output = forward(problem, path, tokens.clone(), &routing);
    let grads = upstream(output.clone()).backward();
    let weights = problem.experts();
    vec![
        ("output", flat(output.inner())),
        ("gradient of tokens", flat(tokens.grad(&grads).expect("tokens are tracked"))),
        ("gradient of gates", flat(routing.gates.grad(&grads).expect("gates are tracked"))),
        ("gradient of w_in", flat(weights.w_in.grad(&grads).expect("a parameter"))),
        ("gradient of w_out", flat(weights.w_out.grad(&grads).expect("a parameter"))),
    ]
}

fn forward<B: AutodiffMoeBackend>(
    problem: &Problem<B>,
    path: Path,
    tokens: Tensor<B, 2>,
    routing: &Routing<B>,
) -> Tensor<B, 2> {
    match path {
        Path::Grouped => dispatch::grouped(tokens, problem.experts(), routing),
        Path::Steps => in_steps(problem, tokens, routing),
        Path::Dense => dispatch::dense(tokens, problem.experts(), routing),
    }
}

fn in_steps<B: AutodiffMoeBackend>(problem: &Problem<B>, tokens: Tensor<B, 2>, routing: &Routing<B>) -> Tensor<B, 2> {
    let (dtype, plan, experts) = (tokens.dtype(), &routing.plan, problem.experts());
    let weights = [experts.w_in.val().cast(dtype), experts.w_out.val().cast(dtype)];
    let rows = products_of_rows(dispatch_rows(tokens, plan), weights, plan);
    combine_rows(rows, routing.gates.clone().cast(dtype), plan)
}

/// Output and gradients of the layer with its router. The oracle routes the same tokens by the same router.
fn layer<B: AutodiffMoeBackend>(problem: &Problem<B>, path: Path, dtype: Dtype) -> Values<B::InnerBackend> {
    let tokens = problem.tokens_as(dtype);
    let output = match path {
        Path::Grouped | Path::Steps => problem.moe.forward(tokens.clone()).output,
        Path::Dense => dispatch::dense(tokens.clone(), problem.experts(), &problem.moe.router.forward(tokens.clone())),
    };
    let grads = upstream(output.clone()).backward();
    let mut values = vec![
        ("output", flat(output.inner())),
        ("gradient of tokens", flat(tokens.grad(&grads).expect("tokens are tracked"))),
        ("gradient of w_in", flat(problem.experts().w_in.grad(&grads).expect("a parameter"))),
    ];
    // A single gate, divided by itself, is 1 whatever the router says: its gradient is nothing but rounding.
    if problem.case.top_k > 1 {
        let weight = &problem.moe.router.weight().expect("a learned router");
        values.push(("gradient of the router", flat(weight.grad(&grads).expect("a parameter"))));
    }
    values
}

/// A sum whose gradient is a different number for every entry of `output`.
fn upstream<B: AutodiffMoeBackend>(output: Tensor<B, 2>) -> Tensor<B, 1> {
    let weights = tensor(output.dims(), UPSTREAM, 1.0, &output.device());
    (output.cast(DType::F32) * weights).sum()
}

fn flat<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Tensor<B, 1> {
    let numbers = tensor.shape().num_elements();
    tensor.cast(DType::F32).reshape([numbers])
}

pub(crate) fn host<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().into_vec().expect("the numbers were just converted")
}

#[cfg(test)]
mod tests {
    use moe_train::backend::{Plain, Training};

    use super::*;

    fn check(shape: &str, skew: f64) -> Result<usize> {
        verify::<Training>(&shape.parse().unwrap(), skew, Dtype::F32, &Default::default(), false)
    }

    #[test]
    fn odd_shapes_uneven_loads_and_one_token_are_right() {
        for (shape, skew) in
            [("37,13,9,5,3", 0.0), ("64,16,8,16,2", 4.0), ("1,8,6,4,2", 0.0), ("20,8,6,3,3", 1.0), ("90,8,6,4,1", 0.0)]
        {
            assert_eq!(check(shape, skew), Ok(shape.split(',').next().unwrap().parse().unwrap()), "{shape}");
        }
    }

    fn numbers(numbers: &[f32]) -> Tensor<Plain, 1> {
        Tensor::from_floats(numbers, &Default::default())
    }

    fn output(x: f32) -> Values<Plain> {
        vec![("output", numbers(&[1.0, x]))]
    }

    #[test]
    fn a_wrong_value_and_a_nan_are_refused() {
        assert!(compare("layer", &output(0.5), &output(0.5), None).is_ok());
        for wrong in [0.5001, f32::NAN] {
            let message = compare("layer", &output(0.5), &output(wrong), None).unwrap_err().to_string();
            assert!(message.contains("wrong result") && message.contains("output"), "{message}");
        }
    }

    #[test]
    fn in_bf16_twice_the_error_of_the_plain_path_is_allowed() {
        let compare = |found| compare("layer", &output(0.5), &output(found), Some(&output(0.51)));
        assert!(compare(0.519).is_ok() && compare(0.481).is_ok() && compare(0.53).is_err());
    }

    #[test]
    fn a_missing_value_is_an_error() {
        assert!(error(&numbers(&[1.0]), &numbers(&[1.0, 2.0])).is_nan());
    }
}

//! The whole layer against central differences in f64: output and auxiliary losses together, every parameter.
//!
//! A program of its own: burn 0.21 keeps the default float type of a device for the whole process, so f64 and f32
//! models on NdArray cannot share one.

#![cfg(feature = "ndarray")]

use burn::backend::{Autodiff, NdArray};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::Tensor;
use default_moe::{DefaultOptions, DefaultVectors, Form};
use moe_layers::{Activation, Moe, MoeConfig};
use moe_tests::{host, random, tensor};

type B = Autodiff<NdArray<f64>>;

const STEP: f64 = 1e-6;
/// Truncation (`STEP^2`) and rounding (`1e-16 / STEP`) both stay near 1e-10 of values near 1.
const TOLERANCE: f64 = 1e-7;

const SHAPE: [usize; 2] = [7, 5];

fn loss(moe: &Moe<B>, tokens: Tensor<B, 2>) -> Tensor<B, 1> {
    let out = moe.forward(tokens);
    weighted(out.output) + out.losses.weighted()
}

fn weighted(output: Tensor<B, 2>) -> Tensor<B, 1> {
    (output * tensor::<B, 2>(&random(35, 2), SHAPE, &Default::default())).sum()
}

/// Adds `amount` to element `index` of the parameter number `param`.
struct Nudge {
    param: usize,
    index: usize,
    amount: f64,
}

impl ModuleMapper<B> for Nudge {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let here = self.param == 0;
        self.param = self.param.wrapping_sub(1);
        if !here {
            return param;
        }
        let (index, amount) = (self.index, self.amount);
        param.map(|t| {
            let (shape, device) = (t.dims(), t.device());
            let mut values = host(t);
            values[index] += amount;
            tensor::<B, D>(&values, shape, &device).require_grad()
        })
    }
}

/// The gradient of every parameter, in the order of the module.
struct Collect<'a> {
    grads: &'a <B as burn::tensor::backend::AutodiffBackend>::Gradients,
    all: Vec<Vec<f64>>,
}

impl ModuleVisitor<B> for Collect<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.all.push(host(param.grad(self.grads).expect("every parameter has a gradient")));
    }
}

fn check(config: MoeConfig) {
    let moe: Moe<B> = config.with_balance_coef(0.7).with_z_coef(0.3).init(&Default::default());
    compare(&randomize(moe), loss);
}

/// The gradients of `loss` by autodiff and by differences.
fn compare(moe: &Moe<B>, loss: impl Fn(&Moe<B>, Tensor<B, 2>) -> Tensor<B, 1>) {
    let tokens = tensor::<B, 2>(&random(35, 1), SHAPE, &Default::default()).require_grad();
    let grads = loss(moe, tokens.clone()).backward();
    let mut collect = Collect { grads: &grads, all: Vec::new() };
    moe.visit(&mut collect);

    for (param, gradient) in collect.all.iter().enumerate() {
        for (index, &analytic) in gradient.iter().enumerate() {
            let at = |amount| {
                let nudged = moe.clone().map(&mut Nudge { param, index, amount });
                host(loss(&nudged, tokens.clone()))[0]
            };
            let numeric = (at(STEP) - at(-STEP)) / (2.0 * STEP);
            let allowed = TOLERANCE * analytic.abs().max(1.0);
            assert!((numeric - analytic).abs() < allowed, "parameter {param}[{index}]: {analytic} against {numeric}");
        }
    }
}

/// The same numbers on every run, biases included.
fn randomize(moe: Moe<B>) -> Moe<B> {
    struct Fill(u64);
    impl ModuleMapper<B> for Fill {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            self.0 += 1;
            let seed = self.0;
            param.map(|t| tensor::<B, D>(&random(t.shape().num_elements(), seed), t.dims(), &t.device()).require_grad())
        }
    }
    moe.map(&mut Fill(100))
}

#[test]
fn swiglu_experts_match_finite_differences() {
    check(MoeConfig::new(5, 3, 4, 2));
}

#[test]
fn swiglu_experts_with_biases_match_finite_differences() {
    check(MoeConfig::new(5, 3, 4, 2).with_bias(true));
}

/// No pre-activation is within a step of 0, where ReLU has no slope.
#[test]
fn relu_experts_match_finite_differences() {
    check(MoeConfig::new(5, 3, 4, 2).with_bias(true).with_activation(Activation::Relu));
}

#[test]
fn renormalised_gates_and_biases_match_finite_differences() {
    let config = MoeConfig::new(5, 3, 4, 3).with_normalize_gates(true).with_bias(true);
    check(config.with_activation(Activation::Gelu));
}

/// Default vectors are constants of the gradient: the differences are taken with the batch's update held fixed.
fn check_default(config: MoeConfig) {
    let device = Default::default();
    let (experts, width) = (config.num_experts, config.d_model);
    let moe = randomize(config.init(&device));
    let mut vectors: DefaultVectors<B> = DefaultOptions::new().with_beta(0.5).init(experts, width, &device);
    vectors.values = vectors.values.map(|v| tensor(&random(experts * width, 50), v.dims(), &device));
    let tokens = tensor::<B, 2>(&random(35, 1), SHAPE, &device);
    let update = vectors.forward_training(&moe, tokens).update.expect("a training pass");
    compare(&moe, |moe, tokens| weighted(vectors.forward_training_reduced(moe, tokens, |_| update.clone()).output));

    // Without a forward value to take differences of, the backward-only form is compared with the full one.
    let router_gradient = |vectors: &DefaultVectors<B>| {
        let tokens = tensor::<B, 2>(&random(35, 1), SHAPE, &device);
        let grads = weighted(vectors.forward_training(&moe, tokens).output).backward();
        host(moe.router.weight().expect("a learned router").grad(&grads).expect("tracked"))
    };
    let full = router_gradient(&vectors);
    let backward_only = router_gradient(&vectors.clone().with_form(Form::BackwardOnly));
    for (full, backward_only) in full.iter().zip(backward_only) {
        assert!((full - backward_only).abs() < TOLERANCE, "{full} against {backward_only}");
    }
}

#[test]
fn default_vectors_match_finite_differences() {
    check_default(MoeConfig::new(5, 3, 4, 1));
    check_default(MoeConfig::new(5, 3, 4, 2).with_activation(Activation::Gelu).with_bias(true));
}

#[test]
fn default_vectors_with_renormalised_gates_match_finite_differences() {
    check_default(MoeConfig::new(5, 3, 4, 2).with_normalize_gates(true));
}

#[test]
fn shared_experts_match_finite_differences() {
    check(MoeConfig::new(5, 3, 4, 2).with_shared_d_hidden(6));
    let gated = MoeConfig::new(5, 3, 4, 2).with_shared_d_hidden(2).with_shared_gate(true);
    check(gated.clone().with_activation(Activation::Gelu));
    check_default(gated);
}

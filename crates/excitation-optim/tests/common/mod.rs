//! A module with every kind of expert, its gradients, and what each expert's factor makes of a change, on slices.

#![allow(dead_code, reason = "every test program uses its own part")]

use burn::backend::{Autodiff, Flex};
use burn::module::{Module, ModuleVisitor, Param};
use burn::nn::{Linear, LinearConfig};
use burn::optim::GradientsParams;
use burn::tensor::backend::Backend;
use burn::tensor::{Distribution, Tensor, TensorData};
use excitation_optim::{ExpertCounts, ExpertLayers, ExpertModule};

pub(crate) type AD = Autodiff<Flex>;

pub(crate) const LR: f64 = 0.05;
/// Of the value, and absolute; f32.
pub(crate) const RELATIVE: f64 = 1e-5;
pub(crate) const ABSOLUTE: f64 = 1e-6;

/// Experts of the stack and of the list; units of the hidden layer.
pub(crate) const STACKED: usize = 3;
pub(crate) const LISTED: usize = 2;
pub(crate) const UNITS: usize = 4;

/// Every kind of expert beside a layer that is none.
#[derive(Module, Debug)]
pub(crate) struct Zoo<B: Backend> {
    pub(crate) stack: Param<Tensor<B, 3>>,
    pub(crate) stack_bias: Option<Param<Tensor<B, 2>>>,
    pub(crate) hidden: Linear<B>,
    pub(crate) list: Vec<Linear<B>>,
    pub(crate) plain: Linear<B>,
    pub(crate) stack_counts: ExpertCounts<B>,
    pub(crate) hidden_counts: ExpertCounts<B>,
    pub(crate) list_counts: ExpertCounts<B>,
}

impl<B: Backend> ExpertModule for Zoo<B> {
    fn expert_layers(&self, found: &mut ExpertLayers) {
        let stack = found.layer("stack", &self.stack_counts).stacked(&self.stack);
        if let Some(bias) = &self.stack_bias {
            stack.stacked(bias);
        }
        found.layer("hidden", &self.hidden_counts).neurons(&self.hidden);
        found.layer("list", &self.list_counts).each(&self.list);
    }
}

impl Zoo<AD> {
    pub(crate) fn new(bias: bool) -> Self {
        let device = Default::default();
        let linear = |inputs, outputs| LinearConfig::new(inputs, outputs).with_bias(bias).init(&device);
        let zoo = Self {
            stack: Param::from_tensor(random([STACKED, 5, 2])),
            stack_bias: bias.then(|| Param::from_tensor(random([STACKED, 2]))),
            hidden: linear(3, UNITS),
            list: (0..LISTED).map(|_| linear(2, 3)).collect(),
            plain: linear(3, 2),
            stack_counts: ExpertCounts::new(&device),
            hidden_counts: ExpertCounts::new(&device),
            list_counts: ExpertCounts::new(&device),
        };
        // burn draws a parameter when it is first read, and a clone would draw its own.
        values(&zoo);
        zoo
    }
}

/// Counts of the three layers, and the number of tokens.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) stack: [f32; STACKED],
    pub(crate) hidden: [f32; UNITS],
    pub(crate) list: [f32; LISTED],
    pub(crate) tokens: usize,
}

pub(crate) const SKEWED: Load =
    Load { stack: [9.0, 3.0, 0.0], hidden: [1.0, 0.0, 7.0, 4.0], list: [11.0, 1.0], tokens: 12 };
pub(crate) const UNIFORM: Load = Load { stack: [4.0; STACKED], hidden: [3.0; UNITS], list: [6.0; LISTED], tokens: 12 };

impl Load {
    pub(crate) fn register(&self, zoo: &Zoo<AD>, grads: &mut GradientsParams) {
        let tensor = |counts: &[f32]| Tensor::<Flex, 1>::from_data(counts, &Default::default());
        zoo.stack_counts.register(grads, tensor(&self.stack), self.tokens);
        zoo.hidden_counts.register(grads, tensor(&self.hidden), self.tokens);
        zoo.list_counts.register(grads, tensor(&self.list), self.tokens);
    }

    fn counts_of(&self, layer: &str) -> &[f32] {
        match layer {
            "stack" => &self.stack,
            "hidden" => &self.hidden,
            _ => &self.list,
        }
    }
}

pub(crate) fn random<const D: usize>(shape: [usize; D]) -> Tensor<AD, D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Default::default())
}

/// Random gradients for every parameter that has elements.
pub(crate) fn gradients(zoo: &impl Module<AD>) -> GradientsParams {
    struct Fill(GradientsParams);
    impl ModuleVisitor<AD> for Fill {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<AD, D>>) {
            if param.shape().num_elements() > 0 {
                self.0.register(param.id, random(param.dims()).inner());
            }
        }
    }
    let mut fill = Fill(GradientsParams::new());
    zoo.visit(&mut fill);
    fill.0
}

/// The same gradients once more.
pub(crate) fn copy(zoo: &impl Module<AD>, grads: &GradientsParams) -> GradientsParams {
    struct Copy<'a>(&'a GradientsParams, GradientsParams);
    impl ModuleVisitor<AD> for Copy<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<AD, D>>) {
            if let Some(grad) = self.0.get::<Flex, D>(param.id) {
                self.1.register(param.id, grad);
            }
        }
    }
    let mut copy = Copy(grads, GradientsParams::new());
    zoo.visit(&mut copy);
    copy.1
}

/// One parameter: path, shape, elements.
pub(crate) type Value = (String, Vec<usize>, Vec<f32>);

pub(crate) fn values(module: &impl Module<AD>) -> Vec<Value> {
    #[derive(Default)]
    struct Collect(Vec<String>, Vec<Value>);
    impl ModuleVisitor<AD> for Collect {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.0.push(name.into());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.0.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<AD, D>>) {
            let data: TensorData = param.val().into_data();
            self.1.push((self.0.join("."), param.dims().to_vec(), data.to_vec().expect("parameters are f32")));
        }
    }
    let mut collect = Collect::default();
    module.visit(&mut collect);
    collect.1
}

/// The layer and the expert that an element belongs to.
fn owner(path: &str, shape: &[usize], element: usize) -> Option<(&'static str, usize)> {
    match path {
        "stack" => Some(("stack", element / (shape[1] * shape[2]))),
        "stack_bias" => Some(("stack", element / shape[1])),
        "hidden.weight" => Some(("hidden", element % shape[1])),
        "hidden.bias" => Some(("hidden", element)),
        _ => {
            let rest = path.strip_prefix("list.")?;
            Some(("list", rest[..1].parse().expect("a list index has one digit here")))
        }
    }
}

/// `old + phi * (new - old)` for every element, in f64: what an excited step must give where the bare one gave `new`.
pub(crate) fn excited_on_slices(
    old: &[Value],
    new: &[Value],
    load: &Load,
    phi: impl Fn(&[f32]) -> Vec<f64>,
) -> Vec<Vec<f64>> {
    let pairs = old.iter().zip(new);
    pairs
        .map(|((path, shape, old), (_, _, new))| {
            let factor = |element| match owner(path, shape, element) {
                Some((layer, expert)) => phi(load.counts_of(layer))[expert],
                None => 1.0,
            };
            let elements = old.iter().zip(new).enumerate();
            elements.map(|(i, (&old, &new))| f64::from(old) + factor(i) * (f64::from(new) - f64::from(old))).collect()
        })
        .collect()
}

pub(crate) fn zero_sum(counts: &[f32]) -> Vec<f64> {
    let mean = counts.iter().map(|&n| f64::from(n)).sum::<f64>() / counts.len() as f64;
    counts.iter().map(|&n| f64::from(n) / mean).collect()
}

pub(crate) fn assert_close(what: &str, found: &[Value], expected: &[Vec<f64>]) {
    for ((path, _, found), expected) in found.iter().zip(expected) {
        for (&found, &expected) in found.iter().zip(expected) {
            let error = (f64::from(found) - expected).abs();
            assert!(error <= RELATIVE * expected.abs() + ABSOLUTE, "{what}, {path}: {found} != {expected}");
        }
    }
}

/// Elements of one expert of the stack.
pub(crate) fn stacked_expert(values: &[Value], expert: usize) -> &[f32] {
    let (_, shape, elements) = &values[0];
    let len = shape[1] * shape[2];
    &elements[expert * len..(expert + 1) * len]
}

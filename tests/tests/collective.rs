//! What travels with the gradients through a real all-reduce of `burn-collective`, between threads: counts that excite experts, sums of
//! default vectors, loads of routers.

#![cfg(feature = "flex")]

use std::thread;

use burn::backend::{Autodiff, Flex};
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{AdamConfig, GradientsAccumulator, GradientsParams, Optimizer};
use burn::tensor::backend::Backend;
use burn::tensor::{Distribution, Tensor, TensorPrimitive, Tolerance};
use burn_collective::{
    AllReduceStrategy, CollectiveConfig, PeerId, ReduceOperation, all_reduce, register as join, reset_collective,
};
use default_moe::optimizer::{Absorbing, HasDefaultVectors, register as register_updates};
use default_moe::{DefaultMoe, DefaultMoeConfig, DefaultVectors};
use excitation_optim::{ExcitationConfig, ExpertCounts, ExpertLayers, ExpertModule, Variant};
use moe_layers::router::SigmoidOptions;
use moe_layers::router::optimizer::{Balancing, HasRouters, register as register_loads};
use moe_layers::{ExpertLoad, MoeConfig, Router, RouterRule};

type AD = Autodiff<Flex>;

const WIDTH: usize = 6;
const EXPERTS: usize = 5;
const RELATIVE: f32 = 1e-5;
const ABSOLUTE: f32 = 1e-6;

/// A layer in which everything is there that moves by what a step counts.
#[derive(Module, Debug)]
struct Net<B: Backend> {
    layer: DefaultMoe<B>,
    counts: ExpertCounts<B>,
}

impl<B: Backend> HasDefaultVectors<B> for Net<B> {
    fn default_vectors(&self) -> Vec<&DefaultVectors<B>> {
        self.layer.default_vectors()
    }

    fn default_vectors_mut(&mut self) -> Vec<&mut DefaultVectors<B>> {
        self.layer.default_vectors_mut()
    }
}

impl<B: Backend> HasRouters<B> for Net<B> {
    fn routers(&self) -> Vec<&Router<B>> {
        self.layer.moe.routers()
    }

    fn routers_mut(&mut self) -> Vec<&mut Router<B>> {
        self.layer.moe.routers_mut()
    }
}

impl<B: Backend> ExpertModule for Net<B> {
    fn expert_layers(&self, found: &mut ExpertLayers) {
        let experts = &self.layer.moe.experts;
        found.layer("experts", &self.counts).stacked(&experts.w_in).stacked(&experts.w_out);
    }
}

fn net() -> Net<AD> {
    let device = Default::default();
    let rule = RouterRule::Sigmoid(SigmoidOptions::new().with_rate(0.1));
    let moe = MoeConfig::new(WIDTH, 7, EXPERTS, 2).with_router(rule);
    Net { layer: DefaultMoeConfig::new(moe).init(&device), counts: ExpertCounts::new(&device) }
}

/// Gradients of one batch, with all that was counted.
fn gradients(net: &Net<AD>, batch: &Tensor<Flex, 2>) -> GradientsParams {
    let out = net.layer.forward(Tensor::from_inner(batch.clone()));
    let loss = out.output.clone().powi_scalar(2).mean();
    let mut gradients = GradientsParams::from_grads(loss.backward(), net);
    let (routing, tokens) = (&out.routing, out.routing.num_tokens());
    net.counts.register(&mut gradients, routing.demand().inner().float(), tokens);
    register_loads(net, [ExpertLoad::of(routing)], &mut gradients);
    register_updates(net, out.update, &mut gradients);
    gradients
}

/// A step of everything at once.
fn step(net: Net<AD>, gradients: GradientsParams) -> Net<AD> {
    let excitation = ExcitationConfig::new().with_variant(Variant::ZeroSum);
    let excited = excitation.init(AdamConfig::new().init::<AD, Net<AD>>());
    Balancing::new(Absorbing::new(excited)).step(1e-2, net, gradients)
}

/// Sends every tensor of the gradients through the all-reduce, in the order of the module.
struct Reduce {
    gradients: GradientsParams,
    peer: PeerId,
    operation: ReduceOperation,
}

impl ModuleVisitor<AD> for Reduce {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<AD, D>>) {
        if let Some(gradient) = self.gradients.remove::<Flex, D>(param.id) {
            let sum = all_reduce::<Flex>(self.peer, gradient.into_primitive().tensor(), self.operation);
            let sum = Tensor::<Flex, D>::from_primitive(TensorPrimitive::Float(sum.expect("all peers are there")));
            self.gradients.register(param.id, sum);
        }
    }
}

/// The model of every rank after a step on its own batch and what the others sent.
fn ranks(start: &Net<AD>, batches: &[Tensor<Flex, 2>], operation: ReduceOperation) -> Vec<Net<AD>> {
    let config = CollectiveConfig::default()
        .with_num_devices(batches.len())
        .with_local_all_reduce_strategy(AllReduceStrategy::Centralized);
    thread::scope(|scope| {
        let rank = |(rank, batch): (usize, Tensor<Flex, 2>)| {
            let (start, config, peer) = (start.clone(), config.clone(), PeerId::from(rank));
            scope.spawn(move || {
                join::<Flex>(peer, Default::default(), config).expect("a free place");
                let mut reduce = Reduce { gradients: gradients(&start, &batch), peer, operation };
                start.visit(&mut reduce);
                step(start, reduce.gradients)
            })
        };
        let threads: Vec<_> = batches.iter().cloned().enumerate().map(rank).collect();
        threads.into_iter().map(|thread| thread.join().expect("the rank ends well")).collect()
    })
}

fn parameters(net: &Net<AD>) -> Vec<f32> {
    #[derive(Default)]
    struct Values(Vec<f32>);
    impl ModuleVisitor<AD> for Values {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<AD, D>>) {
            self.0.extend(param.val().into_data().to_vec::<f32>().expect("f32"));
        }
    }
    let mut values = Values::default();
    net.visit(&mut values);
    values.0
}

/// One test, as the engine of a backend is one for the whole process.
#[test]
fn ranks_equal_one_process_with_all_batches() {
    let device = Default::default();
    let start = net();
    for count in [2, 3] {
        // Of different sizes: what is averaged must be weighted by tokens.
        let batches: Vec<_> = (0..count)
            .map(|rank| Tensor::<Flex, 2>::random([4 + 3 * rank, WIDTH], Distribution::Normal(0.0, 1.0), &device))
            .collect();
        let mut accumulator = GradientsAccumulator::new();
        batches.iter().for_each(|batch| accumulator.accumulate(&start, gradients(&start, batch)));
        let alone = step(start.clone(), accumulator.grads());
        assert_ne!(parameters(&alone), parameters(&start));

        reset_collective::<Flex>();
        let summed = ranks(&start, &batches, ReduceOperation::Sum);
        let close = Tolerance::<f32>::rel_abs(RELATIVE, ABSOLUTE);
        for rank in &summed {
            assert_eq!(parameters(rank), parameters(&summed[0]), "ranks drift apart");
            let data = |net: &Net<AD>| Tensor::<Flex, 1>::from_floats(parameters(net).as_slice(), &device).into_data();
            data(rank).assert_approx_eq(&data(&alone), close);
        }

        // A mean instead of a sum changes none of what is counted.
        reset_collective::<Flex>();
        let averaged = ranks(&start, &batches, ReduceOperation::Mean).remove(0);
        let vectors = |net: &Net<AD>| net.default_vectors()[0].values.val().inner().into_data();
        vectors(&averaged).assert_approx_eq(&vectors(&alone), close);
        let bias = |net: &Net<AD>| match net.routers()[0] {
            Router::Sigmoid(router) => router.selection_bias.val().inner().into_data(),
            other => panic!("another router: {other:?}"),
        };
        bias(&averaged).assert_approx_eq(&bias(&alone), close);
        assert_ne!(bias(&alone), bias(&start));
    }
}

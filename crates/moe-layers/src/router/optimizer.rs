//! Loads that travel with the gradients, for who trains with burn's `Learner`, over several devices or with an all-reduce of gradients.
//!
//! A router that remembers something ([`Router::absorbs_load`]) has a parameter for it without a gradient of its own. Registered as the "gradient"
//! of that parameter, loads are summed by everything that sums gradients, and [`Balancing`] takes them out before the optimizer
//! sees them. Who writes the loop by hand calls [`Router::absorb`].
//!
//! ```
//! # use burn::backend::{Autodiff, Flex};
//! # use burn::tensor::{Distribution, Tensor};
//! use burn::optim::{GradientsParams, Optimizer, SgdConfig};
//! use moe_layers::router::optimizer::{Balancing, register};
//! use moe_layers::router::SigmoidOptions;
//! use moe_layers::{ExpertLoad, Moe, MoeConfig, RouterRule};
//!
//! # type B = Autodiff<Flex>;
//! # let device = Default::default();
//! # let batch = Tensor::<B, 2>::random([5, 8], Distribution::Default, &device);
//! let config = MoeConfig::new(8, 16, 4, 1).with_router(RouterRule::Sigmoid(SigmoidOptions::new()));
//! let moe: Moe<B> = config.init(&device);
//! let mut optimizer = Balancing::new(SgdConfig::new().init());
//!
//! let out = moe.forward(batch);
//! let mut gradients = GradientsParams::from_grads(out.output.mean().backward(), &moe);
//! register(&moe, [ExpertLoad::of(&out.routing)], &mut gradients);
//! let moe: Moe<B> = optimizer.step(0.1, moe, gradients);
//! ```

use burn::module::{AutodiffModule, Module, ParamId};
use burn::optim::{GradientsParams, LearningRate, MultiGradientsParams, Optimizer};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};

use super::{ExpertLoad, Router};
use crate::Moe;

/// A module with routers.
pub trait HasRouters<B: Backend> {
    /// All its routers, in the order of their loads.
    fn routers(&self) -> Vec<&Router<B>>;

    /// The same, to change.
    fn routers_mut(&mut self) -> Vec<&mut Router<B>>;

    /// Whether routers must be told the loads of a training step: [`absorb_loads`](Self::absorb_loads) then does something.
    fn absorbs_loads(&self) -> bool {
        self.routers().into_iter().any(Router::absorbs_load)
    }

    /// Moves what routers move once per training step: selection biases, weights of L1 losses. `loads` are those of its layers, in
    /// order, merged over micro-batches.
    ///
    /// # Panics
    ///
    /// Panics unless there is one load for each router, and as [`Router::absorb`].
    fn absorb_loads(&mut self, loads: &[ExpertLoad<B>]) {
        let routers = self.routers_mut();
        assert_eq!(routers.len(), loads.len(), "there must be one load for each layer with routed experts");
        routers.into_iter().zip(loads).for_each(|(router, load)| router.absorb(load));
    }
}

impl<B: Backend> HasRouters<B> for Moe<B> {
    fn routers(&self) -> Vec<&Router<B>> {
        vec![&self.router]
    }

    fn routers_mut(&mut self) -> Vec<&mut Router<B>> {
        vec![&mut self.router]
    }
}

/// Puts the loads of one pass through `module`, in the order of its routers, into `gradients`; those of routers that remember
/// nothing are left out.
///
/// # Panics
///
/// Panics unless there is one load for each router.
pub fn register<B: AutodiffBackend>(
    module: &impl HasRouters<B>,
    loads: impl IntoIterator<Item = ExpertLoad<B>>,
    gradients: &mut GradientsParams,
) {
    let (routers, loads) = (module.routers(), loads.into_iter().collect::<Vec<_>>());
    assert_eq!(routers.len(), loads.len(), "register: there must be one load for each router");
    for (router, load) in routers.into_iter().zip(loads) {
        if let Some(id) = remembered(router) {
            gradients.register::<B::InnerBackend, 1>(id, load.into_vector().inner());
        }
    }
}

/// The parameter without a gradient.
fn remembered<B: Backend>(router: &Router<B>) -> Option<ParamId> {
    match router {
        Router::Sigmoid(router) => Some(router.selection_bias.id),
        Router::Relu(router) => Some(router.l1_coef.id),
        _ => None,
    }
}

/// An optimizer that lets routers absorb [registered](register) loads, once, and then takes its own step as it would without them.
#[derive(Clone, Debug)]
pub struct Balancing<O> {
    inner: O,
}

impl<O> Balancing<O> {
    /// Around `inner`, whose record stays what it is.
    pub fn new(inner: O) -> Self {
        Self { inner }
    }
}

impl<M, B, O> Optimizer<M, B> for Balancing<O>
where
    M: AutodiffModule<B> + HasRouters<B>,
    B: AutodiffBackend,
    O: Optimizer<M, B>,
{
    type Record = O::Record;

    fn step(&mut self, lr: LearningRate, mut module: M, mut grads: GradientsParams) -> M {
        absorb(&mut module, |id| grads.remove::<B::InnerBackend, 1>(id));
        self.inner.step(lr, module, grads)
    }

    fn step_multi(&mut self, lr: LearningRate, mut module: M, mut grads: MultiGradientsParams) -> M {
        absorb(&mut module, |id| grads.remove::<B::InnerBackend, 1>(id).map(|(sum, _)| sum));
        self.inner.step_multi(lr, module, grads)
    }

    fn to_record(&self) -> Self::Record {
        self.inner.to_record()
    }

    fn load_record(self, record: Self::Record) -> Self {
        Self { inner: self.inner.load_record(record) }
    }
}

fn absorb<B: AutodiffBackend>(
    module: &mut impl HasRouters<B>,
    mut take: impl FnMut(ParamId) -> Option<Tensor<B::InnerBackend, 1>>,
) {
    for router in module.routers_mut() {
        if let Some(vector) = remembered(router).and_then(&mut take) {
            let device = router.devices().remove(0);
            router.absorb(&ExpertLoad::from_vector(Tensor::from_inner(vector)).to_device(&device));
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::{Autodiff, Flex};
    use burn::optim::{GradientsAccumulator, SgdConfig};
    use burn::tensor::backend::DeviceOps;
    use burn::tensor::{Distribution, TensorData};

    use super::*;
    use crate::router::{ReluOptions, SigmoidOptions};
    use crate::{MoeConfig, RouterRule};

    type B = Autodiff<Flex>;

    fn layers() -> [Moe<B>; 2] {
        let sigmoid = RouterRule::Sigmoid(SigmoidOptions::new().with_rate(0.1));
        let relu = RouterRule::Relu(ReluOptions::new().with_l1_coef(0.5));
        [sigmoid, relu].map(|rule| {
            let mut moe: Moe<B> = MoeConfig::new(4, 6, 3, 1).with_router(rule).init(&Default::default());
            if let Router::Relu(router) = &mut moe.router {
                // Every expert is chosen by every token: more than one, so that there is something to move.
                router.weight = router.weight.clone().map(|weight| weight.ones_like().require_grad());
            }
            let _ = Module::num_params(&moe);
            moe
        })
    }

    fn batch(tokens: usize) -> Tensor<B, 2> {
        Tensor::random([tokens, 4], Distribution::Uniform(0.1, 1.0), &Default::default())
    }

    fn pass(moe: &Moe<B>, batch: Tensor<B, 2>) -> (GradientsParams, ExpertLoad<B>) {
        let out = moe.forward(batch);
        let load = ExpertLoad::of(&out.routing);
        let mut grads = GradientsParams::from_grads(out.output.sum().backward(), moe);
        register(moe, [load.clone()], &mut grads);
        (grads, load)
    }

    fn values(moe: &Moe<B>) -> [TensorData; 2] {
        let remembered = match &moe.router {
            Router::Sigmoid(router) => router.selection_bias.to_data(),
            Router::Relu(router) => router.l1_coef.to_data(),
            other => panic!("another router: {other:?}"),
        };
        [remembered, moe.experts.w_out.to_data()]
    }

    fn by_hand(mut moe: Moe<B>, load: &ExpertLoad<B>, mut grads: GradientsParams) -> Moe<B> {
        grads.remove::<Flex, 1>(remembered(&moe.router).expect("it remembers")).expect("registered");
        moe.router.absorb(load);
        SgdConfig::new().init().step(0.1, moe, grads)
    }

    #[test]
    fn a_step_absorbs_and_leaves_the_rest_to_the_inner_optimizer() {
        for moe in layers() {
            let batch = batch(8);
            let (grads, load) = pass(&moe, batch.clone());
            let found = Balancing::new(SgdConfig::new().init()).step(0.1, moe.clone(), grads);
            let expected = by_hand(moe.clone(), &load, pass(&moe, batch).0);
            for ((found, expected), start) in values(&found).iter().zip(values(&expected)).zip(values(&moe)) {
                found.assert_eq(&expected, true);
                assert_ne!(*found, start);
            }
        }
    }

    #[test]
    fn accumulated_loads_and_those_of_several_devices_are_merged() {
        for moe in layers() {
            let passes = [pass(&moe, batch(8)), pass(&moe, batch(5))];
            let mut accumulator = GradientsAccumulator::new();
            let [(first, load), (second, more)] = passes;
            let mut expected = moe.clone();
            expected.router.absorb(&load.clone().merge(more.clone()));
            accumulator.accumulate(&moe, first);
            accumulator.accumulate(&moe, second);
            let found = Balancing::new(SgdConfig::new().init()).step(0.1, moe.clone(), accumulator.grads());
            values(&found)[0].assert_eq(&values(&expected)[0], true);

            let device = moe.devices()[0].id();
            let grads = [load, more].map(|load| {
                let mut grads = GradientsParams::new();
                register(&moe, [load], &mut grads);
                (grads, device)
            });
            let grads = MultiGradientsParams { grads: grads.into() };
            let spread = Balancing::new(SgdConfig::new().init()).step_multi(0.1, moe.clone(), grads);
            values(&spread)[0].assert_eq(&values(&expected)[0], true);
        }
    }

    #[test]
    #[should_panic(expected = "one load for each router")]
    fn a_missing_load_panics() {
        register(&layers()[0], [], &mut GradientsParams::new());
    }
}

//! Gradients of one device or of several, behind one face.

use std::collections::HashMap;
use std::marker::PhantomData;

use burn::module::{AutodiffModule, ModuleVisitor, Param, ParamId};
use burn::optim::{GradientsParams, LearningRate, MultiGradientsParams, Optimizer};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};

use crate::layers::Member;

/// What [`Optimizer::step`] or [`Optimizer::step_multi`] is given.
pub enum Grads {
    /// Of one device.
    Single(GradientsParams),
    /// Of several.
    Multi(MultiGradientsParams),
}

impl From<GradientsParams> for Grads {
    fn from(grads: GradientsParams) -> Self {
        Self::Single(grads)
    }
}

impl From<MultiGradientsParams> for Grads {
    fn from(grads: MultiGradientsParams) -> Self {
        Self::Multi(grads)
    }
}

impl Grads {
    /// Takes a gradient out, summed over the devices.
    pub(crate) fn remove<B: Backend, const D: usize>(&mut self, id: ParamId) -> Option<Tensor<B, D>> {
        match self {
            Self::Single(grads) => grads.remove(id),
            Self::Multi(grads) => grads.remove(id).map(|(grad, _device)| grad),
        }
    }

    /// Lets `inner` step with these gradients.
    pub(crate) fn step<M, B, O>(self, inner: &mut O, lr: LearningRate, module: M) -> M
    where
        M: AutodiffModule<B>,
        B: AutodiffBackend,
        O: Optimizer<M, B>,
    {
        match self {
            Self::Single(grads) => inner.step(lr, module, grads),
            Self::Multi(grads) => inner.step_multi(lr, module, grads),
        }
    }

    /// Moves the gradients of `members` out, one parameter each, in the order in which the module is walked.
    pub(crate) fn take_each<M: AutodiffModule<B>, B: AutodiffBackend>(
        &mut self,
        module: &M,
        members: &HashMap<ParamId, Member>,
    ) -> Vec<(ParamId, Grads)> {
        let mut take = TakeEach { grads: self, members, taken: Vec::new(), backend: PhantomData::<B> };
        module.visit(&mut take);
        take.taken
    }

    fn take<B: Backend, const D: usize>(&mut self, id: ParamId) -> Grads {
        let move_out = |grads: &mut GradientsParams| {
            let mut taken = GradientsParams::new();
            if let Some(grad) = grads.remove::<B, D>(id) {
                taken.register(id, grad);
            }
            taken
        };
        match self {
            Self::Single(grads) => Self::Single(move_out(grads)),
            Self::Multi(multi) => {
                let grads = multi.grads.iter_mut().map(|(grads, device)| (move_out(grads), *device)).collect();
                Self::Multi(MultiGradientsParams { grads })
            }
        }
    }

    fn each(&self) -> Vec<&GradientsParams> {
        match self {
            Self::Single(grads) => vec![grads],
            Self::Multi(multi) => multi.grads.iter().map(|(grads, _)| grads).collect(),
        }
    }

    /// Finds counts that no expert layer asked for.
    ///
    /// # Panics
    ///
    /// Panics when a gradient has another shape than its parameter: then it is no gradient but counts, registered for a
    /// layer that was not found.
    pub(crate) fn check_shapes<M: AutodiffModule<B>, B: AutodiffBackend>(&self, module: &M) {
        check_shapes(self.each(), module);
    }
}

/// As [`Grads::check_shapes`].
pub(crate) fn check_shapes<M: AutodiffModule<B>, B: AutodiffBackend>(grads: Vec<&GradientsParams>, module: &M) {
    module.visit(&mut CheckShapes { grads, path: Vec::new() });
}

struct TakeEach<'a, B> {
    grads: &'a mut Grads,
    members: &'a HashMap<ParamId, Member>,
    taken: Vec<(ParamId, Grads)>,
    backend: PhantomData<B>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for TakeEach<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if self.members.contains_key(&param.id) {
            self.taken.push((param.id, self.grads.take::<B::InnerBackend, D>(param.id)));
        }
    }
}

struct CheckShapes<'a> {
    grads: Vec<&'a GradientsParams>,
    path: Vec<String>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for CheckShapes<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        // Counts have rank 1.
        if D != 1 {
            return;
        }
        let expected = param.dims();
        for grads in &self.grads {
            let found = grads.get::<B::InnerBackend, D>(param.id).map(|grad| grad.dims());
            assert!(
                found.is_none_or(|found| found == expected),
                "`{}` {expected:?} was given {found:?}: counts of an expert layer that ExpertModule does not name",
                self.path.join(".")
            );
        }
    }
}

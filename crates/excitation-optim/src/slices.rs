//! Expert parameters before a step, and the scaling of what the step changed.

use std::collections::{HashMap, HashSet};

use burn::module::{AutodiffModule, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};

use crate::ScaleChange;
use crate::layers::{Member, Part};

/// # Panics
///
/// Panics when a member is not a parameter of `module`.
pub(crate) fn check_members<M: AutodiffModule<B>, B: AutodiffBackend>(module: &M, members: &HashMap<ParamId, Member>) {
    let mut find = Find { members, found: HashSet::new() };
    module.visit(&mut find);
    let (found, expected) = (find.found.len(), members.len());
    assert!(
        found == expected,
        "{expected} expert parameters were named, the module has {found} of them: \
         a parameter that is named must be a field that burn visits"
    );
}

struct Find<'a> {
    members: &'a HashMap<ParamId, Member>,
    found: HashSet<ParamId>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Find<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if self.members.contains_key(&param.id) {
            self.found.insert(param.id);
        }
    }
}

/// Expert parameters as they were before a step. A copy of none is made as long as nobody overwrites them.
pub(crate) struct Snapshot {
    /// A store of tensors of any rank, by id.
    values: GradientsParams,
}

impl Snapshot {
    /// Remembers the parameters in `members` times `decay`, what the inner optimizer multiplies them by before its step.
    pub(crate) fn take<M: AutodiffModule<B>, B: AutodiffBackend>(
        module: &M,
        members: &HashMap<ParamId, Member>,
        decay: Option<f64>,
    ) -> Self {
        let mut remember = Remember { members, decay, values: GradientsParams::new() };
        module.visit(&mut remember);
        Self { values: remember.values }
    }

    /// Scales what has changed since by the factors of each parameter's layer, `[E]` each.
    pub(crate) fn scale_change<M: AutodiffModule<B>, B: AutodiffBackend>(
        self,
        module: M,
        members: &HashMap<ParamId, Member>,
        factors: &[Tensor<B::InnerBackend, 1>],
        scaling: &impl ScaleChange<B::InnerBackend>,
    ) -> M {
        module.map(&mut ScaleEach::<B::InnerBackend, _> { old: self.values, members, factors, scaling })
    }
}

struct Remember<'a> {
    members: &'a HashMap<ParamId, Member>,
    decay: Option<f64>,
    values: GradientsParams,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Remember<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if self.members.contains_key(&param.id) {
            let value = param.val().inner();
            let value = match self.decay {
                Some(factor) => value.mul_scalar(factor),
                None => value,
            };
            self.values.register(param.id, value);
        }
    }
}

struct ScaleEach<'a, I: Backend, S> {
    old: GradientsParams,
    members: &'a HashMap<ParamId, Member>,
    factors: &'a [Tensor<I, 1>],
    scaling: &'a S,
}

impl<B: AutodiffBackend, S: ScaleChange<B::InnerBackend>> ModuleMapper<B> for ScaleEach<'_, B::InnerBackend, S> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let Some(old) = self.old.remove::<B::InnerBackend, D>(param.id) else { return param };
        let Member { layer, part } = self.members[&param.id];
        let (id, tensor, mapper) = param.consume();
        let require_grad = tensor.is_require_grad();
        let new = tensor.inner();
        let device = new.device();
        let factors = self.factors[layer].clone().to_device(&device).cast(new.dtype());
        let (factors, axis) = match part {
            Part::Axis(axis) => (factors, axis),
            Part::Whole(expert) => (factors.narrow(0, expert, 1), 0),
        };
        let scaled = self.scaling.scale_change(old.to_device(&device), new, factors, axis);
        Param::from_mapped_value(id, Tensor::from_inner(scaled).set_require_grad(require_grad), mapper)
    }
}

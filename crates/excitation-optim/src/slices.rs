//! Expert parameters before a step, and the scaling of what the step changed.

use std::collections::{HashMap, HashSet};

use burn::module::{AutodiffModule, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};

use crate::layers::Member;
use crate::{ExpertFactors, ParamFactors};

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

    /// Scales what has changed since by the factors of each parameter.
    pub(crate) fn scale_change<M: AutodiffModule<B>, B: AutodiffBackend>(
        self,
        module: M,
        factors: &ExpertFactors<B::InnerBackend>,
    ) -> M {
        module.map(&mut ScaleEach::<B::InnerBackend> { old: self.values, factors })
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

struct ScaleEach<'a, I: Backend> {
    old: GradientsParams,
    factors: &'a ExpertFactors<I>,
}

impl<B: AutodiffBackend> ModuleMapper<B> for ScaleEach<'_, B::InnerBackend> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let Some(old) = self.old.remove::<B::InnerBackend, D>(param.id) else { return param };
        let (id, tensor, mapper) = param.consume();
        let require_grad = tensor.is_require_grad();
        let new = tensor.inner();
        let device = new.device();
        let factors = self.factors.of(id, &device, new.dtype()).expect("only parameters of experts are remembered");
        let scaled = scale_change(old.to_device(&device), new, factors);
        Param::from_mapped_value(id, Tensor::from_inner(scaled).set_require_grad(require_grad), mapper)
    }
}

/// `new + (old - new) * (1 - phi)`, which is `old + phi * (new - old)` \[S\] written so that a factor of 1 leaves `new` as it is,
/// bit for bit. Three passes, each of which may overwrite an operand.
fn scale_change<I: Backend, const D: usize>(
    old: Tensor<I, D>,
    new: Tensor<I, D>,
    ParamFactors { factors, axis }: ParamFactors<I>,
) -> Tensor<I, D> {
    let mut shape = [1; D];
    shape[axis] = factors.dims()[0];
    let missing = factors.neg().add_scalar(1.0).reshape(shape);
    let change = old.sub(new.clone()).mul(missing);
    new.add(change)
}

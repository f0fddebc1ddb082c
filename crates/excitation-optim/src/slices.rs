//! Expert parameters before a step, and the scaling of what the step changed.
//!
//! `theta_i <- new_i + (new_i - old_i) * (phi_i - 1)`, which is `old_i + phi_i * delta_i` \[S\] written so that a factor of
//! 1 leaves `new_i` as it is; a factor of 0 gives `old_i` up to rounding. Computed as `new + (old - new) * (1 - phi)`: the same bits, and every operation can
//! overwrite an operand.

use std::collections::HashMap;

use burn::module::{AutodiffModule, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};

use crate::layers::{Member, Part};

/// Expert parameters as they were before a step. A copy of none is made as long as nobody overwrites them.
pub(crate) struct Snapshot {
    /// A store of tensors of any rank, by id.
    values: GradientsParams,
}

impl Snapshot {
    /// Remembers the parameters in `members` times `decay`, what the inner optimizer multiplies them by before its step.
    ///
    /// # Panics
    ///
    /// Panics when a member is not a parameter of `module`.
    pub(crate) fn take<M: AutodiffModule<B>, B: AutodiffBackend>(
        module: &M,
        members: &HashMap<ParamId, Member>,
        decay: Option<f64>,
    ) -> Self {
        let mut remember = Remember { members, decay, values: GradientsParams::new() };
        module.visit(&mut remember);
        let (found, expected) = (remember.values.len(), members.len());
        assert!(
            found == expected,
            "{expected} expert parameters were named, the module has {found} of them: \
             a parameter that is named must be a field that burn visits"
        );
        Self { values: remember.values }
    }

    /// Scales what has changed since by the factors of each parameter's layer, `[E]` each.
    pub(crate) fn scale_change<M: AutodiffModule<B>, B: AutodiffBackend>(
        self,
        module: M,
        members: &HashMap<ParamId, Member>,
        factors: &[Tensor<B::InnerBackend, 1>],
    ) -> M {
        module.map(&mut ScaleChange::<B::InnerBackend> { old: self.values, members, factors })
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

struct ScaleChange<'a, I: Backend> {
    old: GradientsParams,
    members: &'a HashMap<ParamId, Member>,
    factors: &'a [Tensor<I, 1>],
}

impl<B: AutodiffBackend> ModuleMapper<B> for ScaleChange<'_, B::InnerBackend> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let Some(old) = self.old.remove::<B::InnerBackend, D>(param.id) else { return param };
        let Member { layer, part } = self.members[&param.id];
        let (id, tensor, mapper) = param.consume();
        let require_grad = tensor.is_require_grad();
        let scaled = scaled(old, tensor.inner(), self.factors[layer].clone(), part);
        Param::from_mapped_value(id, Tensor::from_inner(scaled).set_require_grad(require_grad), mapper)
    }
}

fn scaled<I: Backend, const D: usize>(
    old: Tensor<I, D>,
    new: Tensor<I, D>,
    phi: Tensor<I, 1>,
    part: Part,
) -> Tensor<I, D> {
    let device = new.device();
    let missing = phi.to_device(&device).neg().add_scalar(1.0).cast(new.dtype());
    let missing = broadcast(missing, part);
    let change = old.to_device(&device).sub(new.clone()).mul(missing);
    new.add(change)
}

/// `[E]` to a tensor that broadcasts over a parameter.
fn broadcast<I: Backend, const D: usize>(values: Tensor<I, 1>, part: Part) -> Tensor<I, D> {
    let mut shape = [1; D];
    match part {
        Part::Axis(axis) => {
            shape[axis] = values.dims()[0];
            values.reshape(shape)
        }
        Part::Whole(expert) => values.narrow(0, expert, 1).reshape(shape),
    }
}

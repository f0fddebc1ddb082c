//! burn's `OptimizerAdaptor` for [`FusedAdamW`], with steps that are scaled expert by expert.

use std::fmt::{self, Debug, Formatter};

use burn::module::{AutodiffModule, ModuleMapper, Param};
use burn::optim::adaptor::{GradAdaptor, OptimizerAdaptor};
use burn::optim::record::AdaptorRecord;
use burn::optim::{GradientsParams, LearningRate, MultiGradientsParams, Optimizer, SimpleOptimizer};
use burn::tensor::Tensor;
use excitation_optim::{ExpertFactors, Grads, ScalingOptimizer};
use moe_kernels::{AutodiffMoeBackend, ChangeScale};

use super::FusedAdamW;

/// AdamW over the parameters of a module. Records and steps are those of burn's adaptor around a [`FusedAdamW`]; a step can be scaled for each
/// expert while it is made.
#[derive(Clone)]
pub struct AdamW<M: AutodiffModule<B>, B: AutodiffMoeBackend> {
    adamw: FusedAdamW,
    records: Records<M, B>,
}

/// By parameter.
type Records<M, B> = <OptimizerAdaptor<FusedAdamW, M, B> as Optimizer<M, B>>::Record;

impl<M: AutodiffModule<B>, B: AutodiffMoeBackend> From<FusedAdamW> for AdamW<M, B> {
    fn from(adamw: FusedAdamW) -> Self {
        Self { adamw, records: Records::<M, B>::default() }
    }
}

impl<M: AutodiffModule<B>, B: AutodiffMoeBackend> Debug for AdamW<M, B> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("AdamW").field("adamw", &self.adamw).field("parameters", &self.records.len()).finish()
    }
}

impl<M: AutodiffModule<B>, B: AutodiffMoeBackend> AdamW<M, B> {
    fn step_each(
        &mut self,
        lr: LearningRate,
        module: M,
        grads: GradAdaptor,
        factors: Option<&ExpertFactors<B::InnerBackend>>,
    ) -> M {
        module.map(&mut StepEach::<M, B> { adamw: self.adamw, records: &mut self.records, lr, grads, factors })
    }
}

impl<M: AutodiffModule<B>, B: AutodiffMoeBackend> Optimizer<M, B> for AdamW<M, B> {
    type Record = Records<M, B>;

    fn step(&mut self, lr: LearningRate, module: M, grads: GradientsParams) -> M {
        self.step_each(lr, module, grads.into(), None)
    }

    fn step_multi(&mut self, lr: LearningRate, module: M, grads: MultiGradientsParams) -> M {
        self.step_each(lr, module, grads.into(), None)
    }

    fn to_record(&self) -> Self::Record {
        self.records.clone()
    }

    fn load_record(self, records: Self::Record) -> Self {
        Self { records, ..self }
    }
}

impl<M: AutodiffModule<B>, B: AutodiffMoeBackend> ScalingOptimizer<M, B> for AdamW<M, B> {
    fn step_scaled(
        &mut self,
        lr: LearningRate,
        module: M,
        grads: Grads,
        factors: &ExpertFactors<B::InnerBackend>,
    ) -> M {
        let grads = match grads {
            Grads::Single(grads) => grads.into(),
            Grads::Multi(grads) => grads.into(),
        };
        self.step_each(lr, module, grads, Some(factors))
    }
}

struct StepEach<'a, M: AutodiffModule<B>, B: AutodiffMoeBackend> {
    adamw: FusedAdamW,
    records: &'a mut Records<M, B>,
    lr: LearningRate,
    grads: GradAdaptor,
    factors: Option<&'a ExpertFactors<B::InnerBackend>>,
}

impl<M: AutodiffModule<B>, B: AutodiffMoeBackend> ModuleMapper<B> for StepEach<'_, M, B> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let (id, tensor, mapper) = param.consume();
        let Some((grad, device)) = self.grads.remove::<B::InnerBackend, D>(id) else {
            return Param::from_mapped_value(id, tensor, mapper);
        };
        let require_grad = tensor.is_require_grad();
        let old = tensor.inner().to_device(&device);
        let state = self.records.remove(&id).map(AdaptorRecord::into_state);
        let state = state.map(|state| <FusedAdamW as SimpleOptimizer<B::InnerBackend>>::to_device(state, &device));
        let scale = self.factors.and_then(|factors| {
            let of_param = factors.of(id, &device, old.dtype())?;
            let spares_decay = factors.spares_decay();
            Some(ChangeScale { factors: of_param.factors, axis: of_param.axis, spares_decay })
        });
        let (new, state) = self.adamw.step_scaled(self.lr, old, grad, state, scale);
        self.records.insert(id, AdaptorRecord::from_state(state));
        Param::from_mapped_value(id, Tensor::from_inner(new).set_require_grad(require_grad), mapper)
    }
}

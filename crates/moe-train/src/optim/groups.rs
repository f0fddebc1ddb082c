//! Weight decay for matrices only.
//!
//! Decoupled decay ([Loshchilov and Hutter, 2019](https://arxiv.org/abs/1711.05101)) pulls a weight towards zero by
//! `lr * weight_decay * weight`. That suits the matrices of a transformer; norms, biases, embeddings and routers are left
//! alone: a decayed norm or bias has nothing to regularise, an embedding row that is rarely seen would fade, and a
//! router that fades routes at random.

use std::marker::PhantomData;

use burn::module::{AutodiffModule, ModuleVisitor, Param, ParamId};
use burn::optim::{GradientsParams, LearningRate, MultiGradientsParams, Optimizer};
use burn::tensor::Tensor;
use burn::tensor::backend::AutodiffBackend;
use excitation_optim::{ExpertFactors, Grads, ScalingOptimizer};
use moe_kernels::AutodiffMoeBackend;

use super::{AdamW, FusedAdamW};
use crate::config::OptimConfig;

/// AdamW with decay for matrices and without it for the rest, for a module `M`.
pub type LmOptimizer<M, B> = DecayGroups<AdamW<M, B>>;

/// Words in a field or type name along the path of a parameter that take it out of the decay.
const UNDECAYED_WORDS: [&str; 5] = ["norm", "embedding", "router", "positions", "class_token"];

/// Two copies of an optimizer, one that decays weights and one that does not, each stepping its own parameters.
///
/// Which parameter belongs where follows from its shape and its path in the module, see [`decays`]; it is worked out
/// again in every step, because parameter ids change when a record is loaded. So the record is the two inner records
/// and nothing else. With equal inner optimizers the result is bit-equal to one inner optimizer alone.
#[derive(Clone, Debug)]
pub struct DecayGroups<O> {
    decayed: O,
    undecayed: O,
}

impl<O> DecayGroups<O> {
    /// `decayed` steps the matrices, `undecayed` norms, embeddings, routers, biases and all other vectors.
    pub fn new(decayed: O, undecayed: O) -> Self {
        Self { decayed, undecayed }
    }
}

impl<M: AutodiffModule<B>, B: AutodiffMoeBackend> LmOptimizer<M, B> {
    /// AdamW with the betas, epsilon and decoupled decay of `config`. Clipping is left to
    /// [`clip_global_norm`](crate::optim::clip_global_norm).
    pub fn adamw(config: &OptimConfig) -> Self {
        let undecayed = FusedAdamW {
            beta_1: config.beta1 as f32,
            beta_2: config.beta2 as f32,
            epsilon: config.eps as f32,
            weight_decay: 0.0,
        };
        let decayed = FusedAdamW { weight_decay: config.weight_decay as f32, ..undecayed };
        Self::new(decayed.into(), undecayed.into())
    }
}

impl<M, B, O> Optimizer<M, B> for DecayGroups<O>
where
    M: AutodiffModule<B>,
    B: AutodiffBackend,
    O: Optimizer<M, B>,
{
    type Record = (O::Record, O::Record);

    fn step(&mut self, lr: LearningRate, module: M, mut grads: GradientsParams) -> M {
        let undecayed = take_undecayed(&module, &mut grads);
        let module = self.decayed.step(lr, module, grads);
        self.undecayed.step(lr, module, undecayed)
    }

    fn step_multi(&mut self, lr: LearningRate, module: M, mut grads: MultiGradientsParams) -> M {
        let undecayed = take_undecayed_of_each(&module, &mut grads);
        let module = self.decayed.step_multi(lr, module, grads);
        self.undecayed.step_multi(lr, module, undecayed)
    }

    fn to_record(&self) -> Self::Record {
        (self.decayed.to_record(), self.undecayed.to_record())
    }

    fn load_record(self, (decayed, undecayed): Self::Record) -> Self {
        Self { decayed: self.decayed.load_record(decayed), undecayed: self.undecayed.load_record(undecayed) }
    }
}

impl<M, B, O> ScalingOptimizer<M, B> for DecayGroups<O>
where
    M: AutodiffModule<B>,
    B: AutodiffBackend,
    O: ScalingOptimizer<M, B>,
{
    fn step_scaled(
        &mut self,
        lr: LearningRate,
        module: M,
        mut grads: Grads,
        factors: &ExpertFactors<B::InnerBackend>,
    ) -> M {
        let undecayed = match &mut grads {
            Grads::Single(grads) => Grads::Single(take_undecayed(&module, grads)),
            Grads::Multi(grads) => Grads::Multi(take_undecayed_of_each(&module, grads)),
        };
        let module = self.decayed.step_scaled(lr, module, grads, factors);
        self.undecayed.step_scaled(lr, module, undecayed, factors)
    }
}

/// Whether a parameter with `rank` dimensions at `path` is decayed: a matrix (or a stack of matrices) is, unless
///
/// - a field or module type on the path has `norm`, `embedding`, `router`, `positions` or `class_token` in its name, in any case, or
/// - the field is a bias: a name that ends with `bias` or starts with `b_` (experts stack theirs to `[E, ..]`).
///
/// `path` alternates as burn's visitor reports it: type of the module, name of the field, down to the parameter.
pub fn decays<S: AsRef<str>>(path: &[S], rank: usize) -> bool {
    let is_bias = path.last().is_some_and(|name| {
        let name = name.as_ref();
        name.ends_with("bias") || name.starts_with("b_")
    });
    let is_excluded = path.iter().any(|part| {
        let part = part.as_ref().to_ascii_lowercase();
        UNDECAYED_WORDS.iter().any(|word| part.contains(word))
    });
    rank >= 2 && !is_bias && !is_excluded
}

/// Moves the gradients of the parameters that are not decayed out of `grads`.
fn take_undecayed<B: AutodiffBackend, M: AutodiffModule<B>>(
    module: &M,
    grads: &mut GradientsParams,
) -> GradientsParams {
    let mut undecayed = Undecayed { path: Vec::new(), grads, taken: GradientsParams::new(), backend: PhantomData::<B> };
    module.visit(&mut undecayed);
    undecayed.taken
}

fn take_undecayed_of_each<B: AutodiffBackend, M: AutodiffModule<B>>(
    module: &M,
    grads: &mut MultiGradientsParams,
) -> MultiGradientsParams {
    let each = grads.grads.iter_mut().map(|(grads, device)| (take_undecayed(module, grads), *device));
    MultiGradientsParams { grads: each.collect() }
}

struct Undecayed<'a, B> {
    path: Vec<String>,
    grads: &'a mut GradientsParams,
    taken: GradientsParams,
    backend: PhantomData<B>,
}

impl<B: AutodiffBackend> Undecayed<'_, B> {
    fn take<const D: usize>(&mut self, id: ParamId) {
        if let Some(grad) = self.grads.remove::<B::InnerBackend, D>(id) {
            self.taken.register::<B::InnerBackend, D>(id, grad);
        }
    }
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Undecayed<'_, B> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.extend([container_type.to_string(), name.to_string()]);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.truncate(self.path.len() - 2);
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if !decays(&self.path, D) {
            self.take::<D>(param.id);
        }
    }
}

/// A module with one parameter of every kind, for the tests of this folder.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use burn::backend::{Autodiff, Flex};
    use burn::module::{Module, ModuleMapper};
    use burn::nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig};
    use burn::tensor::backend::Backend;

    pub(crate) type AD = Autodiff<Flex>;

    #[derive(Module, Debug)]
    pub(crate) struct Probe<B: Backend> {
        pub(crate) embedding: Embedding<B>,
        pub(crate) norms: Vec<LayerNorm<B>>,
        pub(crate) router: Linear<B>,
        pub(crate) mixer: Linear<B>,
        pub(crate) w_in: Param<Tensor<B, 3>>,
        pub(crate) b_in: Param<Tensor<B, 2>>,
        pub(crate) temperature: Param<Tensor<B, 1>>,
    }

    impl<B: Backend> Probe<B> {
        pub(crate) fn new() -> Self {
            let device = Default::default();
            let ramp = |n: usize| Tensor::<B, 1, burn::tensor::Int>::arange(0..n as i64, &device).float() + 1.0;
            let probe = Self {
                embedding: EmbeddingConfig::new(5, 4).init(&device),
                norms: vec![LayerNormConfig::new(4).init(&device)],
                router: LinearConfig::new(4, 3).with_bias(false).init(&device),
                mixer: LinearConfig::new(4, 4).init(&device),
                w_in: Param::from_tensor(ramp(24).reshape([3, 4, 2]) * 0.1),
                b_in: Param::from_tensor(ramp(6).reshape([3, 2])),
                temperature: Param::from_tensor(ramp(1)),
            };
            probe.map(&mut Shift)
        }
    }

    /// Keeps zero-initialised parameters away from zero, where decay would not show.
    struct Shift;

    impl<B: Backend> ModuleMapper<B> for Shift {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            param.map(|tensor| (tensor + 0.5).detach().require_grad())
        }
    }

    /// Gradients `scale * (parameter + 1)` for every parameter.
    pub(crate) fn gradients(probe: &Probe<AD>, scale: f64) -> GradientsParams {
        struct Fill(GradientsParams, f64);
        impl ModuleVisitor<AD> for Fill {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<AD, D>>) {
                let grad = (param.val().inner() + 1.0) * self.1;
                self.0.register::<Flex, D>(param.id, grad);
            }
        }
        let mut fill = Fill(GradientsParams::new(), scale);
        probe.visit(&mut fill);
        fill.0
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{AD, Probe, gradients};
    use super::*;
    use burn::module::Module;
    use burn::optim::AdamWConfig;
    use burn::record::{FullPrecisionSettings, NamedMpkBytesRecorder, Recorder};
    use burn::tensor::TensorData;

    const LR: f64 = 0.1;
    const WEIGHT_DECAY: f64 = 0.5;
    /// Relative, f32.
    const TOLERANCE: f32 = 1e-6;

    type ProbeOptimizer = LmOptimizer<Probe<AD>, AD>;

    fn config(weight_decay: f64) -> OptimConfig {
        OptimConfig {
            lr: LR,
            min_lr: 0.0,
            warmup_steps: 0,
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay,
            clip_norm: 0.0,
            excitation: None,
            gamma: 1.0,
            control: None,
            freeze: Vec::new(),
        }
    }

    fn parameters(probe: &Probe<AD>) -> Vec<(String, Vec<f32>)> {
        #[derive(Default)]
        struct Collect(Vec<String>, Vec<(String, Vec<f32>)>);
        impl ModuleVisitor<AD> for Collect {
            fn enter_module(&mut self, name: &str, _: &str) {
                self.0.push(name.to_string());
            }
            fn exit_module(&mut self, _: &str, _: &str) {
                self.0.pop();
            }
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<AD, D>>) {
                let data: TensorData = param.val().into_data();
                self.1.push((self.0.join("."), data.to_vec().expect("parameters are f32")));
            }
        }
        let mut collect = Collect::default();
        probe.visit(&mut collect);
        collect.1
    }

    fn steps(mut optim: impl Optimizer<Probe<AD>, AD>, mut probe: Probe<AD>, count: usize) -> Probe<AD> {
        for _ in 0..count {
            let grads = gradients(&probe, 0.3);
            probe = optim.step(LR, probe, grads);
        }
        probe
    }

    #[test]
    fn with_zero_gradients_matrices_shrink_and_the_rest_does_not_move() {
        let probe = Probe::new();
        let before = parameters(&probe);
        let grads = gradients(&probe, 0.0);
        let probe = ProbeOptimizer::adamw(&config(WEIGHT_DECAY)).step(LR, probe, grads);
        let factor = (1.0 - LR * WEIGHT_DECAY) as f32;
        for ((name, before), (_, after)) in before.iter().zip(parameters(&probe)) {
            if ["mixer.weight", "w_in"].contains(&name.as_str()) {
                for (before, after) in before.iter().zip(after) {
                    assert!((before * factor - after).abs() <= TOLERANCE * before.abs(), "{name}");
                }
            } else {
                assert_eq!(before, &after, "{name} moved");
            }
        }
    }

    #[test]
    fn without_decay_the_groups_are_bit_equal_to_plain_adamw() {
        let probe = Probe::new();
        let plain = AdamWConfig::new()
            .with_beta_1(0.9)
            .with_beta_2(0.99)
            .with_epsilon(1e-8)
            .with_weight_decay(0.0)
            .init::<AD, Probe<AD>>();
        let expected = steps(plain, probe.clone(), 5);
        let grouped = steps(ProbeOptimizer::adamw(&config(0.0)), probe, 5);
        assert_eq!(parameters(&grouped), parameters(&expected));
    }

    #[test]
    fn gradients_of_several_devices_are_grouped_like_those_of_one() {
        let probe = Probe::new();
        let device = burn::tensor::backend::DeviceOps::id(&probe.devices()[0]);
        let multi = MultiGradientsParams { grads: vec![(gradients(&probe, 0.3), device)] };
        let expected = steps(ProbeOptimizer::adamw(&config(WEIGHT_DECAY)), probe.clone(), 1);
        let stepped = ProbeOptimizer::adamw(&config(WEIGHT_DECAY)).step_multi(LR, probe, multi);
        assert_eq!(parameters(&stepped), parameters(&expected));
    }

    #[test]
    fn a_saved_and_loaded_optimizer_continues_bit_equal() {
        let recorder = NamedMpkBytesRecorder::<FullPrecisionSettings>::default();
        let mut optim = ProbeOptimizer::adamw(&config(WEIGHT_DECAY));
        let mut probe = Probe::new();
        for _ in 0..3 {
            let grads = gradients(&probe, 0.3);
            probe = optim.step(LR, probe, grads);
        }
        let model_bytes = Recorder::<AD>::record(&recorder, probe.clone().into_record(), ()).expect("model record");
        let optim_bytes =
            Recorder::<AD>::record(&recorder, Optimizer::<Probe<AD>, AD>::to_record(&optim), ()).expect("record");

        let device = Default::default();
        let loaded_model = Recorder::<AD>::load(&recorder, model_bytes, &device).expect("model bytes");
        let loaded_optim = Recorder::<AD>::load(&recorder, optim_bytes, &device).expect("optimizer bytes");
        let other_probe = Probe::new().load_record(loaded_model);
        let other_optim =
            Optimizer::<Probe<AD>, AD>::load_record(ProbeOptimizer::adamw(&config(WEIGHT_DECAY)), loaded_optim);

        assert_eq!(parameters(&other_probe), parameters(&probe));
        assert_eq!(parameters(&steps(other_optim, other_probe, 3)), parameters(&steps(optim, probe, 3)));
    }

    #[test]
    fn only_matrices_outside_norms_embeddings_and_routers_decay() {
        assert!(decays(&["Struct:Linear", "weight"], 2));
        assert!(decays(&["Struct:Experts", "w_in"], 3));
        assert!(decays(&["Struct:Lm", "lm_head", "Struct:Linear", "weight"], 2));
        assert!(!decays(&["Struct:Experts", "b_in"], 2));
        assert!(!decays(&["Struct:Linear", "bias"], 2));
        assert!(!decays(&["Struct:Attention", "q_norm", "Struct:Scale", "gamma"], 2));
        assert!(!decays(&["Struct:RmsNorm", "gamma"], 2));
        assert!(!decays(&["Struct:Lm", "embedding", "Struct:Table", "weight"], 2));
        assert!(!decays(&["Struct:TopKRouter", "weight"], 2));
        assert!(!decays(&["Struct:Mixer", "scale"], 1));
    }
}

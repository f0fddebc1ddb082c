//! Parameters that keep their values: neither gradient nor decay moves them.

use burn::module::{AutodiffModule, Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use moe_kernels::MoeBackend;
use moe_models::lm::LmConfig;

use crate::config::ConfigError;

/// Patterns of paths in a module, such as `embedding` or `blocks.*.feed_forward.moe.router.*.weight`.
///
/// `*` stands for any text, dots included. An optimizer leaves a parameter alone that has no gradient, so the gradients of
/// frozen parameters are dropped: before the global norm is taken, which is then that of what is trained.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Freeze {
    patterns: Vec<String>,
}

impl Freeze {
    /// Freezes what one of `patterns` matches.
    pub fn new(patterns: &[String]) -> Self {
        Self { patterns: patterns.to_vec() }
    }

    /// Whether the parameter at `path` is frozen.
    pub fn includes(&self, path: &str) -> bool {
        self.patterns.iter().any(|pattern| matches(pattern, path))
    }

    /// Takes the gradients of frozen parameters of `module` out of `grads`.
    pub fn drop_gradients<B: AutodiffBackend, M: AutodiffModule<B>>(&self, module: &M, grads: &mut GradientsParams) {
        if !self.patterns.is_empty() {
            module.visit(&mut Drop { freeze: self, path: Vec::new(), grads });
        }
    }

    /// # Errors
    ///
    /// A pattern that matches none of `paths`, or patterns that leave nothing to train.
    pub(crate) fn check(&self, paths: &[String]) -> Result<(), ConfigError> {
        let useless = |pattern: &&String| !paths.iter().any(|path| matches(pattern, path));
        if let Some(pattern) = self.patterns.iter().find(useless) {
            return Err(ConfigError::Contradiction(format!(
                "optim.freeze: `{pattern}` matches no parameter; * stands for any text, and the parameters are called {}",
                examples(paths)
            )));
        }
        if paths.iter().all(|path| self.includes(path)) {
            return Err(ConfigError::Contradiction("optim.freeze leaves no parameter to train".into()));
        }
        Ok(())
    }
}

/// The first parameters, and that there are more.
fn examples(paths: &[String]) -> String {
    const SHOWN: usize = 12;
    let dots = if paths.len() > SHOWN { ", .." } else { "" };
    format!("{}{dots}", paths[..paths.len().min(SHOWN)].join(", "))
}

/// Whether `text` is `pattern` with some text in the place of each `*`.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|text| {
            let ends = text.char_indices().map(|(at, _)| at).chain([text.len()]);
            ends.into_iter().any(|at| matches(rest, &text[at..]))
        }),
    }
}

struct Drop<'a> {
    freeze: &'a Freeze,
    path: Vec<String>,
    grads: &'a mut GradientsParams,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Drop<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if self.freeze.includes(&self.path.join(".")) {
            self.grads.remove::<B::InnerBackend, D>(param.id);
        }
    }
}

/// Paths of the parameters of a model, in order, read off one of the same parts whose widths are 1.
pub(crate) fn parameter_paths<B: MoeBackend>(config: &LmConfig, device: &B::Device) -> Vec<String> {
    let mut small = config.clone();
    (small.vocab_size, small.d_model, small.d_hidden, small.max_seq_len) = (1, 1, 1, 1);
    (small.num_heads, small.num_kv_heads, small.head_dim) = (1, None, Some(2));
    (small.moe.d_hidden, small.moe.shared_d_hidden) = (1, small.moe.shared_d_hidden.min(1));
    paths_in(&small.init::<B>(device))
}

/// Paths of the parameters of `module`, in order.
pub(crate) fn paths_in<B: Backend, M: Module<B>>(module: &M) -> Vec<String> {
    let mut paths = Paths::default();
    module.visit(&mut paths);
    paths.all
}

#[derive(Default)]
struct Paths {
    current: Vec<String>,
    all: Vec<String>,
}

impl<B: Backend> ModuleVisitor<B> for Paths {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.current.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.current.pop();
    }

    fn visit_float<const D: usize>(&mut self, _param: &Param<Tensor<B, D>>) {
        self.all.push(self.current.join("."));
    }
}

#[cfg(test)]
#[cfg(feature = "flex")]
mod tests {
    use burn::backend::Flex;
    use burn::optim::Optimizer;
    use excitation_optim::Variant;
    use moe_models::lm::Lm;

    use super::*;
    use crate::optim::OptionallyExcited;
    use crate::trainer::testing::{config, model};
    use crate::trainer::{Optim, StepSettings, Trainee};

    type AD = burn::backend::Autodiff<Flex>;

    fn freeze(patterns: &[&str]) -> Freeze {
        Freeze { patterns: patterns.iter().map(|pattern| pattern.to_string()).collect() }
    }

    #[test]
    fn a_star_stands_for_any_text() {
        let matching = [
            ("embedding", "embedding"),
            ("*", "blocks.0.w"),
            ("blocks.*.weight", "blocks.3.moe.router.weight"),
            ("*router*", "blocks.3.moe.router.weight"),
            ("a*b*c", "abbc"),
        ];
        for (pattern, path) in matching {
            assert!(freeze(&[pattern]).includes(path), "{pattern} {path}");
        }
        for (pattern, path) in [("embed", "embedding"), ("blocks.*.w", "blocks.0.w.x"), ("a*b", "ac"), ("", "a")] {
            assert!(!freeze(&[pattern]).includes(path), "{pattern} {path}");
        }
        assert!(!Freeze::default().includes("embedding"));
    }

    #[test]
    fn a_small_twin_has_the_paths_of_the_model() {
        let mut config = config().model;
        (config.moe.shared_d_hidden, config.moe.shared_gate) = (8, true);
        config.qk_norm = moe_models::lm::QkNorm::PerHead;
        let mut paths = Paths::default();
        config.init::<Flex>(&Default::default()).visit(&mut paths);
        assert_eq!(parameter_paths::<Flex>(&config, &Default::default()), paths.all);
    }

    #[test]
    fn a_pattern_without_a_parameter_and_nothing_to_train_are_refused() {
        let paths = ["embedding", "final_norm.gamma"].map(String::from);
        assert!(freeze(&["embedding"]).check(&paths).is_ok() && Freeze::default().check(&paths).is_ok());
        let message = freeze(&["embedding", "embeding"]).check(&paths).unwrap_err().to_string();
        assert!(message.contains("`embeding`") && message.contains("final_norm.gamma"), "{message}");
        assert!(freeze(&["*"]).check(&paths).unwrap_err().to_string().contains("no parameter to train"));
    }

    fn parameters(model: &Lm<AD>) -> Vec<(String, Vec<f32>)> {
        #[derive(Default)]
        struct Values(Vec<String>, Vec<(String, Vec<f32>)>);
        impl ModuleVisitor<AD> for Values {
            fn enter_module(&mut self, name: &str, _: &str) {
                self.0.push(name.to_string());
            }
            fn exit_module(&mut self, _: &str, _: &str) {
                self.0.pop();
            }
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<AD, D>>) {
                self.1.push((self.0.join("."), param.val().into_data().to_vec().expect("parameters are f32")));
            }
        }
        let mut values = Values::default();
        model.visit(&mut values);
        values.1
    }

    /// The parameters of `start` after a step of the trainer, and the norm it clipped by.
    fn step(start: &Lm<AD>, patterns: &[&str], excitation: Option<Variant>) -> (Vec<(String, Vec<f32>)>, f64) {
        let mut config = config();
        config.optim.freeze = patterns.iter().map(|pattern| pattern.to_string()).collect();
        (config.optim.excitation, config.optim.weight_decay) = (excitation, 0.5);
        let batch = crate::data::train_batch(&crate::trainer::testing::text(600), &config.train, 0, 0);
        let settings = StepSettings { lr: 1e-2, clip_norm: 0.0, with_stats: false };
        let device = Default::default();
        let trainee = Trainee { model: start.clone(), optim: Optim::<AD>::adamw(&config.optim) };
        let (trainee, outcome) = trainee.step([batch].into_iter(), &settings, &device).expect("finite");
        (parameters(&trainee.model), outcome.grad_norm)
    }

    #[test]
    fn frozen_parameters_keep_their_bits_and_the_others_move_as_they_would() {
        let model = model();
        let patterns = ["embedding", "blocks.*.experts.w_in", "*router*"];
        let ((all, whole_norm), (some, norm)) = (step(&model, &[], None), step(&model, &patterns, None));
        assert!(norm < whole_norm);
        for (((path, start), (_, all)), (_, some)) in parameters(&model).iter().zip(&all).zip(&some) {
            assert_ne!(start, all, "{path}");
            // Without clipping, AdamW moves each parameter by its own gradient.
            assert_eq!(some, if freeze(&patterns).includes(path) { start } else { all }, "{path}");
        }
    }

    #[test]
    fn excitation_leaves_frozen_experts_alone() {
        let model = model();
        let (stepped, _) = step(&model, &["*experts*"], Some(Variant::ZeroSum));
        for ((path, start), (_, stepped)) in parameters(&model).iter().zip(&stepped) {
            assert_eq!(start == stepped, path.contains("experts"), "{path}");
        }
    }

    #[test]
    fn the_optimizer_alone_leaves_them_too() {
        let mut config = config();
        config.optim.freeze = vec!["embedding".into()];
        let model = model::<AD>();
        let mut optim: Optim<AD> = OptionallyExcited::adamw(&config.optim);
        let mut grads = GradientsParams::new();
        let before = model.embedding.val();
        grads.register::<Flex, 2>(model.embedding.id, before.clone().inner().ones_like());
        let after = optim.step(1e-2, model, grads).embedding.val();
        assert_eq!(after.into_data(), before.into_data());
    }
}

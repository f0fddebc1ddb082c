//! Parameters: their names, first values, gradients and sharing.

use burn::module::{Module, ModuleVisitor};
use burn::optim::GradientsParams;
use burn::tensor::backend::AutodiffBackend;

use super::*;

/// Paths of all float parameters, and of those without a gradient.
struct Paths<'a> {
    gradients: Option<&'a GradientsParams>,
    current: Vec<String>,
    all: Vec<String>,
    without_gradient: Vec<String>,
}

impl<'a> Paths<'a> {
    fn of(model: &Lm<AD>, gradients: Option<&'a GradientsParams>) -> Self {
        let mut paths = Self { gradients, current: vec![], all: vec![], without_gradient: vec![] };
        model.visit(&mut paths);
        paths
    }
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Paths<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let path = self.current.join(".");
        let gradient = self.gradients.and_then(|all| all.get::<B::InnerBackend, D>(param.id));
        let flows = gradient.is_some_and(|gradient| gradient.abs().max().into_data().iter::<f32>().all(|g| g > 0.0));
        if !flows {
            self.without_gradient.push(path.clone());
        }
        self.all.push(path);
    }

    fn enter_module(&mut self, name: &str, _container: &str) {
        self.current.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.current.pop();
    }
}

#[test]
fn parameters_have_the_documented_paths() {
    let mut config = small().with_tie_embeddings(false).with_norm(NormKind::Layer).with_qk_norm(QkNorm::Full);
    (config.moe.shared_d_hidden, config.moe.shared_gate) = (6, true);
    let all = Paths::of(&model(&config), None).all;
    for path in [
        "embedding",
        "blocks.0.attention_norm.gamma",
        "blocks.0.attention_norm.beta",
        "blocks.0.attention.query",
        "blocks.0.attention.key",
        "blocks.0.attention.value",
        "blocks.0.attention.output",
        "blocks.0.attention.query_norm.gamma",
        "blocks.0.attention.key_norm.gamma",
        "blocks.0.feed_forward_norm.gamma",
        "blocks.0.feed_forward.dense.w_in",
        "blocks.0.feed_forward.dense.w_out",
        "blocks.1.feed_forward.moe.router.TopK.weight",
        "blocks.1.feed_forward.moe.experts.w_in",
        "blocks.1.feed_forward.moe.experts.w_out",
        "blocks.1.feed_forward.moe.shared.w_in",
        "blocks.1.feed_forward.moe.shared.w_out",
        "blocks.1.feed_forward.moe.shared_gate",
        "final_norm.gamma",
        "lm_head",
    ] {
        assert!(all.iter().any(|have| have == path), "{path} is not among {all:#?}");
    }
}

#[test]
fn gradients_reach_every_parameter() {
    for config in variants() {
        let model = model::<AD>(&config);
        let loss = model.loss(batch(), targets());
        let gradients = GradientsParams::from_grads(loss.total.backward(), &model);
        let paths = Paths::of(&model, Some(&gradients));
        const STATE: [&str; 3] = ["default_vectors.values", "selection_bias", "l1_coef"];
        let trained = |path: &&String| STATE.iter().all(|state| !path.ends_with(state));
        assert_eq!(
            paths.without_gradient.iter().filter(trained).collect::<Vec<_>>(),
            Vec::<&String>::new(),
            "{config}"
        );
    }
}

#[test]
fn a_tied_embedding_is_the_output_matrix() {
    let mut model = model::<Flex>(&small());
    assert!(model.lm_head.is_none());
    let before = model.forward(batch()).logits;
    // Token 6 is not in the batch, so its row acts through the output matrix alone.
    model.embedding = model.embedding.map(|weight| {
        let row = weight.clone().slice([6..7, 0..16]) * 2.0;
        weight.slice_assign([6..7, 0..16], row)
    });
    let after = model.forward(batch()).logits;
    let logit = |logits: &Tensor<Flex, 3>| logits.clone().slice([0..2, 0..LEN, 6..7]);
    logit(&after).into_data().assert_eq(&(logit(&before) * 2.0).into_data(), true);
}

/// Number of parameters that are drawn only when first read, wherever the random generator is by then.
#[derive(Default)]
struct Undrawn(usize);

impl<B: Backend> ModuleVisitor<B> for Undrawn {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.0 += usize::from(!param.is_initialized());
    }
}

#[test]
fn init_draws_every_parameter_at_once() {
    let mut undrawn = Undrawn::default();
    small().init::<Flex>(&Default::default()).visit(&mut undrawn);
    assert_eq!(undrawn.0, 0);
}

#[test]
fn matrices_start_with_the_stated_deviations() {
    /// Relative error of a standard deviation over 1024 draws: five times `1 / sqrt(2 * 1024)`.
    const DRAWN: f32 = 0.11;
    let mut config = LmConfig::new(64, 32, 8, 2, 32, 8).with_moe_layers(MoeLayers::All);
    config.moe.shared_d_hidden = 32;
    let model = model::<Flex>(&config);
    let check = |weight: Tensor<Flex, 1>, expected: f32| {
        let deviation = weight.var(0).sqrt().into_scalar();
        assert!((deviation / expected - 1.0).abs() < DRAWN, "{deviation} instead of {expected}");
    };
    let (block, residual) = (&model.blocks[3], 0.02 / 4.0);
    let moe = block.feed_forward.moe.as_ref().expect("a layer with experts");
    check(model.embedding.val().flatten(0, 1), 0.02);
    check(block.attention.query.val().flatten(0, 1), 0.02);
    check(block.attention.output.val().flatten(0, 1), residual);
    check(moe.experts.w_in.val().flatten(0, 2), 0.02);
    check(moe.experts.w_out.val().flatten(0, 2), residual);
    let shared = moe.shared.as_ref().expect("it was configured");
    check(shared.w_in.val().flatten(0, 1), 0.02);
    check(shared.w_out.val().flatten(0, 1), residual);
}

#[test]
fn weights_survive_a_record() {
    let model = model::<Flex>(&small());
    let other = small().init::<Flex>(&Default::default()).load_record(model.clone().into_record());
    let expected = model.forward(batch()).logits.into_data();
    other.forward(batch()).logits.into_data().assert_eq(&expected, true);
}

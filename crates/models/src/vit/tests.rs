//! Properties of the whole model.

use burn::backend::{Autodiff, Flex};
use burn::module::{AutodiffModule, Module, ModuleVisitor, Param};
use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
use burn::tensor::activation::softmax;
use burn::tensor::{Distribution, Int, Tensor, TensorData, Tolerance};
use default_moe::optimizer::HasDefaultVectors;
use default_moe::{DefaultOptions, DefaultUpdate, UpdateRule};
use moe_kernels::MoeBackend;
use moe_layers::router::optimizer::HasRouters;
use moe_layers::{Activation, ExpertLoad};

use super::*;
use crate::lm::{LmMoeConfig, MoeLayers, RouterKind};

type AD = Autodiff<Flex>;

const TOLERANCE: f32 = 1e-5;

fn small() -> VitConfig {
    VitConfig::new(8, 4, 3, 12, 2, 3, 20).with_moe(experts(RouterKind::TopK)).with_init_std(0.2)
}

fn experts(router: RouterKind) -> LmMoeConfig {
    LmMoeConfig::new(4, 2, 10).with_activation(Activation::Gelu).with_router(router)
}

fn variants() -> Vec<VitConfig> {
    use RouterKind::{Default, ExpertChoice, Relu, Sigmoid, Sinkhorn};
    let routed = [ExpertChoice, Relu, Sigmoid, Sinkhorn, Default].map(|router| small().with_moe(experts(router)));
    let mut all = vec![
        small().with_moe_layers(MoeLayers::None),
        small().with_pooling(Pooling::ClassToken).with_moe_layers(MoeLayers::All),
        small().with_moe_layers(MoeLayers::Last(1)).with_channels(1),
        small().with_soft_slots(2).with_moe(experts(RouterKind::TopK).with_bias(true)),
        // Fine-grained: many small experts.
        small().with_moe(LmMoeConfig::new(32, 4, 2).with_activation(Activation::Gelu)),
    ];
    all.extend(routed);
    all
}

fn images<B: MoeBackend>(config: &VitConfig, count: usize) -> Tensor<B, 4> {
    let size = config.image_size;
    Tensor::random([count, config.channels, size, size], Distribution::Normal(0.0, 1.0), &Default::default())
}

fn labels<B: MoeBackend>(count: usize) -> Tensor<B, 1, Int> {
    let labels: Vec<i64> = (0..count as i64).map(|i| i % 3).collect();
    Tensor::from_data(TensorData::from(labels.as_slice()), &Default::default())
}

/// The head starts at zero, where nothing before it gets a gradient.
fn model<B: MoeBackend>(config: &VitConfig) -> Vit<B> {
    let mut model = config.init::<B>(&Default::default());
    model.head = Param::from_tensor(model.head.val().random_like(Distribution::Normal(0.0, 0.5)));
    model
}

struct WithoutGradient<'a>(&'a GradientsParams, Vec<String>, Vec<String>);

impl ModuleVisitor<AD> for WithoutGradient<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.1.push(name.to_string());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.1.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<AD, D>>) {
        if self.0.get::<Flex, D>(param.id).is_none() {
            self.2.push(self.1.join("."));
        }
    }
}

#[test]
fn gradients_reach_every_parameter() {
    const STATE: [&str; 3] = ["default_vectors.values", "selection_bias", "l1_coef"];
    for config in variants() {
        let model = model::<AD>(&config);
        let loss = model.loss(images(&config, 4), labels(4));
        let grads = GradientsParams::from_grads(loss.total.backward(), &model);
        let mut missing = WithoutGradient(&grads, Vec::new(), Vec::new());
        model.visit(&mut missing);
        missing.2.retain(|path| STATE.iter().all(|state| !path.ends_with(state)));
        assert_eq!(missing.2, Vec::<String>::new(), "{config}");
    }
}

#[test]
fn a_hundred_small_experts_share_the_tokens() {
    let moe = LmMoeConfig::new(128, 16, 4).with_normalize_gates(true);
    let config = small().with_moe_layers(MoeLayers::All).with_moe(moe);
    let model = model::<AD>(&config);
    let output = model.forward(images(&config, 3));
    for layer in &output.layers {
        let counts: Vec<i64> = layer.routing.counts().into_data().iter().collect();
        assert_eq!(counts.iter().sum::<i64>(), 16 * layer.routing.num_tokens() as i64);
        assert!(counts.iter().filter(|&&count| count > 0).count() > 32, "{counts:?}");
    }
    let gradients = GradientsParams::from_grads(output.logits.sum().backward(), &model);
    let mut without = WithoutGradient(&gradients, Vec::new(), Vec::new());
    model.visit(&mut without);
    assert!(without.2.is_empty(), "{:?}", without.2);
}

#[test]
fn a_model_starts_undecided_and_learns_a_batch_by_heart() {
    /// Nats; guessing costs ln 3 = 1.10.
    const LEARNED: f32 = 0.05;
    for config in variants() {
        let mut model = config.init::<AD>(&Default::default());
        let (images, labels) = (images::<AD>(&config, 6), labels(6));
        let mut optimizer = AdamWConfig::new().init();
        let first = model.loss(images.clone(), labels.clone()).cross_entropy.into_scalar();
        assert!((first - 3f32.ln()).abs() < TOLERANCE, "{first}");
        for _ in 0..60 {
            let loss = model.loss(images.clone(), labels.clone());
            let grads = GradientsParams::from_grads(loss.total.backward(), &model);
            model = optimizer.step(1e-2, model, grads);
        }
        let last = model.valid().loss(images.inner(), labels.inner()).cross_entropy.into_scalar();
        assert!(last < LEARNED, "{last} nats after training {config}");
    }
}

#[test]
fn images_of_a_batch_do_not_mix_where_the_router_looks_at_single_tokens() {
    for config in variants() {
        if config.moe.router == RouterKind::ExpertChoice {
            continue;
        }
        let model = model::<Flex>(&config);
        let images = images::<Flex>(&config, 3);
        let together = model.forward(images.clone()).logits;
        for i in 0..3 {
            let alone = model.forward(images.clone().slice(i..i + 1)).logits.into_data();
            let found = together.clone().slice(i..i + 1).into_data();
            found.assert_approx_eq::<f32>(&alone, Tolerance::rel_abs(TOLERANCE, TOLERANCE));
        }
    }
}

/// A token is a patch read row by row, channel by channel.
#[test]
fn patches_are_the_squares_of_the_image() {
    let config = VitConfig::new(4, 2, 2, 8, 1, 1, 8).with_channels(2).with_moe_layers(MoeLayers::None);
    let device = Default::default();
    let mut model = config.init::<Flex>(&device);
    model.patches = Param::from_tensor(Tensor::eye(8, &device));
    model.positions = model.positions.map(|positions| positions.zeros_like());
    let numbers = Tensor::<Flex, 1, Int>::arange(0..32, &device).float().reshape([1, 2, 4, 4]);
    let found: Vec<f32> = model.embed(numbers).into_data().to_vec().expect("f32");
    let second = [2.0, 3.0, 6.0, 7.0, 18.0, 19.0, 22.0, 23.0];
    assert_eq!(found[8..16], second);
}

#[test]
fn attention_matches_one_head_at_a_time() {
    let config = small();
    let attention = VitAttention::<Flex>::new(&config, &Default::default());
    let x = Tensor::<Flex, 3>::random([2, 5, 12], Distribution::Normal(0.0, 1.0), &Default::default());
    let found = attention.forward(x.clone()).into_data();
    let by_image = (0..2).map(|image| {
        let x = x.clone().slice(image..image + 1).squeeze_dim::<2>(0);
        let heads = (0..3).map(|head| {
            let part =
                |weight: &Param<Tensor<Flex, 2>>| x.clone().matmul(weight.val()).slice([0..5, head * 4..head * 4 + 4]);
            let scores = part(&attention.query).matmul(part(&attention.key).transpose()) / 2.0;
            softmax(scores, 1).matmul(part(&attention.value))
        });
        Tensor::cat(heads.collect(), 1).matmul(attention.output.val()).unsqueeze::<3>()
    });
    let expected = Tensor::cat(by_image.collect(), 0).into_data();
    found.assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(TOLERANCE, TOLERANCE));
}

#[test]
fn routers_and_default_vectors_absorb_a_step() {
    let config = small().with_moe(experts(RouterKind::Sigmoid).with_default_vectors(true));
    let mut model = model::<AD>(&config);
    let layers = model.forward(images(&config, 4)).layers;
    let loads: Vec<_> = layers.iter().map(|layer| ExpertLoad::of(&layer.routing)).collect();
    let updates: Vec<_> = layers.into_iter().filter_map(|layer| layer.default_update).collect();
    assert!(model.absorbs_loads());
    model.absorb_loads(&loads);
    model.absorb_updates(&updates);
    let moved = model.default_vectors()[0].values.val().abs().sum().into_scalar();
    assert!(moved > 0.0);
}

/// Of two layers with experts: each its own update, by the options of the configuration.
#[test]
fn every_layer_absorbs_its_own_update_as_its_options_say() {
    let mut config = small().with_moe_layers(MoeLayers::All).with_moe(experts(RouterKind::Default));
    config.moe.default = DefaultOptions::new().with_beta(0.75).with_rule(UpdateRule::Mean);
    let mut model = model::<AD>(&config);
    let layers = model.forward(images(&config, 4)).layers;
    let updates: Vec<_> = layers.into_iter().map(|layer| layer.default_update.expect("a training pass")).collect();
    let means: Vec<_> = updates.iter().map(DefaultUpdate::means).collect();
    model.absorb_updates(&updates);
    let found: Vec<_> = model.default_vectors().into_iter().map(|vectors| vectors.values.to_data()).collect();
    assert_ne!(found[0], found[1]);
    for (i, (block, mean)) in model.blocks.iter().zip(means).enumerate() {
        let vectors =
            block.feed_forward.as_ref().and_then(|block| block.default_vectors.as_ref()).expect("it has some");
        assert_eq!(vectors.options(), &config.moe.default);
        vectors.values.to_data().assert_eq(&found[i], true);
        // From zero, a quarter of the way.
        found[i].assert_approx_eq::<f32>(&(mean * 0.25).into_data(), Tolerance::rel_abs(TOLERANCE, TOLERANCE));
    }
}

#[test]
fn contradictions_are_named() {
    let error = |config: VitConfig| config.validate().expect_err("a contradiction").to_string();
    assert!(error(VitConfig::new(8, 3, 3, 12, 2, 3, 20)).contains("patch_size = 3 does not divide image_size = 8"));
    assert!(error(VitConfig::new(8, 4, 3, 12, 2, 5, 20)).contains("num_heads = 5 does not divide d_model = 12"));
    assert!(error(VitConfig::new(8, 4, 0, 12, 2, 3, 20)).contains("num_classes is 0"));
    assert!(
        error(VitConfig::new(8, 4, 3, 12, usize::MAX, 3, 20)).contains("num_layers is 18446744073709552000; it can")
    );
    assert!(error(VitConfig::new(8, 4, 3, 1 << 30, 2, 1, 1 << 30)).contains("the number of parameters is"));
    assert!(error(small().with_moe_layers(MoeLayers::Every(5))).contains("selects none of num_layers = 2"));
    assert!(error(small().with_moe(LmMoeConfig::new(4, 5, 8))).contains("moe.top_k = 5"));
    let soft = small().with_soft_slots(1).with_moe(experts(RouterKind::Default));
    assert!(error(soft).contains("a Soft MoE has neither router"));
    assert!(error(small().with_moe_layers(MoeLayers::Only(vec![1, 9]))).contains("names a layer that is not there"));
    assert!(error(small().with_moe(experts(RouterKind::Hash))).contains("ids"));
}

#[test]
#[should_panic(expected = "must be [1 or more, 3, 8, 8], got [2, 3, 8, 6]")]
fn images_of_another_size_panic() {
    model::<Flex>(&small()).forward(Tensor::ones([2, 3, 8, 6], &Default::default()));
}

#[test]
#[should_panic(expected = "every image needs one label")]
fn a_missing_label_panics() {
    model::<Flex>(&small()).loss(images(&small(), 2), labels(1));
}

#[test]
#[should_panic(expected = "one load for each layer with routed experts")]
fn loads_of_other_layers_panic() {
    model::<Flex>(&small()).absorb_loads(&[]);
}

#[test]
#[should_panic(expected = "one update for each layer with default vectors")]
fn updates_of_other_layers_panic() {
    let config = small().with_moe(experts(RouterKind::Default));
    model::<Flex>(&config).absorb_updates(&[]);
}

#[test]
#[should_panic(expected = "not a model: patch_size = 3")]
fn a_contradiction_panics() {
    VitConfig::new(8, 3, 3, 12, 2, 3, 20).init::<Flex>(&Default::default());
}

#[test]
#[should_panic(expected = "must be [1 or more, 3, 8, 8], got [0, 3, 8, 8]")]
fn no_images_panic() {
    model::<Flex>(&small()).forward(Tensor::ones([0, 3, 8, 8], &Default::default()));
}

#[test]
#[should_panic(expected = "must be [1 or more, 3, 8, 8], got [2, 3, 8, 6]")]
fn the_loss_of_images_of_another_size_panics() {
    model::<Flex>(&small()).loss(Tensor::ones([2, 3, 8, 6], &Default::default()), labels(2));
}

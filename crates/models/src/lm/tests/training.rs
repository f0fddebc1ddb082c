//! The loss and what comes of minimising it.

use burn::module::AutodiffModule;
use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
use moe_layers::load_balance_loss_pooled;

use super::*;

/// Mean error of the logits of a bf16 model, relative to the largest: 8 bits of mantissa, and two layers.
const BF16_REL: f32 = 0.03;

#[test]
fn the_loss_is_the_sum_of_its_parts() {
    let moe = LmMoeConfig::new(4, 2, 12).with_balance_coef(0.5).with_z_coef(0.25);
    let config = with_layers(3).with_moe(moe);
    let loss = model::<Flex>(&config).loss(batch(), targets());
    let scalar = |t: &Tensor<Flex, 1>| t.clone().into_scalar();
    assert_eq!(loss.layers.iter().map(|layer| layer.layer).collect::<Vec<_>>(), [1, 2]);
    let weighted: f32 = loss.layers.iter().map(|layer| scalar(&layer.losses.weighted())).sum();
    let total = scalar(&loss.cross_entropy) + weighted;
    assert!((scalar(&loss.total) - total).abs() <= 1e-5 * total);
    let balance: f32 = loss.layers.iter().map(|layer| scalar(&layer.losses.balance)).sum();
    assert!((scalar(&loss.balance) - balance).abs() <= 1e-5 * balance);
}

#[test]
fn the_hugging_face_balance_loss_pools_the_layers() {
    let moe = LmMoeConfig::new(4, 2, 12).with_balance(BalanceConvention::HuggingFace);
    let loss = model::<Flex>(&with_layers(3).with_moe(moe)).loss(batch(), targets());
    let routings: Vec<_> = loss.layers.iter().map(|layer| layer.routing.clone()).collect();
    loss.balance.into_data().assert_eq(&load_balance_loss_pooled(&routings).into_data(), true);
}

#[test]
fn a_dense_model_has_no_auxiliary_loss() {
    let loss = model::<Flex>(&small().with_moe_layers(MoeLayers::None)).loss(batch(), targets());
    assert!(loss.layers.is_empty());
    assert_eq!((loss.balance.into_scalar(), loss.z.into_scalar()), (0.0, 0.0));
    loss.total.into_data().assert_eq(&loss.cross_entropy.into_data(), true);
}

#[test]
fn an_untrained_model_knows_nothing() {
    let config = LmConfig::tiny();
    // Many tokens: logits start with a deviation of 0.23, and with it the loss of a token.
    let sequence = |start: i64| std::array::from_fn::<i64, 128, _>(|i| (start + 37 * i as i64) % 256);
    let (tokens, targets) = (tokens([sequence(0), sequence(5)]), tokens([sequence(91), sequence(17)]));
    let loss = model::<Flex>(&config).loss(tokens, targets).cross_entropy.into_scalar();
    assert!((loss - 256f32.ln()).abs() < 0.2, "{loss} nats");
}

fn overfit(config: &LmConfig, dtype: DType) -> f32 {
    const STEPS: usize = 150;
    let mut model = model::<AD>(config).with_dtype(dtype);
    let mut optimizer = AdamWConfig::new().with_weight_decay(0.0).init();
    for _ in 0..STEPS {
        let loss = model.loss(batch(), targets());
        let gradients = GradientsParams::from_grads(loss.total.backward(), &model);
        model = optimizer.step(1e-2, model, gradients);
    }
    model.valid().loss(batch(), targets()).cross_entropy.into_scalar()
}

#[test]
fn dense_and_sparse_models_learn_a_batch_by_heart() {
    /// Nats; guessing costs ln 13 = 2.56.
    const LEARNED: f32 = 0.05;
    let sparse = small().with_init_std(0.1);
    for config in [sparse.clone().with_moe_layers(MoeLayers::None), sparse] {
        let loss = overfit(&config, DType::F32);
        assert!(loss < LEARNED, "{loss} nats after training {config}");
    }
}

#[test]
fn bf16_activations_are_close_to_f32_and_learn() {
    for config in variants() {
        let model = model::<Flex>(&config);
        let exact = model.clone().forward(batch()).logits;
        let rounded = model.with_dtype(DType::BF16).forward(batch()).logits;
        assert_eq!(rounded.dtype(), DType::F32);
        let error = (rounded - exact.clone()).abs().mean().into_scalar();
        let scale = exact.abs().max().into_scalar();
        assert!(error <= BF16_REL * scale, "mean error {error} of {scale} in {config}");
    }
    let loss = overfit(&small().with_init_std(0.1), DType::BF16);
    assert!(loss < 0.1, "{loss} nats");
}

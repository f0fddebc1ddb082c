//! Properties of the whole model.

mod default_vectors;
mod parameters;
mod training;
mod upcycle;

use burn::backend::{Autodiff, Flex};
use burn::module::Param;
use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend;
use burn::tensor::{Bool, DType, Distribution, Int, Tensor, Tolerance};
use moe_layers::{Activation, BalanceConvention, MoeBackend};

use super::attention::Positions;
use super::*;

type AD = Autodiff<Flex>;

const REL: f32 = 1e-5;
const ABS: f32 = 1e-6;

const VOCAB: usize = 13;
const LEN: usize = 6;

fn small() -> LmConfig {
    with_layers(2)
}

fn with_layers(num_layers: usize) -> LmConfig {
    LmConfig::new(VOCAB, 16, num_layers, 4, 24, LEN).with_moe(LmMoeConfig::new(4, 2, 12)).with_init_std(0.3)
}

fn model<B: MoeBackend>(config: &LmConfig) -> Lm<B> {
    let device = Default::default();
    B::seed(&device, 11);
    config.init(&device)
}

fn tokens<B: Backend, const N: usize>(ids: [[i64; N]; 2]) -> Tensor<B, 2, Int> {
    Tensor::from_ints(ids, &Default::default())
}

/// No sequence begins with a repeated token: without absolute positions, equal tokens alone look the same everywhere.
fn batch<B: Backend>() -> Tensor<B, 2, Int> {
    tokens([[1, 5, 12, 0, 3, 3], [7, 11, 2, 9, 10, 4]])
}

fn targets<B: Backend>() -> Tensor<B, 2, Int> {
    tokens([[5, 12, 0, 3, 3, 8], [11, 2, 9, 10, 4, 8]])
}

/// Configurations that differ in every option of a block.
fn variants() -> Vec<LmConfig> {
    let moe = |moe: LmMoeConfig| small().with_moe_layers(MoeLayers::All).with_moe(moe);
    vec![
        small().with_moe_layers(MoeLayers::None),
        small().with_tie_embeddings(false).with_norm(NormKind::Layer),
        small().with_num_kv_heads(Some(2)).with_qk_norm(QkNorm::PerHead),
        small().with_num_kv_heads(Some(1)).with_qk_norm(QkNorm::Full).with_head_dim(Some(6)),
        small().with_activation(Activation::Gelu).with_moe_layers(MoeLayers::Every(2)),
        moe(LmMoeConfig::new(4, 1, 12).with_bias(true).with_balance(BalanceConvention::GShard)),
        moe(LmMoeConfig::new(3, 3, 8).with_normalize_gates(true).with_z_coef(0.1)),
        moe(LmMoeConfig::new(4, 2, 8).with_activation(Activation::Relu).with_balance(BalanceConvention::HuggingFace)),
        moe(LmMoeConfig::new(4, 1, 12).with_router(RouterKind::Default)),
        moe(LmMoeConfig::new(4, 2, 6).with_router(RouterKind::Default).with_shared_d_hidden(10).with_shared_gate(true)),
        moe(LmMoeConfig::new(4, 2, 8).with_router(RouterKind::NoisyTopK).with_load_coef(0.1).with_importance_coef(0.1)),
        moe(LmMoeConfig::new(4, 2, 8).with_router(RouterKind::Sigmoid).with_default_vectors(true)),
        moe(LmMoeConfig::new(4, 2, 8).with_router(RouterKind::Sigmoid).with_balance(BalanceConvention::Sequence)),
        moe(LmMoeConfig::new(4, 1, 12).with_router(RouterKind::Sinkhorn)),
        moe(LmMoeConfig::new(4, 2, 8).with_router(RouterKind::Relu)),
        moe(LmMoeConfig::new(4, 2, 8).with_router(RouterKind::Hash)),
    ]
}

#[test]
fn a_later_token_never_changes_an_earlier_logit() {
    for config in variants() {
        let model = model::<Flex>(&config);
        let logits = |tokens| model.forward(tokens).logits;
        let changed = tokens([[1, 5, 12, 0, 8, 6], [7, 11, 2, 9, 1, 0]]);
        let difference = (logits(batch()) - logits(changed)).abs();
        let before = difference.clone().slice([0..2, 0..4]).max().into_scalar();
        let from_there = difference.slice([0..2, 4..LEN]).max().into_scalar();
        // Not bit for bit: how many rows an expert gets decides how its product is blocked.
        assert!(before < 1e-5 && from_there > 1e-2, "{before} before, {from_there} after, of {config}");
    }
}

#[test]
fn sequences_of_a_batch_do_not_see_each_other() {
    let model = model::<Flex>(&small());
    let both = model.forward(batch()).logits;
    for i in 0..2 {
        let alone = model.forward(batch().slice([i..i + 1, 0..LEN])).logits.into_data();
        let together = both.clone().slice([i..i + 1, 0..LEN]).into_data();
        together.assert_approx_eq::<f32>(&alone, Tolerance::rel_abs(REL, 1e-5));
    }
}

/// One head at a time, keys and values looked up by the query head's index, the softmax of burn.
fn attention_by_heads(layer: &Attention<Flex>, config: &LmConfig, x: Tensor<Flex, 2>) -> Tensor<Flex, 2> {
    let (len, width) = (x.dims()[0], config.head_width());
    let rotary = Rotary::new(config, &x.device());
    let columns = |weight: &Param<Tensor<Flex, 2>>, head: usize| {
        x.clone().matmul(weight.val().slice([0..config.d_model, head * width..(head + 1) * width]))
    };
    let group = config.num_heads / config.kv_heads();
    let future = Tensor::<Flex, 2, Bool>::tril_mask([len, len], 0, &x.device());
    let heads = (0..config.num_heads).map(|head| {
        let rotated =
            |x: Tensor<Flex, 2>| rotary.table(0, len).apply(x.reshape([1, len, 1, width])).reshape([len, width]);
        let query = rotated(columns(&layer.query, head));
        let key = rotated(columns(&layer.key, head / group));
        let scores = query.matmul(key.transpose()) / (width as f64).sqrt();
        softmax(scores.mask_fill(future.clone(), f32::NEG_INFINITY), 1).matmul(columns(&layer.value, head / group))
    });
    Tensor::cat(heads.collect(), 1).matmul(layer.output.val())
}

#[test]
fn grouped_attention_matches_one_head_at_a_time() {
    for kv_heads in [4, 2, 1] {
        let config = LmConfig { max_seq_len: 9, ..small().with_num_kv_heads(Some(kv_heads)) };
        let device = Default::default();
        let layer = Attention::<Flex>::new(&config, &device);
        let rotary = Rotary::new(&LmConfig { max_seq_len: 9, ..config.clone() }, &device);
        let x = Tensor::random([9, config.d_model], Distribution::Normal(0.0, 1.0), &device);
        let output = layer.forward(x.clone(), &Positions::new(&rotary, Tensor::zeros([1, 9], &device), 0), None);
        let expected = attention_by_heads(&layer, &config, x).into_data();
        output.into_data().assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(REL, ABS));
    }
}

#[test]
fn the_cache_changes_nothing() {
    for config in variants() {
        let model = model::<Flex>(&config);
        let expected = model.forward(batch()).logits.into_data();
        for steps in [vec![1; LEN], vec![LEN], vec![3, 1, 1, 1], vec![2, 3, 1]] {
            let mut cache = model.new_cache();
            let mut logits = Vec::new();
            for step in steps {
                let start = cache.len();
                let new = batch().slice([0..2, start..start + step]);
                logits.push(model.forward_cached(new, &mut cache));
            }
            assert_eq!(cache.len(), LEN);
            let logits = Tensor::cat(logits, 1).into_data();
            logits.assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(REL, 1e-5));
        }
    }
}

#[test]
fn a_cleared_cache_is_as_good_as_new() {
    let model = model::<Flex>(&small());
    let mut cache = model.new_cache();
    model.forward_cached(targets(), &mut cache);
    cache.clear();
    assert!(cache.is_empty());
    let again = model.forward_cached(batch(), &mut cache).into_data();
    again.assert_eq(&model.forward_cached(batch(), &mut model.new_cache()).into_data(), true);
}

#[test]
#[should_panic(expected = "6 cached and 1 new tokens are more than max_seq_len = 6")]
fn a_full_cache_panics() {
    let model = model::<Flex>(&small());
    let mut cache = model.new_cache();
    model.forward_cached(batch(), &mut cache);
    model.forward_cached(batch().slice([0..2, 0..1]), &mut cache);
}

#[test]
#[should_panic(expected = "a batch of another size")]
fn a_cache_of_another_batch_panics() {
    let model = model::<Flex>(&small());
    let mut cache = model.new_cache();
    model.forward_cached(batch().slice([0..2, 0..2]), &mut cache);
    model.forward_cached(batch().slice([0..1, 2..3]), &mut cache);
}

#[test]
#[should_panic(expected = "more than max_seq_len = 6")]
fn a_sequence_that_is_too_long_panics() {
    model::<Flex>(&small()).forward(tokens([[0; 7], [1; 7]]));
}

#[test]
#[should_panic(expected = "tokens [B, S] must not be empty, got [2, 0]")]
fn an_empty_sequence_panics() {
    model::<Flex>(&small()).forward(Tensor::zeros([2, 0], &Default::default()));
}

#[test]
#[should_panic(expected = "every token needs one target")]
fn targets_of_another_shape_panic() {
    model::<Flex>(&small()).loss(batch(), targets().slice([0..2, 0..3]));
}

#[test]
#[should_panic(expected = "not a model: moe.top_k = 5")]
fn a_contradictory_config_panics_in_init() {
    small().with_moe(LmMoeConfig::new(4, 5, 8)).init::<Flex>(&Default::default());
}

#[test]
#[should_panic(expected = "activations must be floats")]
fn integer_activations_panic() {
    let _ = model::<Flex>(&small()).with_dtype(DType::I32);
}

#[test]
fn with_all_experts_chosen_and_equal_the_layer_is_dense() {
    let dense = model::<Flex>(&with_layers(1).with_moe_layers(MoeLayers::None));
    let moe = with_layers(1).with_moe_layers(MoeLayers::All).with_moe(LmMoeConfig::new(3, 3, 24));
    let mut sparse = model::<Flex>(&moe);
    sparse.embedding = dense.embedding.clone();
    sparse.blocks[0].attention = dense.blocks[0].attention.clone();
    let network = dense.blocks[0].feed_forward.dense.as_ref().expect("a dense layer");
    let experts = &mut sparse.blocks[0].feed_forward.moe.as_mut().expect("a layer with experts").experts;
    experts.w_in = Param::from_tensor(network.w_in.val().unsqueeze::<3>().repeat_dim(0, 3));
    experts.w_out = Param::from_tensor(network.w_out.val().unsqueeze::<3>().repeat_dim(0, 3));
    let expected = dense.forward(batch()).logits.into_data();
    let output = sparse.forward(batch()).logits.into_data();
    output.assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(REL, 1e-5));
}

#[test]
#[should_panic(expected = "tokens [B, S] must not be empty, got [0, 6]")]
fn an_empty_batch_panics() {
    model::<Flex>(&small()).forward(Tensor::zeros([0, LEN], &Default::default()));
}

#[test]
#[should_panic(expected = "tokens [B, S] must not be empty, got [0, 1]")]
fn an_empty_batch_beside_a_cache_panics() {
    let model = model::<Flex>(&small());
    model.forward_cached(Tensor::zeros([0, 1], &Default::default()), &mut model.new_cache());
}

#[test]
#[should_panic(expected = "tokens [B, S] must not be empty, got [2, 0]")]
fn no_new_tokens_beside_a_cache_panic() {
    let model = model::<Flex>(&small());
    model.forward_cached(Tensor::zeros([2, 0], &Default::default()), &mut model.new_cache());
}

#[test]
#[should_panic(expected = "0 cached and 7 new tokens are more than max_seq_len = 6")]
fn the_loss_of_a_sequence_that_is_too_long_panics() {
    model::<Flex>(&small()).loss(tokens([[0; 7], [1; 7]]), tokens([[1; 7], [0; 7]]));
}

#[test]
#[should_panic(expected = "tokens [B, S] must not be empty, got [0, 6]")]
fn the_loss_of_an_empty_batch_panics() {
    let empty = || Tensor::zeros([0, LEN], &Default::default());
    model::<Flex>(&small()).loss(empty(), empty());
}

#[test]
#[should_panic(expected = "tokens [B, S] must not be empty, got [2, 0]")]
fn the_loss_of_an_empty_sequence_panics() {
    let empty = || Tensor::zeros([2, 0], &Default::default());
    model::<Flex>(&small()).loss(empty(), empty());
}

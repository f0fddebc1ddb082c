//! A dense model and what becomes of it.

use burn::module::{Module, ParamId};
use moe_layers::upcycle::Upcycling;

use super::*;

/// Relative and absolute, f32: two layers, and sums of other lengths in each.
const TOLERANCE: f32 = 1e-4;

fn dense_config() -> LmConfig {
    small().with_moe_layers(MoeLayers::None)
}

/// Experts that compute the dense function: copies, and halves.
fn same_functions() -> [LmMoeConfig; 2] {
    let experts =
        |num_experts, top_k, d_hidden| LmMoeConfig::new(num_experts, top_k, d_hidden).with_normalize_gates(true);
    [experts(3, 2, 24), experts(8, 4, 12)]
}

fn error(change: impl FnOnce(&mut LmConfig)) -> UpcycleError {
    let mut config = dense_config().with_moe_layers(MoeLayers::All).with_moe(LmMoeConfig::new(4, 2, 24));
    change(&mut config);
    config.upcycle(&model::<Flex>(&dense_config()), Upcycling::Copy).expect_err("the change does not fit")
}

#[test]
fn copies_and_segments_have_the_logits_of_the_dense_model() {
    let dense_configs = [
        dense_config(),
        dense_config().with_tie_embeddings(false).with_norm(NormKind::Layer).with_activation(Activation::Gelu),
        dense_config().with_num_kv_heads(Some(2)).with_qk_norm(QkNorm::PerHead),
    ];
    for config in dense_configs {
        let dense = model::<Flex>(&config);
        let expected = dense.forward(batch()).logits.into_data();
        for moe_layers in [MoeLayers::All, MoeLayers::Every(2)] {
            for moe in same_functions() {
                let config =
                    config.clone().with_moe_layers(moe_layers.clone()).with_moe(moe.with_activation(config.activation));
                let output = config.upcycle(&dense, Upcycling::Copy).expect("they fit").forward(batch());
                assert_eq!(output.layers.len(), config.num_moe_layers());
                let found = output.logits.into_data();
                found.assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(TOLERANCE, TOLERANCE));
            }
        }
    }
}

#[test]
fn the_upcycled_model_is_the_one_its_configuration_describes() {
    let config = dense_config().with_moe_layers(MoeLayers::AllButFirst).with_moe(same_functions()[1].clone());
    let upcycled = config.upcycle(&model::<Flex>(&dense_config()), Upcycling::Drop(0.5)).expect("they fit");
    assert_eq!(upcycled.config(), &config);
    assert_eq!(upcycled.num_params(), model::<Flex>(&config).num_params());
}

#[test]
fn what_is_copied_keeps_its_id_and_experts_get_new_ones() {
    let dense = model::<Flex>(&dense_config());
    let config = dense_config().with_moe_layers(MoeLayers::Every(2)).with_moe(same_functions()[0].clone());
    let upcycled = config.upcycle(&dense, Upcycling::Copy).expect("they fit");
    let (before, after) = (ids(&dense), ids(&upcycled));
    let gone: Vec<_> = before.iter().filter(|id| !after.contains(id)).collect();
    let replaced = dense.blocks[1].feed_forward.dense.as_ref().expect("a dense model");
    assert_eq!(gone, [&replaced.w_in.id, &replaced.w_out.id]);
    assert_eq!(after.len(), before.len() + 1, "two matrices and a router in the place of two matrices");
}

fn ids(model: &Lm<Flex>) -> Vec<ParamId> {
    burn::module::list_param_ids(model)
}

#[test]
fn the_dtype_of_activations_goes_on() {
    let dense = model::<Flex>(&dense_config()).with_dtype(DType::F64);
    let config = dense_config().with_moe_layers(MoeLayers::All).with_moe(same_functions()[0].clone());
    assert_eq!(config.upcycle(&dense, Upcycling::Copy).expect("they fit").dtype, DType::F64);
}

#[test]
fn a_field_that_is_not_about_experts_is_named_with_both_values() {
    type Change = fn(&mut LmConfig);
    let changes: [(&str, Change); 14] = [
        ("vocab_size", |c| c.vocab_size = 14),
        ("d_model", |c| c.d_model = 32),
        ("num_layers", |c| c.num_layers = 3),
        ("num_heads", |c| c.num_heads = 2),
        ("d_hidden", |c| c.d_hidden = 48),
        ("max_seq_len", |c| c.max_seq_len = 7),
        ("num_kv_heads", |c| c.num_kv_heads = Some(2)),
        ("head_dim", |c| c.head_dim = Some(6)),
        ("activation", |c| c.activation = Activation::Relu),
        ("norm", |c| c.norm = NormKind::Layer),
        ("norm_eps", |c| c.norm_eps = 1e-6),
        ("rope_theta", |c| c.rope_theta = 5e5),
        ("qk_norm", |c| c.qk_norm = QkNorm::Full),
        ("tie_embeddings", |c| c.tie_embeddings = false),
    ];
    for (name, change) in changes {
        let error = error(change);
        assert!(matches!(error, UpcycleError::Differs { field, .. } if field == name), "{name}: {error}");
        assert!(error.to_string().contains(name), "{error}");
    }
    let message = error(|c| c.vocab_size = 14).to_string();
    assert!(message.contains("13 in the dense model and 14"), "{message}");
}

#[test]
fn a_head_width_that_is_only_written_down_is_no_difference() {
    let config = dense_config().with_head_dim(Some(4)).with_num_kv_heads(Some(4)).with_moe_layers(MoeLayers::All);
    let config = config.with_moe(same_functions()[0].clone()).with_init_std(0.02);
    assert!(config.upcycle(&model::<Flex>(&dense_config()), Upcycling::Copy).is_ok());
}

#[test]
fn what_is_no_model_is_refused() {
    assert!(matches!(error(|c| c.moe.top_k = 5), UpcycleError::Config(LmConfigError::TopKTooLarge { .. })));
}

#[test]
fn experts_that_the_dense_network_does_not_make_up_are_refused() {
    let message = error(|c| c.moe.d_hidden = 7).to_string();
    assert!(message.contains("moe table") && message.contains("d_hidden = 7 must divide"), "{message}");
    assert!(matches!(error(|c| c.moe.shared_d_hidden = 8), UpcycleError::Experts(_)));
    assert!(matches!(error(|c| c.moe.activation = Activation::Relu), UpcycleError::Experts(_)));
    assert!(matches!(error(|c| c.moe.router = RouterKind::ExpertChoice), UpcycleError::Experts(_)));
}

#[test]
fn a_model_with_experts_is_refused_with_its_first_layer_that_has_them() {
    let config = small().with_moe_layers(MoeLayers::AllButFirst);
    let error = config.upcycle(&model::<Flex>(&config), Upcycling::Copy).expect_err("it has experts");
    assert_eq!(error, UpcycleError::HasExperts { layer: 1 });
}

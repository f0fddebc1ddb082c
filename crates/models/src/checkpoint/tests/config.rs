//! `config.json`: both spellings, defaults, and every reason to refuse it.

use serde_json::{Map, json};

use super::*;
use crate::checkpoint::config::{read, write};
use crate::lm::{NormKind, QkNorm, RopeScaling, RouterKind};

fn fields(value: Value) -> Map<String, Value> {
    value.as_object().expect("a table").clone()
}

fn parse(value: Value) -> Result<LmConfig, CheckpointError> {
    read(fields(value)).map(|config| config.model)
}

/// A configuration of `family` with one more field.
fn with(family: Family, name: &str, value: Value) -> Result<LmConfig, CheckpointError> {
    parse(json!({"model_type": family.model_type(), name: value}))
}

fn rope(name: &str, table: Value) -> Result<LmConfig, CheckpointError> {
    parse(json!({"model_type": "mixtral", "max_position_embeddings": 64, name: table}))
}

#[test]
fn the_published_mixtral_is_the_preset() {
    let published = json!({
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "torch_dtype": "bfloat16",
        "transformers_version": "4.36.0.dev0", "use_cache": true, "bos_token_id": 1, "eos_token_id": 2,
        "attention_dropout": 0.0, "hidden_act": "silu", "initializer_range": 0.02, "output_router_logits": false,
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": null,
        "router_aux_loss_coef": 0.02, "tie_word_embeddings": false,
    });
    assert_eq!(parse(published).expect("a published model"), LmConfig::mixtral_8x7b());
}

#[test]
fn the_published_qwen3_moe_has_its_size() {
    let published = json!({
        "model_type": "qwen3_moe", "torch_dtype": "bfloat16", "attention_bias": false, "attention_dropout": 0.0,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048,
        "intermediate_size": 6144, "moe_intermediate_size": 768, "max_position_embeddings": 40960,
        "max_window_layers": 48, "sliding_window": null, "use_sliding_window": false, "norm_topk_prob": true,
        "num_attention_heads": 32, "num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8,
        "num_hidden_layers": 48, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000.0,
        "vocab_size": 151936, "tie_word_embeddings": false,
    });
    let config = parse(published).expect("a published model");
    assert_eq!((config.num_params() as f64 / 1e8).round(), 305.0);
    assert_eq!((config.moe_layers, config.qk_norm), (MoeLayers::All, QkNorm::PerHead));
}

#[test]
fn what_was_written_reads_the_same() {
    let yarn = RopeScaling::Yarn {
        factor: 4.0,
        original_max_seq_len: 8,
        attention_factor: Some(1.25),
        beta_fast: 2.0,
        beta_slow: 0.5,
        truncate: false,
    };
    let llama3 =
        RopeScaling::Llama3 { factor: 2.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_seq_len: 8 };
    let scalings = [None, Some(RopeScaling::Linear { factor: 2.0 }), Some(llama3), Some(yarn)];
    for family in Family::ALL {
        for scaling in scalings.into_iter().chain([Some(RopeScaling::yarn(2.0, 8))]) {
            let mut config = small(family).with_rope_scaling(scaling).with_rope_theta(123.0).with_tie_embeddings(false);
            config = config.with_num_kv_heads(Some(1)).with_norm_eps(1e-3).with_init_std(0.1);
            if family.has_experts() {
                (config.moe.balance, config.moe.balance_coef) = (moe_layers::BalanceConvention::HuggingFace, 0.5);
            }
            if family != Family::Olmoe {
                config.head_dim = Some(6);
            }
            if family == Family::Qwen3Moe {
                config.moe_layers = MoeLayers::AllButFirst;
            } else if family.has_experts() {
                // Without a dense layer its width does not matter.
                config.d_hidden = config.moe.d_hidden;
            }
            let (found, written) =
                write(&config, &TokenIds::default(), WeightDtype::Bf16).expect("it has an equivalent");
            assert_eq!(found, Family::of(&config));
            assert_eq!(parse(written).expect("it was just written"), config);
        }
    }
}

#[test]
fn both_spellings_of_rotary_positions_are_read() {
    let table = || json!({"rope_type": "linear", "factor": 2.0});
    let old = rope("rope_scaling", table()).expect("the old one");
    let new = rope("rope_parameters", table()).expect("the new one");
    assert_eq!(old, new);
    assert_eq!((old.rope_theta, old.rope_scaling), (1e6, Some(RopeScaling::Linear { factor: 2.0 })));
    let oldest = rope("rope_scaling", json!({"type": "linear", "factor": 2.0})).expect("the oldest one");
    assert_eq!(oldest, old);
    let inside = rope("rope_parameters", json!({"rope_type": "default", "rope_theta": 50.0})).expect("none");
    assert_eq!((inside.rope_theta, inside.rope_scaling), (50.0, None));
    assert_eq!(with(Family::Olmoe, "rope_theta", json!(7.0)).expect("a base").rope_theta, 7.0);
}

#[test]
fn yarn_takes_what_it_is_not_told_from_the_lengths() {
    let yarn = |table: Value| rope("rope_scaling", table).expect("yarn").rope_scaling;
    let original = json!({"rope_type": "yarn", "factor": null, "original_max_position_embeddings": 16});
    assert_eq!(yarn(original), Some(RopeScaling::yarn(4.0, 16)));
    assert_eq!(yarn(json!({"rope_type": "yarn", "factor": 2.0})), Some(RopeScaling::yarn(2.0, 64)));
    let scales = json!({"rope_type": "yarn", "factor": 2.0, "mscale": 0.5, "mscale_all_dim": 1.0});
    let Some(RopeScaling::Yarn { attention_factor: Some(factor), .. }) = yarn(scales) else { panic!("a factor") };
    assert_eq!(factor, (0.05 * 2f64.ln() + 1.0) / (0.1 * 2f64.ln() + 1.0));
}

#[test]
fn rotary_positions_that_contradict_or_are_not_known_are_refused() {
    let both = json!({
        "model_type": "mixtral",
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_type": "default"},
    });
    let two_bases = json!({"model_type": "mixtral", "rope_theta": 1.0, "rope_parameters": {"rope_theta": 2.0}});
    for (refused, field) in [
        (parse(both), "`rope_scaling`"),
        (parse(two_bases), "`rope_theta` = 1"),
        (rope("rope_scaling", json!({"rope_type": "dynamic", "factor": 2.0})), "\"dynamic\""),
        (rope("rope_scaling", json!({"rope_type": "linear"})), "`rope_scaling.factor`"),
        (
            rope("rope_scaling", json!({"rope_type": "linear", "factor": 2.0, "beta_fast": 1})),
            "`rope_scaling.beta_fast`",
        ),
        (rope("rope_scaling", json!({"rope_type": "linear", "factor": 0.5})), "rope_scaling.factor is 0.5"),
        (rope("partial_rotary_factor", json!(0.5)), "`partial_rotary_factor` = 0.5"),
        (rope("rope_parameters", json!({"partial_rotary_factor": 0.5})), "`rope_parameters.partial_rotary_factor`"),
    ] {
        let message = refused.expect_err(field).to_string();
        assert!(message.contains(field), "{message}");
    }
}

#[test]
fn values_that_change_the_function_are_refused_by_name() {
    for (family, name, value) in [
        (Family::Olmoe, "attention_bias", json!(true)),
        (Family::Olmoe, "clip_qkv", json!(8.0)),
        (Family::Olmoe, "head_dim", json!(64)),
        (Family::Mixtral, "sliding_window", json!(4096)),
        (Family::Qwen3Moe, "use_sliding_window", json!(true)),
        (Family::Mixtral, "hidden_act", json!("gelu")),
        (Family::Mixtral, "attention_dropout", json!(0.1)),
        (Family::Mixtral, "router_jitter_noise", json!(0.01)),
        (Family::Qwen3Moe, "quantization_config", json!({"quant_method": "fp8"})),
        (Family::Qwen3Moe, "decoder_sparse_step", json!(0)),
        (Family::Qwen3Moe, "num_hidden_layers", json!("many")),
        (Family::Qwen3Moe, "is_encoder_decoder", json!(true)),
        (Family::Llama, "mlp_bias", json!(true)),
        (Family::Mistral, "sliding_window", json!(4096)),
        (Family::Qwen3, "layer_types", json!(["full_attention", "sliding_attention"])),
    ] {
        let refused = with(family, name, value).expect_err(name);
        assert!(matches!(&refused, CheckpointError::Value { field, .. } if field == name), "{refused}");
    }
}

#[test]
fn an_unknown_field_or_family_is_refused_by_name() {
    let unknown = with(Family::Mixtral, "num_shared_experts", json!(1)).expect_err("it is not on any list");
    assert!(matches!(&unknown, CheckpointError::UnknownField { field } if field == "num_shared_experts"));
    for value in [json!({"model_type": "gpt2"}), json!({})] {
        let message = parse(value).expect_err("not one of the families").to_string();
        assert!(message.contains("`model_type`") && message.contains("qwen3_moe"), "{message}");
    }
}

#[test]
fn the_number_of_experts_has_two_names_that_must_agree() {
    let experts = |value: Value| parse(value).map(|config| config.moe.num_experts);
    for name in ["num_experts", "num_local_experts"] {
        for family in Family::ALL.into_iter().filter(|family| family.has_experts()) {
            assert_eq!(experts(json!({"model_type": family.model_type(), name: 9})).expect("a number"), 9);
        }
    }
    let refused = experts(json!({"model_type": "olmoe", "num_experts": 9, "num_local_experts": 8}));
    assert!(refused.expect_err("they differ").to_string().contains("`num_experts` is 9"));
}

#[test]
fn a_sliding_window_that_is_not_used_does_not_matter() {
    for family in [Family::Qwen3Moe, Family::Qwen3] {
        assert!(with(family, "sliding_window", json!(4096)).is_ok());
        assert!(with(family, "layer_types", json!(["full_attention", "full_attention"])).is_ok());
    }
}

/// Elsewhere it follows from the width of the model.
#[test]
fn the_heads_of_qwen3_have_a_width_of_their_own() {
    let width = |family| with(family, "hidden_size", json!(1024)).expect("a model").head_width();
    assert_eq!((width(Family::Qwen3), width(Family::Qwen3Moe), width(Family::Llama)), (128, 32, 32));
}

/// `transformers` gives Mistral one that the file does not mention.
#[test]
fn a_mistral_must_say_that_it_has_no_window() {
    assert!(with(Family::Mistral, "sliding_window", Value::Null).is_ok());
    let message = with(Family::Mistral, "vocab_size", json!(9)).expect_err("a window of 4096").to_string();
    assert!(message.contains("`sliding_window` = missing") && message.contains("write null"), "{message}");
}

#[test]
fn a_model_without_experts_has_no_fields_about_them() {
    for family in Family::ALL.into_iter().filter(|family| !family.has_experts()) {
        let (_, written) = write(&small(family), &TokenIds::default(), WeightDtype::F32).expect("it has an equivalent");
        let fields = written.as_object().expect("a table");
        assert!(fields.keys().all(|name| !name.contains("expert") && !name.contains("router")), "{written}");
        let mut more = fields.clone();
        more.insert("num_experts".into(), json!(4));
        assert!(matches!(read(more), Err(CheckpointError::UnknownField { field }) if field == "num_experts"));
    }
}

#[test]
fn dense_layers_come_from_a_list_and_a_step() {
    let placement = |list: Value, step: usize| {
        let fields = json!({
            "model_type": "qwen3_moe", "num_hidden_layers": 6, "mlp_only_layers": list, "decoder_sparse_step": step,
        });
        parse(fields).expect("a model").moe_layers
    };
    assert_eq!(placement(json!([]), 1), MoeLayers::All);
    assert_eq!(placement(json!(null), 2), MoeLayers::Every(2));
    assert_eq!(placement(json!([0]), 1), MoeLayers::AllButFirst);
    assert_eq!(placement(json!([3]), 2), MoeLayers::Only(vec![1, 5]));
    assert_eq!(placement(json!([0, 1, 2, 3, 4, 5]), 1), MoeLayers::None);
}

#[test]
fn a_configuration_that_is_no_model_is_refused() {
    let refused = with(Family::Mixtral, "rms_norm_eps", json!(-1.0)).expect_err("below 0");
    assert!(matches!(refused, CheckpointError::Model(_)));
    assert!(refused.to_string().contains("-1"));
}

#[test]
fn what_is_no_model_has_the_names_of_config_json() {
    let original = json!({
        "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 0,
    });
    let linear = json!({"rope_type": "linear", "factor": 0.5});
    for (family, field, value, text) in [
        (Family::Mixtral, "num_experts_per_tok", json!(9), "`num_experts_per_tok` = 9"),
        (Family::Mixtral, "num_experts_per_tok", json!(9), "num_local_experts = 8"),
        (Family::Olmoe, "num_experts_per_tok", json!(65), " num_experts = 64"),
        (Family::Olmoe, "num_experts", json!(0), "num_experts is 0"),
        (Family::Mixtral, "rms_norm_eps", json!(0.0), "rms_norm_eps is 0"),
        (Family::Mixtral, "hidden_size", json!(0), "hidden_size is 0"),
        (Family::Olmoe, "hidden_size", json!(2047), "`hidden_size` = 2047"),
        (Family::Olmoe, "num_attention_heads", json!(0), "num_attention_heads is 0"),
        (Family::Mixtral, "num_key_value_heads", json!(5), "`num_key_value_heads` = 5"),
        (Family::Mixtral, "num_hidden_layers", json!(0), "num_hidden_layers is 0"),
        (Family::Qwen3Moe, "moe_intermediate_size", json!(0), "moe_intermediate_size is 0"),
        (Family::Mixtral, "max_position_embeddings", json!(1u64 << 40), "max_position_embeddings is"),
        (Family::Mixtral, "router_aux_loss_coef", json!(-1.0), "router_aux_loss_coef is -1"),
        (Family::Mixtral, "initializer_range", json!(-1.0), "initializer_range is -1"),
        (Family::Olmoe, "vocab_size", json!(1), "`pad_token_id` = 1"),
        (Family::Mixtral, "rope_scaling", original.clone(), "rope_scaling.original_max_position_embeddings is 0"),
        (Family::Mixtral, "rope_parameters", original, "rope_parameters.original_max_position_embeddings is 0"),
        (Family::Mixtral, "rope_parameters", linear, "rope_parameters.factor is 0.5"),
    ] {
        let message = with(family, field, value).expect_err(field).to_string();
        assert!(message.contains(text) && message.starts_with("config.json: "), "{message}");
        assert!(!message.contains("moe."), "a name of ours: {message}");
    }
}

#[test]
fn a_model_that_no_family_describes_is_refused_with_the_setting() {
    let olmoe = || small(Family::Olmoe);
    let (mut router, mut shared, mut bias, mut gelu) = (olmoe(), olmoe(), olmoe(), olmoe());
    router.moe.router = RouterKind::Default;
    shared.moe.shared_d_hidden = 4;
    bias.moe.bias = true;
    gelu.moe.activation = moe_layers::Activation::Gelu;
    let mut gates = small(Family::Mixtral);
    gates.moe.normalize_gates = false;
    for (config, setting) in [
        (olmoe().with_norm(NormKind::Layer), "norm"),
        (gelu, "moe.activation"),
        (router, "moe.router"),
        (bias, "moe.bias"),
        (shared, "moe.shared_d_hidden"),
        (olmoe().with_head_dim(Some(6)), "head_dim"),
        (olmoe().with_moe_layers(MoeLayers::AllButFirst), "moe_layers"),
        (gates, "moe.normalize_gates"),
        (olmoe().with_moe_layers(MoeLayers::None), "moe_layers"),
        (LmConfig { num_heads: 3, head_dim: Some(2), ..small(Family::Llama) }, "num_heads"),
        (small(Family::Qwen3).with_activation(moe_layers::Activation::Gelu), "activation"),
    ] {
        let refused = write(&config, &TokenIds::default(), WeightDtype::F32).expect_err(setting);
        assert!(matches!(refused, CheckpointError::NoEquivalent { .. }) && refused.to_string().contains(setting));
    }
}

#[test]
fn another_balance_loss_is_not_given_the_weight_of_that_of_transformers() {
    let (_, written) =
        write(&small(Family::Olmoe), &TokenIds::default(), WeightDtype::F32).expect("it has an equivalent");
    assert_eq!(written["router_aux_loss_coef"], json!(0.0));
}

#[test]
fn special_tokens_pass_and_missing_ones_are_those_of_the_family() {
    let ids = |value: Value| read(fields(value)).expect("a model").token_ids;
    assert_eq!(ids(json!({"model_type": "mixtral"})), TokenIds { bos: Some(1), eos: vec![2], pad: None });
    let several = json!({"model_type": "qwen3_moe", "eos_token_id": [3, 4], "pad_token_id": 5, "bos_token_id": null});
    assert_eq!(ids(several), TokenIds { bos: None, eos: vec![3, 4], pad: Some(5) });
    for eos in [vec![], vec![7], vec![8, 9]] {
        let token_ids = TokenIds { bos: Some(6), eos, pad: None };
        let (_, written) = write(&small(Family::Olmoe), &token_ids, WeightDtype::F32).expect("it has an equivalent");
        assert_eq!(ids(written), token_ids);
    }
    let refused = with(Family::Mixtral, "eos_token_id", json!("end")).expect_err("a text is no token");
    assert!(refused.to_string().contains("`eos_token_id`"));
}

#[test]
fn the_token_for_padding_is_of_the_model_too() {
    let padding = |value: Value| parse(value).expect("a model").padding_id;
    assert_eq!(padding(json!({"model_type": "olmoe"})), Some(1));
    assert_eq!(padding(json!({"model_type": "olmoe", "pad_token_id": null})), None);
    assert_eq!(padding(json!({"model_type": "mixtral", "pad_token_id": 5})), Some(5));
    let config = small(Family::Olmoe).with_padding_id(Some(4));
    let pad = |pad| write(&config, &TokenIds { pad, ..TokenIds::default() }, WeightDtype::F32);
    for same in [None, Some(4)] {
        let (_, written) = pad(same).expect("they agree");
        assert_eq!((padding(written.clone()), &written["pad_token_id"]), (Some(4), &json!(4)));
    }
    let refused = pad(Some(3)).expect_err("they differ").to_string();
    assert!(refused.contains("padding_id is 4") && refused.contains("padding 3"), "{refused}");
    let (_, written) =
        write(&small(Family::Olmoe), &TokenIds { pad: Some(3), ..TokenIds::default() }, WeightDtype::F32)
            .expect("only a tokenizer has it");
    assert_eq!(written["pad_token_id"], json!(3));
}

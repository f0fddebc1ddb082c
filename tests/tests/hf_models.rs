//! Checkpoints of `transformers` against `transformers`: logits, losses, every gradient, and the way back.
//!
//! `golden/hf` comes from `torch/hf_models.py`, which says how to remake it and how to let `transformers` load what
//! [`export`] writes.

#![cfg(feature = "flex")]

use std::fs;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Int, Tensor, TensorData};
use moe_layers::upcycle::Upcycling;
use moe_models::checkpoint::{Family, HfCheckpoint, HfConfig, HfExport, WeightDtype, read_config};
use moe_models::lm::{Lm, LmConfig, LmLoss, LmMoeConfig, MoeLayers};
use moe_tests::{Flex, host};
use safetensors::SafeTensors;

const CASES: [&str; 13] = [
    "llama",
    "mistral",
    "mixtral",
    "mixtral-bf16",
    "mixtral-long",
    "olmoe",
    "olmoe-f16",
    "olmoe-normalised-sharded",
    "olmoe-padding",
    "qwen3",
    "qwen3-moe",
    "qwen3-moe-padding-tied",
    "qwen3-moe-sparse-step",
];

/// Of a logit or a loss, absolute: logits are a few units large, and both sides compute in f32.
const OUTPUT: f64 = 1e-5;

/// Of a gradient, relative to the largest number of its tensor.
const GRADIENT: f64 = 1e-4;

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/hf").join(case)
}

fn load(dir: &Path) -> Lm<Flex> {
    let checkpoint = HfCheckpoint::open(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    checkpoint.load(&Default::default()).expect("it was just opened")
}

/// Numbers of a tensor of integers or f32.
fn numbers(file: &SafeTensors<'_>, name: &str) -> (Vec<usize>, Vec<f64>) {
    let tensor = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    let numbers = match tensor.dtype() {
        safetensors::Dtype::I64 => chunks(tensor.data(), |bytes| i64::from_le_bytes(bytes) as f64),
        safetensors::Dtype::F32 => chunks(tensor.data(), |bytes| f64::from(f32::from_le_bytes(bytes))),
        other => panic!("{name} is {other:?}"),
    };
    (tensor.shape().to_vec(), numbers)
}

fn chunks<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    bytes.chunks_exact(N).map(|chunk| number(chunk.try_into().expect("N bytes"))).collect()
}

/// The columns of the tokens `[B, S + 1]` from `from` on, `S` of them.
fn tokens(file: &SafeTensors<'_>, from: usize) -> Tensor<Flex, 2, Int> {
    let (shape, ids) = numbers(file, "tokens");
    let data = TensorData::new(ids.iter().map(|&id| id as i64).collect(), shape.clone());
    Tensor::<Flex, 2, Int>::from_data(data, &Default::default()).slice([0..shape[0], from..from + shape[1] - 1])
}

/// Logits of as many of the last positions as are expected.
fn logits(model: &Lm<Flex>, expected: &SafeTensors<'_>) -> Vec<f64> {
    let logits = model.forward(tokens(expected, 0)).logits;
    let ([batch, len, vocab], kept) = (logits.dims(), numbers(expected, "logits").0[1]);
    host(logits.slice([0..batch, len - kept..len, 0..vocab]))
}

/// The largest difference, relative to the largest expected number where `relative`.
fn error(found: &[f64], expected: &[f64], relative: bool) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest = |numbers: &mut dyn Iterator<Item = f64>| numbers.fold(0.0, |max: f64, x| max.max(x.abs()));
    let difference = largest(&mut found.iter().zip(expected).map(|(found, expected)| found - expected));
    let scale = largest(&mut expected.iter().copied());
    // What has no gradient there must have none here.
    if relative && scale > 0.0 { difference / scale } else { difference }
}

fn assert_within(what: &str, found: &[f64], (expected, allowed): (&[f64], f64), relative: bool) -> f64 {
    let error = error(found, expected, relative);
    assert!(error <= allowed, "{what}: error {error:e}, allowed {allowed:e}");
    error
}

/// Gradients in the place of parameters, so that saving the model lays them out as a checkpoint.
struct ToGradients<'a>(&'a <Flex as AutodiffBackend>::Gradients);

impl ModuleMapper<Flex> for ToGradients<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<Flex, D>>) -> Param<Tensor<Flex, D>> {
        let gradient = param.grad(self.0).expect("every parameter has one");
        Param::from_tensor(Tensor::from_inner(gradient))
    }
}

#[test]
fn logits_losses_and_gradients_are_those_of_transformers() {
    for case in CASES {
        let bytes = fs::read(golden(case).join("expected.safetensors")).expect("it is committed");
        let expected = SafeTensors::deserialize(&bytes).expect("safetensors");
        let model = load(&golden(case));
        let worst_logit =
            assert_within(case, &logits(&model, &expected), (&numbers(&expected, "logits").1, OUTPUT), false);
        let LmLoss { total, balance, .. } = model.loss(tokens(&expected, 0), tokens(&expected, 1));
        for (name, found) in [("loss", total.clone()), ("balance", balance)] {
            let what = format!("{case}, {name}");
            assert_within(&what, &host(found), (&numbers(&expected, name).1, OUTPUT), false);
        }
        let gradients = total.backward();
        let worst = compare_gradients(case, model.map(&mut ToGradients(&gradients)), &expected);
        println!("{case:26} logits {worst_logit:.1e}   gradients {worst:.1e}");
    }
}

fn compare_gradients(case: &str, gradients: Lm<Flex>, expected: &SafeTensors<'_>) -> f64 {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let dir = dir.path().join("gradients");
    HfExport::new().save(&gradients, &dir).expect("gradients are numbers");
    let bytes = fs::read(dir.join("model.safetensors")).expect("it was just written");
    let found = SafeTensors::deserialize(&bytes).expect("safetensors");
    assert_eq!(expected.names().iter().filter(|name| name.starts_with("grad.")).count(), found.len(), "{case}");
    let compare = |name: &&str| {
        let (shape, expected) = numbers(expected, &format!("grad.{name}"));
        let (found_shape, found) = numbers(&found, name);
        assert_eq!(found_shape, shape, "{case}, {name}");
        assert_within(&format!("{case}, gradient of {name}"), &found, (&expected, GRADIENT), true)
    };
    found.names().iter().map(compare).fold(0.0, f64::max)
}

/// A row that is an input and never predicted learns nothing, and one that is tied to the output learns from there.
#[test]
fn padding_is_among_the_inputs_of_its_cases() {
    for case in CASES {
        let bytes = fs::read(golden(case).join("expected.safetensors")).expect("it is committed");
        let expected = SafeTensors::deserialize(&bytes).expect("safetensors");
        let padding = load(&golden(case)).config().padding_id;
        assert_eq!(padding.is_some(), case.contains("padding"), "{case}");
        if let Some(id) = padding {
            assert!(host(tokens(&expected, 0).float()).contains(&(id as f64)), "{case}");
            let (shape, gradient) = numbers(&expected, "grad.model.embed_tokens.weight");
            let row = &gradient[id * shape[1]..][..shape[1]];
            assert_eq!(row.iter().any(|&number| number != 0.0), case.ends_with("tied"), "{case}");
        }
    }
}

#[test]
fn an_expert_that_nobody_chose_is_among_the_cases() {
    let bytes = fs::read(golden("qwen3-moe").join("expected.safetensors")).expect("it is committed");
    let expected = SafeTensors::deserialize(&bytes).expect("safetensors");
    let output = load(&golden("qwen3-moe")).forward(tokens(&expected, 0));
    let counts = output.layers[0].routing.counts().into_data();
    assert_eq!(counts.iter::<i64>().last(), Some(0));
}

/// A field that is left out has the value that transformers gives it.
#[test]
fn a_missing_field_has_the_default_of_its_family() {
    let text = fs::read_to_string(golden("defaults.json")).expect("it is committed");
    let all: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).expect("JSON");
    assert_eq!(all.len(), Family::ALL.len());
    for (name, mut full) in all {
        let read = |fields: &serde_json::Value| {
            let dir = tempfile::tempdir().expect("a temporary directory");
            fs::write(dir.path().join("config.json"), fields.to_string()).expect("writable");
            read_config(dir.path()).unwrap_or_else(|error| panic!("{name}: {error}"))
        };
        let mut nothing = serde_json::json!({"model_type": name});
        if name == "mistral" {
            // Its default is a window, which no model has here.
            assert_eq!(full["sliding_window"], 4096);
            for fields in [&mut nothing, &mut full] {
                fields["sliding_window"] = serde_json::Value::Null;
            }
        }
        let config = read(&nothing);
        assert_eq!(config.family.model_type(), name);
        let spelled_out = |config: HfConfig| HfConfig { model: same_function(&config.model), ..config };
        assert_eq!(spelled_out(config), spelled_out(read(&full)), "{name}");
    }
}

/// What the rotation is scaled by shows in the logits of the cases that scale it.
#[test]
fn scaled_rotary_positions_are_among_the_cases() {
    let scaled = ["llama", "mixtral-bf16", "olmoe-normalised-sharded", "qwen3-moe"];
    for case in CASES {
        let place = tempfile::tempdir().expect("a temporary directory");
        for entry in fs::read_dir(golden(case)).expect("it is committed") {
            let path = entry.expect("readable").path();
            fs::copy(&path, place.path().join(path.file_name().expect("a file"))).expect("writable");
        }
        fs::remove_file(place.path().join("expected.safetensors")).expect("it was copied");
        let config = place.path().join("config.json");
        let mut fields: serde_json::Value =
            serde_json::from_slice(&fs::read(&config).expect("it was copied")).expect("JSON");
        let theta = fields["rope_parameters"]["rope_theta"].clone();
        fields["rope_parameters"] = serde_json::json!({"rope_type": "default", "rope_theta": theta});
        fs::write(&config, fields.to_string()).expect("writable");
        let bytes = fs::read(golden(case).join("expected.safetensors")).expect("it is committed");
        let expected = SafeTensors::deserialize(&bytes).expect("safetensors");
        let error = error(&logits(&load(place.path()), &expected), &numbers(&expected, "logits").1, false);
        assert_eq!(error > 1000.0 * OUTPUT, scaled.contains(&case), "{case}: {error:e}");
    }
}

/// Name, dtype, shape and bytes of every tensor in a directory, by name.
fn all_tensors(dir: &Path) -> Vec<(String, String, Vec<usize>, Vec<u8>)> {
    let files = fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("readable").path());
    let weights = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("model") && name.ends_with(".safetensors")
    };
    let mut all = Vec::new();
    for path in files.filter(weights) {
        let bytes = fs::read(path).expect("readable");
        for (name, tensor) in SafeTensors::deserialize(&bytes).expect("safetensors").iter() {
            let dtype = format!("{:?}", tensor.dtype());
            all.push((name.to_string(), dtype, tensor.shape().to_vec(), tensor.data().to_vec()));
        }
    }
    all.sort();
    all
}

/// Loads a golden checkpoint and saves it in its own dtype; the sharded one in shards again.
fn save_again(case: &str, dir: &Path) {
    let checkpoint = HfCheckpoint::open(golden(case)).expect("it is committed");
    let model: Lm<Flex> = checkpoint.load(&Default::default()).expect("it was just opened");
    let largest = if case.ends_with("sharded") { 4000 } else { usize::MAX };
    let export = HfExport::new().with_dtype(checkpoint.dtype()).with_max_shard_bytes(largest);
    let export = export.with_token_ids(checkpoint.token_ids().clone());
    export.save(&model, dir).unwrap_or_else(|error| panic!("{case}: {error}"));
}

#[test]
fn a_checkpoint_that_is_loaded_and_saved_has_the_same_bits() {
    let place = tempfile::tempdir().expect("a temporary directory");
    for case in CASES {
        let dir = place.path().join(case);
        save_again(case, &dir);
        let (before, after) = (all_tensors(&golden(case)), all_tensors(&dir));
        assert!(before.len() > 20 && before == after, "{case}");
        let [before, after] = [&golden(case), &dir].map(|dir| HfCheckpoint::open(dir).expect("both are checkpoints"));
        assert_eq!(after.family(), Family::of(before.config()), "{case}");
        assert!(before.family() == after.family() || before.family() == Family::Mistral, "{case}");
        assert_eq!(before.token_ids(), after.token_ids(), "{case}");
        assert_eq!(same_function(before.config()), same_function(after.config()), "{case}");
    }
}

/// As `transformers` 5 has experts in memory: the same model, and exported as one with a tensor for each matrix.
#[test]
fn experts_that_share_tensors_are_those_with_their_own() {
    let place = tempfile::tempdir().expect("a temporary directory");
    for case in ["mixtral", "olmoe-normalised-sharded", "qwen3-moe"] {
        let fused = format!("{case}-fused");
        assert!(all_tensors(&golden(&fused)).iter().any(|tensor| tensor.0.ends_with("experts.gate_up_proj")));
        let dir = place.path().join(&fused);
        save_again(&fused, &dir);
        assert!(all_tensors(&golden(case)) == all_tensors(&dir), "{fused}");
    }
}

/// Cases without experts, with the number of experts that each dense network is cut into.
const DENSE: [(&str, usize); 3] = [("llama", 2), ("mistral", 1), ("qwen3", 3)];

/// The model of a case with twice as many experts in each layer as make up its network.
fn upcycled(case: &str, segments: usize) -> Lm<Flex> {
    let dense = load(&golden(case));
    let config: &LmConfig = dense.config();
    let moe = LmMoeConfig::new(2 * segments, segments, config.d_hidden / segments).with_normalize_gates(true);
    let config = config.clone().with_moe_layers(MoeLayers::All).with_moe(moe);
    config.upcycle(&dense, Upcycling::Copy).unwrap_or_else(|error| panic!("{case}: {error}"))
}

/// As experts, and after they went through a checkpoint.
#[test]
fn a_dense_checkpoint_that_became_experts_computes_what_transformers_did() {
    let place = tempfile::tempdir().expect("a temporary directory");
    for (case, segments) in DENSE {
        let bytes = fs::read(golden(case).join("expected.safetensors")).expect("it is committed");
        let expected = SafeTensors::deserialize(&bytes).expect("safetensors");
        let model = upcycled(case, segments);
        let logits = |model: &Lm<Flex>| {
            assert_within(case, &logits(model, &expected), (&numbers(&expected, "logits").1, OUTPUT), false)
        };
        logits(&model);
        let dir = place.path().join(case);
        HfExport::new().save(&model, &dir).expect("a family with experts");
        assert!(HfCheckpoint::open(&dir).expect("it was just written").family().has_experts());
        logits(&load(&dir));
    }
}

/// The configuration with what is merely another spelling made the same.
fn same_function(config: &LmConfig) -> LmConfig {
    config.clone().with_num_kv_heads(Some(config.kv_heads())).with_head_dim(Some(config.head_width()))
}

#[test]
fn the_cases_are_of_every_family_and_dtype_their_names_say() {
    for case in CASES {
        let checkpoint = HfCheckpoint::open(golden(case)).expect("it is committed");
        let family = Family::ALL.into_iter().find(|family| case.starts_with(&family.model_type().replace('_', "-")));
        assert_eq!(Some(checkpoint.family()), family, "{case}");
        let dtype = case.rsplit('-').find_map(|word| word.parse().ok()).unwrap_or(WeightDtype::F32);
        assert_eq!(checkpoint.dtype(), dtype, "{case}");
        assert_eq!(golden(case).join("model.safetensors.index.json").exists(), case.ends_with("sharded"), "{case}");
    }
}

#[test]
#[ignore = "writes target/hf-export for torch/hf_models.py"]
fn export() {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/hf-export");
    if target.exists() {
        fs::remove_dir_all(&target).expect("it is ours");
    }
    for case in CASES {
        save_again(case, &target.join(case));
    }
    for (case, segments) in DENSE {
        let dir = target.join(format!("{case}-upcycled"));
        HfExport::new().save(&upcycled(case, segments), dir).expect("a family with experts");
    }
}

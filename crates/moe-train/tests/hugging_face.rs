//! From a run to a Hugging Face checkpoint and back: the same model, the same text, one clear line where it cannot be.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Place, fail, metrics, program, succeed};
use serde_json::{Value, json};

/// `train`, with queries and keys normalised as in Qwen3-MoE, which has dense layers too.
fn train(place: &Place, out: &str, steps: usize) -> Command {
    let mut command = place.train(out, steps);
    command.args(["--set", "model.qk_norm=per-head"]);
    command
}

fn export(place: &Place, run: &str, out: &str) -> Command {
    let mut command = program();
    command.arg("export").arg("--run").arg(place.path(run)).arg("--out").arg(place.path(out));
    command
}

/// A run called `run` and its export, `model`.
fn exported(place: &Place) -> PathBuf {
    succeed(train(place, "run", 5));
    succeed(export(place, "run", "model"));
    place.path("model")
}

fn generate(option: &str, dir: &Path) -> Command {
    let mut command = program();
    command.arg("generate").arg(option).arg(dir).args([
        "--prompt",
        "the router",
        "--tokens",
        "12",
        "--temperature",
        "0",
    ]);
    command
}

/// `train` on the same text with nothing said about the model.
fn start_from(place: &Place, dir: &Path, out: &str, steps: usize) -> Command {
    let mut command = program();
    command.arg("train").arg("--data").arg(place.text()).arg("--out").arg(place.path(out)).arg("--init-from").arg(dir);
    command.args(["--steps", &steps.to_string()]);
    for setting in common::MICRO.iter().filter(|setting| setting.starts_with("train.")) {
        command.args(["--set", setting]);
    }
    command
}

fn loss(place: &Place, run: &str) -> String {
    let mut command = program();
    command.arg("eval").arg("--run").arg(place.path(run));
    let out = succeed(command);
    let loss = out.split_whitespace().find(|word| word.starts_with("loss=")).expect("eval prints it");
    loss.to_string()
}

#[test]
fn an_exported_model_writes_the_same_text() {
    let place = Place::new();
    let model = exported(&place);
    let config: Value = serde_json::from_slice(&fs::read(model.join("config.json")).expect("written")).expect("JSON");
    assert_eq!((&config["model_type"], &config["mlp_only_layers"][0]), (&"qwen3_moe".into(), &0.into()));
    let text = succeed(generate("--run", &place.path("run")));
    assert!(text.starts_with("the router"));
    assert_eq!(succeed(generate("--checkpoint", &model)), text);
}

#[test]
fn a_run_that_starts_from_a_checkpoint_has_its_weights() {
    let place = Place::new();
    let model = exported(&place);
    let mut command = start_from(&place, &model, "next", 1);
    // Too small a rate to show.
    command.args(["--set", "optim.lr=1e-12", "--set", "optim.min_lr=0", "--set", "moe.balance_coef=0.5"]);
    let out = succeed(command);
    assert!(out.contains("weights from"), "{out}");
    assert_eq!(loss(&place, "next"), loss(&place, "run"));
    let config = fs::read(place.path("next").join("config.json")).expect("every run has one");
    let config: Value = serde_json::from_slice(&config).expect("JSON");
    assert_eq!(config["model"]["moe"]["balance_coef"], 0.5);
    assert!(Path::new(config["train"]["init_from"].as_str().expect("it is recorded")).is_absolute());
}

#[test]
fn such_a_run_resumes_from_its_own_checkpoints_or_else_from_the_same_weights() {
    let place = Place::new();
    let model = exported(&place);
    succeed(start_from(&place, &model, "next", 5));
    let before = metrics(&place.path("next"));
    fs::remove_dir_all(place.path("next/checkpoints")).expect("writable");
    fs::create_dir(place.path("next/checkpoints")).expect("writable");
    // What a kill right after the start may leave out.
    let token_ids = place.path("next/token_ids.json");
    let kept = fs::read(&token_ids).expect("the run has its own");
    fs::remove_file(&token_ids).expect("removable");
    succeed(place.resume("next"));
    assert_eq!(fs::read(&token_ids).expect("it is back"), kept);
    let losses = |records: &[Value]| records.iter().map(|record| record["loss"].clone()).collect::<Vec<_>>();
    assert_eq!(losses(&metrics(&place.path("next"))), losses(&before));

    fs::remove_dir_all(&model).expect("writable");
    let mut longer = place.resume("next");
    longer.args(["--steps", "8"]);
    assert!(succeed(longer).contains("final: steps=8 "));
}

#[test]
fn settings_that_contradict_the_checkpoint_are_refused_and_equal_ones_are_not() {
    let place = Place::new();
    let model = exported(&place);
    for (setting, key) in [("model.d_model=64", "`model.d_model`"), ("moe.top_k=1", "`model.moe.top_k`")] {
        let mut command = start_from(&place, &model, "next", 1);
        command.args(["--set", setting]);
        let message = fail(command);
        assert!(message.contains(key) && message.contains("the checkpoint in"), "{message}");
    }
    assert!(!place.path("next").exists());
    let mut command = start_from(&place, &model, "next", 1);
    command.args(["--set", "model.d_model=32", "--set", "moe.top_k=2"]);
    succeed(command);
}

/// The export of a run without experts.
fn dense(place: &Place) -> PathBuf {
    let mut command = place.train("run", 5);
    command.args(["--set", "model.moe_layers=none"]);
    succeed(command);
    assert!(succeed(export(place, "run", "model")).contains("export  llama "));
    place.path("model")
}

/// `start_from` with experts in every layer: two of four for a token, as wide as half the network.
fn with_experts(place: &Place, dir: &Path, out: &str) -> Command {
    let mut command = start_from(place, dir, out, 1);
    for setting in ["model.moe_layers=all", "moe.num_experts=4", "moe.top_k=2", "moe.normalize_gates=true"] {
        command.args(["--set", setting]);
    }
    command.args(["--set", "optim.lr=1e-12", "--set", "optim.min_lr=0"]);
    command
}

#[test]
fn the_networks_of_a_dense_checkpoint_become_experts_with_the_same_loss() {
    let place = Place::new();
    let model = dense(&place);
    succeed(with_experts(&place, &model, "copies"));
    let number = |run: &str| loss(&place, run).trim_start_matches("loss=").parse::<f64>().expect("a number");
    assert!((number("copies") - number("run")).abs() < 1e-5, "{} {}", number("copies"), number("run"));
    assert!(succeed(export(&place, "copies", "mixtral")).contains("export  mixtral "));

    let mut noisy = with_experts(&place, &model, "noisy");
    noisy.args(["--set", "train.upcycling=noise-2"]);
    succeed(noisy);
    assert!((number("noisy") - number("run")).abs() > 1e-3, "{} {}", number("noisy"), number("run"));
}

#[test]
fn experts_that_do_not_fit_the_networks_are_refused_before_there_is_a_run() {
    let place = Place::new();
    let model = dense(&place);
    let mut narrow = with_experts(&place, &model, "next");
    narrow.args(["--set", "moe.d_hidden=7"]);
    let message = fail(narrow);
    assert!(message.contains("cannot start from") && message.contains("d_hidden = 7 must divide"), "{message}");
    let mut nowhere = start_from(&place, &model, "next", 1);
    nowhere.args(["--set", "moe.num_experts=4"]);
    let message = fail(nowhere);
    assert!(message.contains("has no experts") && message.contains("model.moe_layers"), "{message}");
    let mut share = with_experts(&place, &model, "next");
    share.args(["--set", "train.upcycling=drop-1.5"]);
    assert!(fail(share).contains("the share is 1.5"));
    assert!(!place.path("next").exists());
}

#[test]
fn a_tokenizer_goes_with_the_model_and_no_other_may_be_named() {
    let place = Place::new();
    let tokenizer = place.path("mine.json");
    let vocab: serde_json::Map<String, Value> = (0u8..=127)
        .filter(u8::is_ascii_graphic)
        .zip(0..)
        .map(|(c, id)| (char::from(c).to_string(), id.into()))
        .collect();
    let bytes =
        serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let mut json = serde_json::json!({
        "version": "1.0", "added_tokens": [], "pre_tokenizer": bytes, "decoder": bytes,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    // The alphabet's letters for a blank and a line end.
    (json["model"]["vocab"]["Ġ"], json["model"]["vocab"]["Ċ"]) = (94.into(), 95.into());
    fs::write(&tokenizer, json.to_string()).expect("writable");
    let mut command = train(&place, "run", 5);
    command.arg("--tokenizer").arg(&tokenizer);
    succeed(command);
    succeed(export(&place, "run", "model"));
    let model = place.path("model");
    assert_eq!(succeed(generate("--checkpoint", &model)), succeed(generate("--run", &place.path("run"))));
    succeed(start_from(&place, &model, "next", 1));
    assert!(place.path("next/tokenizer.json").is_file());
    let mut repeated = program();
    repeated.arg("train").arg("--config").arg(place.path("next/config.json")).arg("--out").arg(place.path("repeated"));
    succeed(repeated);
    assert_eq!(metrics(&place.path("repeated"))[0]["loss"], metrics(&place.path("next"))[0]["loss"]);

    let config = model.join("config.json");
    let mut fields: Value = serde_json::from_slice(&fs::read(&config).expect("written")).expect("JSON");
    fields["eos_token_id"] = 95.into();
    fs::write(&config, fields.to_string()).expect("writable");
    succeed(start_from(&place, &model, "ended", 5));
    succeed(export(&place, "ended", "again"));
    let again = fs::read(place.path("again/config.json")).expect("written");
    assert_eq!(serde_json::from_slice::<Value>(&again).expect("JSON")["eos_token_id"], 95);

    let mut command = start_from(&place, &model, "other", 1);
    command.arg("--tokenizer").arg(&tokenizer);
    assert!(fail(command).contains("leave --tokenizer out"));
    fs::remove_file(model.join("tokenizer.json")).expect("writable");
    assert!(fail(generate("--checkpoint", &model)).contains("no tokenizer.json"));
    let mut command = start_from(&place, &model, "other", 1);
    command.arg("--tokenizer").arg(&tokenizer);
    succeed(command);
}

#[test]
fn a_model_without_an_equivalent_is_refused_and_leaves_nothing() {
    let place = Place::new();
    succeed(place.train("run", 5));
    let message = fail(export(&place, "run", "model"));
    assert!(message.contains("not a mixtral model") && message.contains("moe_layers"), "{message}");
    assert!(!place.path("model").exists());
}

#[test]
fn an_export_says_what_it_leaves_out_and_takes_a_dtype_and_a_size() {
    let place = Place::new();
    let mut command = train(&place, "run", 5);
    command.args(["--set", "moe.z_coef=0.001", "--set", "moe.importance_coef=0.1"]);
    succeed(command);
    let mut command = export(&place, "run", "model");
    command.args(["--dtype", "bf16", "--max-shard-bytes", "20000"]);
    let out = succeed(command);
    assert!(
        out.contains("z-loss")
            && out.contains("balance loss")
            && out.contains("importance loss")
            && out.contains("bytes"),
        "{out}"
    );
    assert!(place.path("model/model.safetensors.index.json").is_file());
    succeed(generate("--checkpoint", &place.path("model")));
    assert!(fail(export(&place, "run", "model")).contains("not an empty directory"));
}

#[test]
fn runs_and_checkpoints_are_not_mistaken_for_each_other() {
    let place = Place::new();
    let model = exported(&place);
    assert!(fail(generate("--run", &model)).contains("generate --checkpoint"));
    let message = fail(generate("--checkpoint", &place.path("run")));
    assert!(message.contains("model_type") && message.contains("mixtral"), "{message}");
    let mut both = generate("--run", &place.path("run"));
    both.arg("--checkpoint").arg(&model);
    assert!(fail(both).contains("needs no --run"));
    let mut neither = program();
    neither.arg("generate");
    assert!(fail(neither).contains("--run"));
}

#[test]
fn damaged_weights_are_found_before_a_run_has_a_directory() {
    let place = Place::new();
    let model = exported(&place);
    let path = model.join("model.safetensors");
    let bytes = fs::read(&path).expect("written");
    fs::write(&path, &bytes[..bytes.len() / 2]).expect("writable");
    assert!(fail(start_from(&place, &model, "next", 1)).contains("damaged"));
    assert!(!place.path("next").exists());
}

#[test]
fn a_generation_config_that_cannot_be_read_is_found_before_a_run_has_a_directory() {
    let place = Place::new();
    let model = exported(&place);
    fs::write(model.join("generation_config.json"), r#"{"eos_token_id": "</s>"}"#).expect("writable");
    assert!(fail(start_from(&place, &model, "next", 1)).contains("generation_config.json"));
    assert!(!place.path("next").exists());
    assert!(fail(generate("--checkpoint", &model)).contains("generation_config.json"));
}

#[test]
fn frozen_parameters_are_named_by_patterns_that_must_match() {
    let place = Place::new();
    let mut command = place.train("run", 5);
    command.args(["--set", "optim.freeze=[\"embeding\"]"]);
    let message = fail(command);
    assert!(message.contains("`embeding` matches no parameter") && message.contains("embedding"), "{message}");
    assert!(!place.path("run").exists());
    let mut command = place.train("run", 5);
    command.args(["--set", "optim.freeze=[\"embedding\", \"blocks.*.feed_forward.*\"]"]);
    succeed(command);
}

/// A run that starts from `model` and its export, after which nothing of the checkpoint is needed.
fn start_and_export(place: &Place, model: &Path, run: &str, out: &str) -> PathBuf {
    succeed(start_from(place, model, run, 1));
    fs::remove_dir_all(model).expect("writable");
    succeed(export(place, run, out));
    place.path(out)
}

#[test]
fn files_beside_the_tokenizer_go_through_a_run_into_its_export() {
    const FILES: [&str; 4] =
        ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "chat_template.jinja"];
    let place = Place::new();
    let model = exported(&place);
    assert!(FILES.iter().all(|name| !model.join(name).exists()), "a run from new weights has none");
    for name in FILES {
        fs::write(model.join(name), format!("{{\"name\": \"{name}\"}}")).expect("writable");
    }
    let again = start_and_export(&place, &model, "next", "again");
    for name in FILES {
        let kept = fs::read_to_string(again.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(kept, format!("{{\"name\": \"{name}\"}}"));
    }
}

#[test]
fn a_text_ends_before_a_token_that_ends_it() {
    let place = Place::new();
    let model = exported(&place);
    let text = succeed(generate("--checkpoint", &model));
    let new = text["the router".len()..].trim_end_matches('\n').as_bytes();
    let end = new[new.len() / 2];
    let path = model.join("config.json");
    let mut fields: Value = serde_json::from_slice(&fs::read(&path).expect("written")).expect("JSON");
    fields["eos_token_id"] = [end, 0].map(u32::from).to_vec().into();
    fs::write(&path, fields.to_string()).expect("writable");
    let kept: Vec<u8> = new.iter().copied().take_while(|&byte| byte != end).collect();
    let expected = format!("the router{}\n", String::from_utf8(kept).expect("the model writes ASCII"));
    assert!(expected.len() < text.len(), "{text}");
    assert_eq!(succeed(generate("--checkpoint", &model)), expected);
    // The rate is too small to change a text.
    let mut command = start_from(&place, &model, "next", 1);
    command.args(["--set", "optim.lr=1e-12", "--set", "optim.min_lr=0"]);
    succeed(command);
    assert_eq!(succeed(generate("--run", &place.path("next"))), expected);
}

/// A tokenizer as Mixtral's, of words that carry the blank before them.
fn word_tokenizer() -> Value {
    const SPECIAL: [&str; 4] = ["<unk>", "<s>", "</s>", "<end>"];
    const WORDS: [&str; 11] =
        ["the", "router", "an", "expert", "a", "token", "chooses", "serves", "learns", "and", "again."];
    let added = SPECIAL.iter().zip(0..).map(|(token, id)| {
        json!({"id": id, "content": token, "special": true, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false})
    });
    let tokens = SPECIAL.iter().map(|token| token.to_string()).chain(WORDS.iter().map(|word| format!("▁{word}")));
    let vocab: serde_json::Map<String, Value> = tokens.zip(0..).map(|(token, id)| (token, id.into())).collect();
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    json!({
        "version": "1.0", "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")]},
        "pre_tokenizer": {"type": "Split", "pattern": {"String": "▁"}, "behavior": "MergedWithNext", "invert": false},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [
            replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    })
}

/// A checkpoint that `transformers` wrote, of the golden files of `moe-tests`, with a tokenizer.
fn golden(place: &Place, case: &str) -> PathBuf {
    let dir = place.path(case);
    fs::create_dir(&dir).expect("writable");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/hf").join(case);
    for entry in fs::read_dir(&golden).expect("it is committed") {
        let path = entry.expect("readable").path();
        fs::copy(&path, dir.join(path.file_name().expect("a file"))).expect("writable");
    }
    fs::write(dir.join("tokenizer.json"), word_tokenizer().to_string()).expect("writable");
    dir
}

/// Prompts, and what `model.generate(**tok(prompt), do_sample=False, max_new_tokens=16)` of `transformers` 5 says to them, without
/// special tokens.
const SAID_BY_TRANSFORMERS: [(&str, &str, &str); 4] = [
    ("mixtral", "the router", " token"),
    ("mixtral-bf16", "again.", " the an<unk> the<unk> the<unk> the<unk> an the<unk> the<unk> an an"),
    ("olmoe-normalised-sharded", "a token serves", " a learns again. again. and"),
    // With a token between them that the tokenizer does not have.
    ("qwen3-moe-sparse-step", "an expert", " again."),
];

#[test]
fn checkpoints_of_transformers_say_what_they_say_there() {
    let place = Place::new();
    for (case, prompt, said) in SAID_BY_TRANSFORMERS {
        let mut command = program();
        command.args(["generate", "--prompt", prompt, "--tokens", "16", "--temperature", "0"]);
        command.arg("--checkpoint").arg(golden(&place, case));
        assert_eq!(succeed(command), format!("{prompt}{said}\n"), "{case}");
    }
}

#[test]
fn a_run_starts_from_a_checkpoint_of_transformers() {
    let place = Place::new();
    let mut command = start_from(&place, &golden(&place, "mixtral"), "run", 2);
    command.args(["--set", "train.seq_len=16"]);
    let out = succeed(command);
    assert!(out.contains("weights from") && out.contains("final: steps=2 "), "{out}");
    assert_eq!(metrics(&place.path("run")).len(), 2);
    let config: Value =
        serde_json::from_slice(&fs::read(place.path("run/config.json")).expect("written")).expect("JSON");
    assert_eq!((&config["model"]["vocab_size"], &config["model"]["moe"]["num_experts"]), (&19.into(), &5.into()));
}

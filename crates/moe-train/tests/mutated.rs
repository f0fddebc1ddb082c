//! Every reader of files against files that were changed at random: an error or what is still right, never a panic, and nothing that
//! takes the memory a broken header claims.

#![cfg(feature = "flex")]

#[path = "common/mutation.rs"]
mod mutation;

use std::fs;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use burn::backend::Flex;
use flate2::Compression;
use flate2::write::GzEncoder;
use image::{Rgb, RgbImage};
use moe_models::checkpoint::{HfCheckpoint, HfExport};
use moe_models::lm::{Lm, LmConfig, LmMoeConfig, MoeLayers, QkNorm};
use moe_train::config::{DataConfig, TrainConfig};
use moe_train::data::{Split, Vocab};
use moe_train::images::{ClassLoad, ImageConfig, ImageSource, Standard, VitTrainConfig};
use moe_train::overrides::Overrides;
use moe_train::report::write_report;
use moe_train::run::{ImageContext, Run, StepRecord, inspect, read_metrics};
use mutation::{Reader, mutated};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;

/// Reads `path` again and again, changed; then it is whole again, and readable.
fn survives(what: &str, path: &Path, read: impl Fn() -> Result<(), String>) {
    let original = fs::read(path).expect("the original is there");
    read().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut reader = Reader::new(format!("{what}, {name}"));
    for seed in reader.seeds() {
        let bytes = mutated(&original, &mut ChaCha8Rng::seed_from_u64(seed));
        fs::write(path, &bytes).expect("writable");
        let result = catch_unwind(AssertUnwindSafe(&read));
        let result = result.unwrap_or_else(|_| panic!("{} panics at seed {seed}", path.display()));
        reader.add(&result);
    }
    fs::write(path, &original).expect("writable");
    reader.end();
    read().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

fn place() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn put(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().expect("a file has a directory")).expect("writable");
    fs::write(&path, bytes).expect("writable");
    path
}

fn said<T, E: ToString>(result: Result<T, E>) -> Result<(), String> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if error.to_string().is_empty() => panic!("an error without words"),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn files_of_settings() {
    let dir = place();
    let config = TrainConfig::preset("tiny").expect("a preset");
    let json = serde_json::to_string_pretty(&config).expect("plain data");
    let files = [
        put(dir.path(), "c.json", json),
        put(dir.path(), "c.toml", "[train]\nsteps = 10\n[moe]\nrouter = \"sigmoid\"\ntop_k = 1\n[optim]\nlr = 1e-3\n"),
    ];
    for file in files {
        survives("settings", &file, || {
            let mut overrides = Overrides::default();
            said(overrides.add_file(&file))?;
            let config = TrainConfig::resolve("tiny", &overrides).map_err(|error| error.to_string())?;
            said(config.validate())
        });
    }
}

#[test]
fn settings_on_the_command_line() {
    let settings = [
        "optim.lr=5e-4",
        "moe.router='sigmoid'",
        "optim.freeze=[\"embedding\"]",
        "model.rope_scaling={kind = 'linear', factor = 2}",
    ];
    let mut reader = Reader::new("--set");
    for seed in reader.seeds() {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        // One at a time: what comes after the others is reached only if they are right.
        let mut texts = settings.map(String::from);
        let text = &mut texts[random.random_range(0..settings.len())];
        *text = String::from_utf8_lossy(&mutated(text.as_bytes(), &mut random)).into_owned();
        let read = || {
            let mut overrides = Overrides::default();
            for text in &texts {
                said(overrides.add_assignment(text))?;
            }
            let config = TrainConfig::resolve("tiny", &overrides).map_err(|error| error.to_string())?;
            said(config.validate())
        };
        let result = catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| panic!("{texts:?} panic at seed {seed}"));
        reader.add(&result);
    }
    assert!(reader.accepted() > 0, "no changed setting was one that exists");
    reader.end();
}

/// With every part a tokenizer of `transformers` may have: added tokens, a normalizer, splits by pattern, a decoder.
#[test]
fn tokenizers_of_transformers() {
    let dir = place();
    let around = |model: &str| {
        format!(
            r#"{{"version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [{{"id": 5, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}}],
            "normalizer": {{"type": "Sequence", "normalizers": [{{"type": "NFC"}}, {{"type": "Replace", "pattern": {{"String": " "}}, "content": "_"}}]}},
            "pre_tokenizer": {{"type": "Sequence", "pretokenizers": [{{"type": "Split", "pattern": {{"Regex": "\\w+|_"}}, "behavior": "Isolated", "invert": false}},
                {{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}}]}},
            "post_processor": {{"type": "TemplateProcessing", "single": [{{"SpecialToken": {{"id": "<s>", "type_id": 0}}}}, {{"Sequence": {{"id": "A", "type_id": 0}}}}],
                "pair": [{{"Sequence": {{"id": "A", "type_id": 0}}}}, {{"Sequence": {{"id": "B", "type_id": 1}}}}],
                "special_tokens": {{"<s>": {{"id": "<s>", "ids": [5], "tokens": ["<s>"]}}}}}},
            "decoder": {{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}},
            "model": {model}}}"#
        )
    };
    let models = [
        r#"{"type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false, "byte_fallback": false, "vocab": {"a": 0, "b": 1, "ab": 2, "_": 3, "c": 4}, "merges": [["a", "b"]]}"#,
        r#"{"type": "WordPiece", "unk_token": "a", "continuing_subword_prefix": "b", "max_input_chars_per_word": 100, "vocab": {"a": 0, "ba": 1, "bb": 2, "_": 3, "b": 4}}"#,
        r#"{"type": "Unigram", "unk_id": 0, "byte_fallback": false, "vocab": [["a", 0.0], ["b", -1.5], ["ab", -2.5], ["_", -3.0], ["c", -3.5]]}"#,
        r#"{"type": "WordLevel", "unk_token": "a", "vocab": {"a": 0, "ab": 1, "b": 2, "_": 3, "c": 4}}"#,
    ];
    for (i, model) in models.iter().enumerate() {
        let file = put(dir.path(), &format!("{i}.json"), around(model));
        survives("tokenizers", &file, || {
            let vocab = Vocab::load(Some(&file)).map_err(|error| error.to_string())?;
            vocab.encode("abba ab <s>c\u{e9}".into()).map_err(|error| error.to_string())?;
            vocab.encode_prompt("abba <s>c", true).map_err(|error| error.to_string())?;
            let mut stream = vocab.stream(&[]);
            (0..8).for_each(|token| drop(stream.push(token)));
            said(vocab.check_model(1 << 20))
        });
    }
}

#[test]
fn texts_and_tokenizers() {
    let dir = place();
    let tokenizer = r#"{"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}}"#;
    let file = put(dir.path(), "tokenizer.json", tokenizer);
    survives("tokenizers", &file, || {
        let vocab = Vocab::load(Some(&file)).map_err(|error| error.to_string())?;
        said(vocab.encode(b"abba ab".to_vec()))
    });
    // Any text is one; a changed one may be none.
    let text = put(dir.path(), "texts/a.txt", "the router chooses ".repeat(40));
    let config = DataConfig { path: Some(dir.path().join("texts")), ..DataConfig::default() };
    let mut reader = Reader::new("texts");
    for seed in reader.seeds() {
        fs::write(&text, mutated(&[b'a'; 300], &mut ChaCha8Rng::seed_from_u64(seed))).expect("writable");
        reader.add(&Split::load(&config));
    }
    reader.end();
}

#[test]
fn images_of_every_layout() {
    let dir = place();
    let load = |dir: &Path| {
        let config = ImageConfig { path: Some(dir.into()), ..ImageConfig::default() };
        said(ImageSource::find(&config).and_then(|source| source.load(0.5, 3, 4)))
    };
    let cifar = dir.path().join("cifar");
    let record = [vec![3; 1], vec![7; 3072]].concat();
    let batches: Vec<PathBuf> =
        (1..=5).map(|part| put(&cifar, &format!("data_batch_{part}.bin"), record.repeat(2))).collect();
    let test = put(&cifar, "test_batch.bin", record.repeat(2));
    for file in [&batches[0], &batches[4], &test] {
        survives("CIFAR-10", file, || load(&cifar));
    }

    let idx = dir.path().join("idx");
    let file = |magic: u8, sizes: &[u32], bytes: Vec<u8>| -> Vec<u8> {
        let sizes = sizes.iter().flat_map(|size| size.to_be_bytes());
        [0, 0, 8, magic].into_iter().chain(sizes).chain(bytes).collect()
    };
    let packed = |bytes: Vec<u8>| {
        let mut packed = GzEncoder::new(Vec::new(), Compression::best());
        packed.write_all(&bytes).and_then(|()| packed.finish()).expect("in memory")
    };
    let images = put(&idx, "train-images-idx3-ubyte", file(3, &[4, 3, 3], (0..36).collect()));
    let labels = put(&idx, "train-labels-idx1-ubyte.gz", packed(file(1, &[4], vec![0, 1, 2, 1])));
    put(&idx, "t10k-images-idx3-ubyte", file(3, &[2, 3, 3], (0..18).collect()));
    put(&idx, "t10k-labels-idx1-ubyte", file(1, &[2], vec![1, 0]));
    for file in [&images, &labels] {
        survives("IDX", file, || load(&idx));
    }

    let folders = dir.path().join("folders");
    for class in ["a", "b"] {
        for number in 0..2 {
            fs::create_dir_all(folders.join(class)).expect("writable");
            let image = RgbImage::from_fn(6, 5, |x, y| Rgb([x as u8 * 40, y as u8 * 40, number * 90]));
            let extension = if number == 0 { "png" } else { "bmp" };
            image.save(folders.join(class).join(format!("{number}.{extension}"))).expect("writable");
        }
    }
    let jpeg = folders.join("b/2.jpg");
    RgbImage::from_pixel(8, 8, Rgb([9, 90, 200])).save(&jpeg).expect("writable");
    for file in [folders.join("a/0.png"), folders.join("a/1.bmp"), jpeg] {
        survives("folders of images", &file, || load(&folders));
    }
}

#[test]
fn checkpoints_of_transformers() {
    let dir = place();
    let moe = LmMoeConfig::new(3, 2, 6).with_normalize_gates(true);
    let config = LmConfig::new(11, 8, 2, 2, 10, 16).with_moe_layers(MoeLayers::All).with_moe(moe);
    let model: Lm<Flex> = config.with_qk_norm(QkNorm::Full).init(&Default::default());
    let (whole, sharded) = (dir.path().join("whole"), dir.path().join("sharded"));
    HfExport::new().save(&model, &whole).expect("a new directory");
    HfExport::new().with_max_shard_bytes(4000).save(&model, &sharded).expect("a new directory");
    let load = |dir: &Path| {
        let loaded = HfCheckpoint::open(dir).and_then(|checkpoint| checkpoint.load::<Flex>(&Default::default()));
        said(loaded)
    };
    for file in ["config.json", "model.safetensors"] {
        survives("checkpoints of transformers", &whole.join(file), || load(&whole));
    }
    survives("sharded checkpoints of transformers", &sharded.join("model.safetensors.index.json"), || load(&sharded));
    // Of a shard too: an index and its shards may contradict each other in more ways.
    let shard = fs::read_dir(&sharded).expect("readable").map(|entry| entry.expect("readable").path());
    let shard = shard.filter(|path| path.extension().is_some_and(|extension| extension == "safetensors")).min();
    survives("sharded checkpoints of transformers", &shard.expect("there are several"), || load(&sharded));
}

#[test]
fn what_a_run_left() {
    let dir = place();
    let path = dir.path().join("run");
    let config = TrainConfig::preset("tiny").expect("a preset");
    let mut run = Run::create(&path, &config).expect("a new directory");
    let record: StepRecord = serde_json::from_str(
        r#"{"step": 1, "tokens": 8, "loss": 1.5, "balance_loss": 1.0, "z_loss": 0.1, "lr": 0.001, "grad_norm": 0.5, "tokens_per_s": 9.0, "layers": []}"#,
    )
    .expect("a record");
    (1..4).for_each(|step| run.log(&StepRecord { step, ..record.clone() }).expect("writable"));
    drop(run);
    survives("what a run left", &path.join("config.json"), || said(inspect(&path)));
    // And as somebody would change it who takes the checksum out.
    unseal(&path.join("config.json"));
    survives("settings without a checksum", &path.join("config.json"), || said(inspect(&path)));
    // A last line that was cut short is what a kill leaves, and no error: two lines more, so that others are hit.
    let metrics = path.join("metrics.jsonl");
    survives("metrics", &metrics, || said(read_metrics(&metrics)));
    survives("metrics at --resume", &metrics, || said(Run::open(&path)));
    survives("metrics in a report", &metrics, || said(write_report(&path)));
}

/// Takes the checksum out of a file, as the program advises where a change is meant.
fn unseal(path: &Path) {
    let mut file: serde_json::Value = serde_json::from_slice(&fs::read(path).expect("readable")).expect("JSON");
    file.as_object_mut().and_then(|file| file.remove("crc32")).expect("a checksum");
    fs::write(path, file.to_string()).expect("writable");
}

#[test]
fn what_a_run_of_images_left() {
    let dir = place();
    let path = dir.path().join("run");
    let config = VitTrainConfig::preset("tiny").expect("a preset");
    let mut run = Run::create(&path, &config).expect("a new directory");
    let record = r#"{"step": 1, "tokens": 8, "loss": 1.5, "balance_loss": 1.0, "z_loss": 0.1, "lr": 0.001, "grad_norm": 0.5,
        "tokens_per_s": 9.0, "valid_loss": 1.25, "valid_accuracy": 0.5, "layers": [{"layer": 1, "expert_counts": [3, 0, 5],
        "load_ratio": 1.9, "dead_experts": 1, "load_entropy": 0.6, "router_entropy": 1.0, "gate_mass": 0.7, "drop_rate": 0.0,
        "default": {"norms": [1.0, 0.5, 2.0], "moved": 0.1, "target_norm": 1.1, "share": 0.2}, "factors": [1.0, 0.5, 1.5]}]}"#;
    let record: StepRecord = serde_json::from_str(record).expect("a record");
    (1..4).for_each(|step| run.log(&StepRecord { step, ..record.clone() }).expect("writable"));
    let context = ImageContext {
        data: "drawn".into(),
        classes: vec!["cat".into(), "dog".into()],
        standard: Standard { mean: vec![0.5], std: vec![0.25] },
        linear_accuracy: 0.125,
        images_crc32: 7,
    };
    run.write_context(&context).expect("writable");
    let counts = vec![vec![3, 0, 5], vec![1, 0, 9]];
    run.write_class_loads(&[ClassLoad { layer: 1, counts }]).expect("writable");
    drop(run);
    ["config.json", "context.json"].into_iter().for_each(|name| unseal(&path.join(name)));
    for name in ["config.json", "context.json", "classes.json", "metrics.jsonl"] {
        survives("report of a run of images", &path.join(name), || said(write_report(&path)));
    }
}

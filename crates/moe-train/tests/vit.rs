//! Runs of vision models, from the command line, on images made here.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{Place, checkpoint, fail, metrics, program, succeed};
use serde_json::Value;
use tempfile::TempDir;

/// A model of a few thousand parameters, on images as they are.
const MICRO: &[&str] = &[
    "model.patch_size=4",
    "model.d_model=16",
    "model.num_layers=2",
    "model.num_heads=2",
    "model.d_hidden=32",
    "model.init_std=0.1",
    "moe.num_experts=4",
    "moe.d_hidden=16",
    "train.batch_size=16",
    "optim.lr=0.01",
    "train.valid_batches=2",
    "train.valid_every=10",
    "train.checkpoint_every=5",
    "train.log_every=1",
    "data.flip=false",
    "data.crop_padding=0",
];

/// IDX files with images of 8 x 8 whose bright quarter is their class, 200 to train on and 40 held out.
fn digits() -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = |magic: u8, sizes: &[u32], bytes: Vec<u8>| {
        let sizes = sizes.iter().flat_map(|size| size.to_be_bytes());
        [0, 0, 8, magic].into_iter().chain(sizes).chain(bytes).collect::<Vec<u8>>()
    };
    for (part, count) in [("train", 200u32), ("t10k", 40)] {
        let pixel = |image: u32, at: u32| {
            let quarter = at / 32 * 2 + at % 8 / 4;
            let noise = ((image * 31 + at * 17) % 50) as u8;
            if quarter == image % 4 { 180 + noise } else { noise }
        };
        let pixels = (0..count).flat_map(|image| (0..64).map(move |at| pixel(image, at))).collect();
        let images = file(3, &[count, 8, 8], pixels);
        let labels = file(1, &[count], (0..count).map(|image| (image % 4) as u8).collect());
        fs::write(dir.path().join(format!("{part}-images-idx3-ubyte")), images).expect("writable");
        fs::write(dir.path().join(format!("{part}-labels-idx1-ubyte")), labels).expect("writable");
    }
    dir
}

fn train(data: &Path, out: &Path, steps: usize, settings: &[&str]) -> Command {
    let mut command = program();
    command.args(["train", "vit", "--steps", &steps.to_string()]).arg("--data").arg(data).arg("--out").arg(out);
    for setting in MICRO.iter().chain(settings) {
        command.args(["--set", setting]);
    }
    command
}

fn config(run: &Path) -> Value {
    serde_json::from_slice(&fs::read(run.join("config.json")).expect("every run has one")).expect("JSON")
}

fn with(command: &str, run: &Path, args: &[&str]) -> Command {
    let mut program = program();
    program.arg(command).arg("--run").arg(run).args(args);
    program
}

#[test]
fn a_run_trains_is_measured_and_leaves_everything_behind() {
    let (data, place) = (digits(), Place::new());
    let run = place.path("run");
    let stdout = succeed(train(data.path(), &run, 120, &[]));
    assert!(stdout.contains("40 held out, in 4 classes") && stdout.contains("chance 25.00 %"), "{stdout}");
    assert!(stdout.contains("a linear model on the pixels"), "{stdout}");
    let last = stdout.lines().last().expect("there is output");
    for key in ["final: steps=120 images=1920 valid_loss=", " valid_accuracy=", " images_per_s="] {
        assert!(last.contains(key), "{last}");
    }

    let records = metrics(&run);
    let loss = |i: usize| records[i]["loss"].as_f64().expect("a number");
    assert!(loss(119) < 0.5 * loss(0), "{} -> {}", loss(0), loss(119));
    let accuracy = records[119]["valid_accuracy"].as_f64().expect("a number");
    assert!(accuracy > 0.9 && records[119].get("valid_bpb").is_none(), "{accuracy}");
    let counts = records[0]["layers"][0]["expert_counts"].as_array().expect("a list");
    assert_eq!(counts.iter().filter_map(|n| n.as_u64()).sum::<u64>(), 16 * 4 * 2, "every slot is served");

    let report = fs::read_to_string(run.join("report.html")).expect("there is a report");
    assert!(report.contains("Experts and classes") && report.contains("linear model on the pixels"));
    fs::remove_file(run.join("report.html")).expect("removable");
    succeed(with("report", &run, &[]));
    assert_eq!(fs::read_to_string(run.join("report.html")).expect("written again"), report);

    let measured = succeed(with("eval", &run, &[]));
    let elsewhere = succeed(with("eval", &run, &["--data", data.path().to_str().expect("UTF-8")]));
    let result = |stdout: &str| stdout.lines().last().expect("there is output").to_string();
    assert!(result(&measured).starts_with("eval: step=120 images=40 loss="), "{measured}");
    assert_eq!(result(&elsewhere), result(&measured));
}

#[test]
fn a_resumed_run_repeats_the_unbroken_one_and_can_be_made_longer() {
    let (data, place) = (digits(), Place::new());
    let settings = ["moe.router=noisy-top-k", "data.flip=true", "data.crop_padding=1", "train.keep_last=9"];
    let run = place.path("run");
    succeed(train(data.path(), &run, 12, &settings));
    let losses = || metrics(&run).iter().map(|record| record["loss"].to_string()).collect::<Vec<_>>();
    let unbroken = losses();
    for step in 6..=12 {
        let _ = fs::remove_dir_all(checkpoint(&run, step));
    }
    succeed(place.resume("run"));
    assert_eq!(losses(), unbroken);
    let mut longer = place.resume("run");
    longer.args(["--steps", "15"]);
    let stdout = succeed(longer);
    assert!(stdout.lines().last().expect("there is output").starts_with("final: steps=15 images=240 "), "{stdout}");
}

#[test]
fn experts_of_every_kind_train_on_images() {
    let settings: [&[&str]; 5] = [
        &["moe.router=default"],
        &["moe.router=expert-choice", "model.pooling=class-token"],
        &["model.soft_slots=2"],
        &["moe.capacity_factor=1", "moe.drop_policy=batch-priority", "optim.excitation=zero-sum"],
        &["model.moe_layers=none", "train.grad_accumulation=2", "optim.freeze=[\"positions\"]"],
    ];
    let data = digits();
    for settings in settings {
        let place = Place::new();
        let run = place.path("run");
        succeed(train(data.path(), &run, 60, settings));
        let losses: Vec<f64> = metrics(&run).iter().map(|record| record["loss"].as_f64().expect("a number")).collect();
        let last = losses[50..].iter().sum::<f64>() / 10.0;
        assert!(last < 0.9 * losses[0], "{settings:?}: {} -> {last}", losses[0]);
    }
}

#[test]
fn bad_input_is_one_line_and_leaves_no_directory() {
    let (data, place) = (digits(), Place::new());
    let run = place.path("run");
    let refused = |command: Command| {
        let message = fail(command);
        assert!(!run.exists(), "a run that cannot start leaves no directory behind");
        message
    };
    assert!(refused(train(&place.path("nowhere"), &run, 2, &[])).contains("does not exist"));
    assert!(refused(train(place.dir.path(), &run, 2, &[])).contains("holds no images"));
    let cases: [(&[&str], &str); 6] = [
        (&["model.channels=3"], "model.channels is 3, and the images have 1"),
        (&["model.patch_size=3"], "patch_size = 3 does not divide"),
        (&["moe.router=hash"], "patches have none"),
        (&["train.seq_len=4"], "unknown key `train.seq_len`"),
        (&["model.soft_slots=1", "optim.excitation=zero-sum"], "routed experts"),
        (&["optim.freeze=[\"nothing\"]"], "matches no parameter"),
    ];
    for (settings, expected) in cases {
        let message = refused(train(data.path(), &run, 2, settings));
        assert!(message.contains(expected), "{message}");
    }
    let mut with_tokenizer = train(data.path(), &run, 2, &[]);
    with_tokenizer.args(["--tokenizer", "t.json"]);
    assert!(refused(with_tokenizer).contains("--tokenizer is for language models"));
    let images = data.path().join("train-images-idx3-ubyte");
    let whole = fs::read(&images).expect("readable");
    fs::write(&images, &whole[..whole.len() - 1]).expect("writable");
    assert!(refused(train(data.path(), &run, 2, &[])).contains("is damaged"));
}

#[test]
fn runs_of_two_kinds_are_not_taken_for_each_other() {
    let (data, place) = (digits(), Place::new());
    let run = place.path("vision");
    succeed(train(data.path(), &run, 5, &[]));
    let message = fail(with("generate", &run, &["--prompt", "a"]));
    assert!(message.contains("is the run of a vision model"), "{message}");
    let out = place.path("exported");
    assert!(fail(with("export", &run, &["--out", out.to_str().expect("UTF-8")])).contains("vision model"));
    let mut as_text = program();
    as_text.args(["train", "lm", "--resume"]).arg(&run);
    assert!(fail(as_text).contains("vision model"));
    // The images are not what they were.
    let labels = data.path().join("train-labels-idx1-ubyte");
    let mut bytes = fs::read(&labels).expect("readable");
    bytes[8] = 3;
    fs::write(&labels, bytes).expect("writable");
    assert!(fail(place.resume("vision")).contains("not what this run began with"));
}

#[test]
fn without_data_the_shapes_are_drawn_and_say_little_to_a_linear_model() {
    let place = Place::new();
    let run = place.path("run");
    let mut command = program();
    command.args(["train", "vit", "--steps", "3"]).arg("--out").arg(&run);
    for setting in MICRO.iter().filter(|setting| !setting.starts_with("data.")) {
        command.args(["--set", setting]);
    }
    let stdout = succeed(command);
    assert!(stdout.contains("10,000 to train on, 2,000 held out, in 10 classes"), "{stdout}");
    let (_, scale) = stdout.split_once("chance 10.00 %, a linear model on the pixels ").expect("the scale is printed");
    let linear: f64 = scale.split_once(" %").and_then(|(number, _)| number.parse().ok()).expect("a number");
    assert!((5.0..20.0).contains(&linear), "{linear}");
    assert!(stdout.lines().last().expect("there is output").starts_with("final: steps=3 images=48 "), "{stdout}");
    assert_eq!(
        (config(&run)["data"]["path"].clone(), config(&run)["data"]["flip"].clone()),
        (Value::Null, true.into())
    );
}

#[test]
fn digits_are_mirrored_only_when_asked_for() {
    let (data, place) = (digits(), Place::new());
    let run = |name: &str, settings: &[&str]| {
        let mut command = program();
        command
            .args(["train", "vit", "--steps", "1"])
            .arg("--data")
            .arg(data.path())
            .arg("--out")
            .arg(place.path(name));
        for setting in MICRO.iter().filter(|setting| !setting.starts_with("data.flip")).chain(settings) {
            command.args(["--set", setting]);
        }
        succeed(command);
        config(&place.path(name))["data"]["flip"].clone()
    };
    assert_eq!([run("default", &[]), run("asked", &["data.flip=true"])], [false, true]);
}

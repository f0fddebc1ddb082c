//! What is trained: small runs with checkpoints every few steps, on data that is made here.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::random::Random;
use crate::Result;
use crate::files::at;

/// Optimizer steps of a run. So many take a second or two, most of it for the disk.
pub(super) const STEPS: usize = 120;

/// Steps between two checkpoints.
pub(super) const CHECKPOINT_EVERY: usize = 3;

/// What both runs share. The rate is high, so that the best checkpoint is not always the newest.
const SHARED: [&str; 6] = [
    "train.valid_every=6",
    "train.valid_batches=2",
    "train.log_every=1",
    "train.keep_last=2",
    "optim.lr=0.02",
    "optim.min_lr=0.02",
];

/// A language model with default vectors and excitation, of a tokenizer, which the run keeps a copy of.
const LANGUAGE_MODEL: [&str; 14] = [
    "model.d_model=32",
    "model.num_layers=2",
    "model.num_heads=4",
    "model.num_kv_heads=2",
    "model.d_hidden=48",
    "model.max_seq_len=32",
    "moe.num_experts=4",
    "moe.d_hidden=24",
    "moe.router=default",
    "moe.top_k=1",
    "optim.excitation=positive-sum",
    "train.seq_len=32",
    "train.batch_size=4",
    "train.sample_tokens=8",
];

/// A vision model whose images are changed at random, drawn anew at every step.
const VISION_MODEL: [&str; 9] = [
    "model.patch_size=4",
    "model.d_model=16",
    "model.num_layers=2",
    "model.num_heads=2",
    "model.d_hidden=32",
    "moe.num_experts=4",
    "moe.d_hidden=16",
    "train.batch_size=16",
    "data.crop_padding=1",
];

/// Its router: one whose noise is drawn anew at every step; or, as several ranks cannot share that, one that remembers a bias.
const ROUTERS: [&str; 2] = ["moe.router=noisy-top-k", "moe.router=sigmoid"];

/// One kind of run.
pub(super) struct Scenario {
    pub(super) name: &'static str,
    /// What follows `train` when the run begins.
    begin: Vec<OsString>,
}

/// The kinds of runs there are, to be started with `extra` arguments. Writes their data into `dir`.
pub(super) fn all(dir: &Path, extra: &[OsString]) -> Result<[Scenario; 2]> {
    let (text, tokenizer, images) = (dir.join("text.txt"), dir.join("tokenizer.json"), dir.join("images"));
    at(dir, fs::create_dir_all(&images))?;
    at(&text, fs::write(&text, sentences()))?;
    at(&tokenizer, fs::write(&tokenizer, letters()))?;
    for (name, bytes) in quarters() {
        at(&images, fs::write(images.join(name), bytes))?;
    }
    let language = ["lm".into(), "--data".into(), text.into(), "--tokenizer".into(), tokenizer.into()];
    let several_ranks = extra.iter().any(|word| word == "--devices" || word == "--launch");
    let router = ROUTERS[usize::from(several_ranks)];
    let vision = ["vit".into(), "--data".into(), images.into()];
    Ok([
        Scenario { name: "lm", begin: arguments(language, &LANGUAGE_MODEL) },
        Scenario { name: "vit", begin: arguments(vision, &[&VISION_MODEL[..], &[router]].concat()) },
    ])
}

fn arguments(data: impl IntoIterator<Item = OsString>, settings: &[&str]) -> Vec<OsString> {
    let every = format!("train.checkpoint_every={CHECKPOINT_EVERY}");
    let mut arguments: Vec<OsString> = data.into_iter().collect();
    arguments.extend(["--steps".into(), STEPS.to_string().into()]);
    for setting in settings.iter().chain(&SHARED).copied().chain([every.as_str()]) {
        arguments.extend(["--set".into(), setting.into()]);
    }
    arguments
}

impl Scenario {
    /// The call that begins the run in `dir` or, if it has begun, goes on with it.
    pub(super) fn command(&self, program: &Path, dir: &Path, extra: &[OsString]) -> Command {
        let mut command = Command::new(program);
        command.arg("train").stdin(Stdio::null());
        if dir.join("config.json").is_file() {
            command.arg("--resume").arg(dir);
        } else {
            command.args(&self.begin).arg("--out").arg(dir);
        }
        command.args(extra);
        command
    }

    /// The call that begins the run, for people.
    pub(super) fn line(&self) -> String {
        let name = |word: &OsString| match PathBuf::from(word) {
            path if path.is_absolute() => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            word => word.display().to_string(),
        };
        format!("train {}", self.begin.iter().map(name).collect::<Vec<_>>().join(" "))
    }
}

/// English-like text, always the same.
fn sentences() -> String {
    const WORDS: [&str; 8] = ["the router", "an expert", "a token", "chooses", "serves", "learns", "and", "again."];
    let mut random = Random::new(1);
    let mut text = String::new();
    while text.len() < 12_000 {
        text.push_str(WORDS[random.below(WORDS.len() as u64) as usize]);
        text.push(if random.below(8) == 0 { '\n' } else { ' ' });
    }
    text
}

/// A tokenizer of which every letter is a token.
fn letters() -> String {
    let vocab: serde_json::Map<_, _> =
        ('a'..='z').chain(['\n', ' ', '.']).zip(0..).map(|(letter, id)| (letter.into(), id.into())).collect();
    let model = serde_json::json!({"type": "BPE", "vocab": vocab, "merges": []});
    serde_json::json!({"version": "1.0", "added_tokens": [], "model": model}).to_string()
}

/// IDX files with images of 8 x 8 whose bright quarter is their class, 200 to train on and 40 held out.
fn quarters() -> Vec<(String, Vec<u8>)> {
    let header = |magic: u8, sizes: &[u32]| {
        let sizes = sizes.iter().flat_map(|size| size.to_be_bytes());
        [0, 0, 8, magic].into_iter().chain(sizes).collect::<Vec<u8>>()
    };
    let mut random = Random::new(2);
    let mut files = Vec::new();
    for (part, count) in [("train", 200u32), ("t10k", 40)] {
        let (mut images, mut labels) = (header(3, &[count, 8, 8]), header(1, &[count]));
        for image in 0..count {
            labels.push((image % 4) as u8);
            images.extend((0..64).map(|at| {
                let bright = at / 32 * 2 + at % 8 / 4 == image % 4;
                let noise = random.below(100) as u8;
                if bright { noise + 120 } else { noise }
            }));
        }
        files.push((format!("{part}-images-idx3-ubyte"), images));
        files.push((format!("{part}-labels-idx1-ubyte"), labels));
    }
    files
}

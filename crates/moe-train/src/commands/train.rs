//! `moe-train train`: a run from its settings to its report.

use std::path::{Path, PathBuf};

use moe_models::generate::SamplingConfig;

use super::{TOKENIZER_FILE, generate::Writer, hugging_face, keep_copy, load_model, nodes, run_vocab, say, vit};
use crate::{
    backend::{self, Device, DeviceChoice, Plain, Training},
    cli::{ModelKind, TrainArgs},
    config::TrainConfig,
    data::{Scale, Split, TextData, Vocab},
    error::Error,
    optim::{Freeze, parameter_paths},
    overrides::Overrides,
    parallel::NodeSeat,
    progress,
    report::write_report,
    run::{Context, Run, RunConfig, Settings, Subject, Which, read_config, read_context},
    trainer::{self, InitialWeights, Summary, train_on},
};

/// Where runs go that are given no directory.
const RUNS: &str = "runs";

/// Temperature of the sample at the end of a run.
const SAMPLE_TEMPERATURE: f64 = 0.8;

pub(super) fn run(args: &TrainArgs) -> Result<(), Error> {
    if args.num_ranks() == 1 {
        share_ops_from_here();
    }
    nodes::end_with_parent(&args.ranks);
    let seat = nodes::seat(&args.ranks)?;
    args.check_devices()?;
    let follows = seat.as_ref().filter(|seat| seat.rank > 0);
    let ended = match (kind(args)?, follows, &args.resume) {
        (ModelKind::Vit, ..) => vit::train(args, seat.as_ref()),
        (ModelKind::Lm, Some(seat), _) => follow(args, seat),
        (ModelKind::Lm, None, Some(dir)) => Job::resume(dir, args)?.run(args, seat.as_ref()),
        (ModelKind::Lm, None, None) => Job::new(args)?.run(args, seat.as_ref()),
    };
    nodes::leave_word_to_rank_0(&args.ranks, ended)
}

/// Makes this thread, which is to train, one of those that share an op: see [`moe_kernels::with_threads_awake`]. Not beside ranks, which wait for each other
/// outside of ops.
fn share_ops_from_here() {
    // Where somebody has started them already, training is slower and no less right.
    let _ = rayon::ThreadPoolBuilder::new().use_current_thread().build_global();
}

/// The part of a process that is not rank 0.
fn follow(args: &TrainArgs, seat: &NodeSeat) -> Result<(), Error> {
    let (config, vocab, checkpoints) = match nodes::checkpoints(args)? {
        Some((checkpoints, config)) => {
            let dir = args.resume.as_deref().expect("it is resumed");
            let (config, _) = resumed::<TrainConfig>(config, dir, args)?;
            let vocab = run_vocab(dir, &config)?;
            (config, vocab, Some(checkpoints))
        }
        None => {
            let (config, vocab) = settings(args)?;
            (config, vocab, None)
        }
    };
    let device = backend::open(args.device_choices()[0], config.train.dtype)?;
    let text = Text::load(&config, vocab)?;
    nodes::announce(seat)?;
    Ok(trainer::follow::<Training>(&config, &text.data, checkpoints.as_ref(), &device, seat)?)
}

/// What to train: what the command line says, or else the run that it goes on with.
fn kind(args: &TrainArgs) -> Result<ModelKind, Error> {
    match (args.model, &args.resume) {
        (Some(kind), _) => Ok(kind),
        (None, None) => Ok(ModelKind::default()),
        (None, Some(dir)) => Ok(match read_config(dir)? {
            RunConfig::Lm(_) => ModelKind::Lm,
            RunConfig::Vit(_) => ModelKind::Vit,
        }),
    }
}

/// A run with everything it needs.
struct Job {
    config: TrainConfig,
    /// Of every rank; most things need only the first.
    devices: Vec<Device>,
    text: Text,
    run: Run,
}

impl Job {
    /// Checks settings, device and text before a directory is made.
    fn new(args: &TrainArgs) -> Result<Self, Error> {
        let (config, vocab) = settings(args)?;
        let devices = backend::open_all(args.device_choices(), config.train.dtype)?;
        check_start(&config, &devices[0])?;
        config.check_ranks(args.num_ranks())?;
        let text = Text::load(&config, vocab)?;
        let dir = args.out.clone().unwrap_or_else(|| free_directory(&args.preset, config.train.seed));
        let run = Run::create(&dir, &config)?;
        run.write_context(&text.context)?;
        keep_companions(&config, run.dir())?;
        let job = Self { config, devices, text, run };
        job.announce(args.device_choices())?;
        Ok(job)
    }

    fn resume(dir: &Path, args: &TrainArgs) -> Result<Self, Error> {
        let (mut run, config) = Run::open(dir)?;
        let (config, longer) = resumed::<TrainConfig>(config, dir, args)?;
        let devices = backend::open_all(args.device_choices(), config.train.dtype)?;
        config.check_ranks(args.num_ranks())?;
        let text = Text::load(&config, run_vocab(dir, &config)?)?;
        match read_context::<Context>(dir)? {
            Some(context) => check_same(&context, &text.context)?,
            None => run.write_context(&text.context)?,
        }
        keep_companions(&config, dir)?;
        if longer {
            run.update_config(&config)?;
        }
        let job = Self { config, devices, text, run };
        job.announce(args.device_choices())?;
        Ok(job)
    }

    fn run(mut self, args: &TrainArgs, seat: Option<&NodeSeat>) -> Result<(), Error> {
        let summary = self.train(args, seat)?;
        let report = write_report(self.run.dir())?;
        self.sample()?;
        let dir = self.run.dir().display();
        if summary.interrupted {
            say(format!("stopped early; go on with: train --resume {dir}"))?;
        }
        say(format!("report: {}", report.display()))?;
        say(summary)
    }

    fn train(&mut self, args: &TrainArgs, seat: Option<&NodeSeat>) -> Result<Summary, Error> {
        let Self { config, text, run, devices } = self;
        let _launched = seat.map(|seat| nodes::start(&args.ranks, seat)).transpose()?;
        let party = nodes::party(&args.ranks, seat, devices);
        let mut progress = progress::for_terminal(Subject::Text);
        Ok(train_on::<Training>(config, &text.data, run, progress.as_mut(), party)?)
    }

    /// Says what is about to happen.
    fn announce(&self, devices: &[DeviceChoice]) -> Result<(), Error> {
        let (model, train) = (&self.config.model, &self.config.train);
        model.warnings().iter().for_each(|warning| eprintln!("warning: {warning}"));
        say(format!(
            "model   {} layers of width {}, {} parameters, {} active per token",
            model.num_layers,
            model.d_model,
            grouped(model.num_params()),
            grouped(model.num_active_params()),
        ))?;
        say(format!(
            "train   {} steps of {} tokens, {} on {} (device {})",
            grouped(train.steps as u64),
            grouped(train.tokens_per_step() as u64),
            train.dtype,
            backend::NAME,
            backend::names(devices),
        ))?;
        if let Some(dir) = &self.config.train.init_from {
            say(format!("weights from {}", dir.display()))?;
        }
        self.text.announce()?;
        say(format!("run     {}", self.run.dir().display()))
    }

    /// Prints a little text by the model as it is now.
    fn sample(&self) -> Result<(), Error> {
        let tokens = self.config.train.sample_tokens;
        if tokens == 0 {
            return Ok(());
        }
        let (model, _) = load_model(self.run.checkpoints(), &self.config, Which::Latest, &self.devices[0])?;
        let special = hugging_face::special_tokens(self.run.dir())?;
        let writer = Writer { model, vocab: self.text.data.vocab.clone(), special };
        let sampling = SamplingConfig::new().with_temperature(SAMPLE_TEMPERATURE).with_seed(self.config.train.seed);
        say(format!("sample at temperature {SAMPLE_TEMPERATURE}:"))?;
        writer.go_on("", tokens, sampling)
    }
}

/// The text of a run in tokens, with what gives its losses a scale.
struct Text {
    data: TextData,
    scale: Scale,
    context: Context,
}

impl Text {
    fn load(config: &TrainConfig, vocab: Vocab) -> Result<Self, Error> {
        vocab.check_model(config.model.vocab_size)?;
        let split = Split::load(&config.data)?;
        let scale = Scale::measure(&split.valid);
        let text_crc32 = Some(split.checksum());
        let data = TextData::encode(split, vocab)?;
        data.check_length(config.train.seq_len)?;
        let context = Context {
            data: data.description.clone(),
            bytes_per_token: data.valid.bytes_per_token(),
            references: scale.references(),
            text_crc32,
        };
        Ok(Self { data, scale, context })
    }

    fn announce(&self) -> Result<(), Error> {
        let (train, valid) = (self.data.train.len() as u64, self.data.valid.len() as u64);
        say(format!("text    {}", self.data.description))?;
        say(format!("        {} tokens to train on, {} held out", grouped(train), grouped(valid)))?;
        say(format!(
            "scale   held-out text: unigram entropy {:.3} bits/byte, gzip -9 {:.3} bits/byte",
            self.scale.unigram_bpb, self.scale.gzip_bpb,
        ))
    }
}

/// Finds out before the run has a directory whether its first weights are whole, the special tokens of its sample can be read, and
/// what is frozen is there.
fn check_start(config: &TrainConfig, device: &Device) -> Result<(), Error> {
    if let Some(dir) = &config.train.init_from {
        let initial = InitialWeights::open(config, dir)?;
        hugging_face::for_texts(dir, initial.token_ids().clone())?;
    }
    Ok(Freeze::new(&config.optim.freeze).check(&parameter_paths::<Plain>(&config.model, device))?)
}

/// The settings of a new run, free of contradictions, and its vocabulary. A tokenizer sets the model's vocabulary unless
/// that is set as well, or comes with the weights that the run starts from.
fn settings(args: &TrainArgs) -> Result<(TrainConfig, Vocab), Error> {
    let overrides = overrides(args)?;
    let mut config = TrainConfig::resolve(&args.preset, &overrides)?;
    let start = config.train.init_from.clone();
    if let Some(dir) = &start {
        config = hugging_face::settings(&TrainConfig::preset(&args.preset)?, &overrides, dir)?;
    }
    make_absolute(&mut config)?;
    let vocab = Vocab::load(config.data.tokenizer.as_deref())?;
    if start.is_none() && config.data.tokenizer.is_some() && !overrides.names("model.vocab_size") {
        config.model.vocab_size = vocab.size();
    }
    config.validate()?;
    Ok((config, vocab))
}

/// File, then `--set`, then the short options: the last one counts.
pub(super) fn overrides(args: &TrainArgs) -> Result<Overrides, Error> {
    let mut overrides = Overrides::default();
    if let Some(file) = &args.config {
        overrides.add_file(file)?;
    }
    args.set.iter().try_for_each(|text| overrides.add_assignment(text))?;
    let paths = [
        ("data.path", &args.data),
        ("data.valid_path", &args.valid),
        ("data.tokenizer", &args.tokenizer),
        ("train.init_from", &args.init_from),
    ];
    for (key, path) in paths {
        if let Some(path) = path {
            overrides.add(key, path.to_string_lossy().into_owned());
        }
    }
    if let Some(steps) = args.steps {
        overrides.add("train.steps", steps);
    }
    if let Some(seed) = args.seed {
        overrides.add("train.seed", seed);
    }
    if let Some(dtype) = args.dtype {
        overrides.add("train.dtype", dtype.to_string());
    }
    Ok(overrides)
}

/// Paths that mean the same when the run is resumed from another directory.
fn make_absolute(config: &mut TrainConfig) -> Result<(), Error> {
    let (data, train) = (&mut config.data, &mut config.train);
    absolute([&mut data.path, &mut data.valid_path, &mut data.tokenizer, &mut train.init_from])
}

/// Makes the paths that are there absolute.
pub(super) fn absolute<const N: usize>(paths: [&mut Option<PathBuf>; N]) -> Result<(), Error> {
    for path in paths.into_iter().flatten() {
        let context = format!("cannot use the path `{}`", path.display());
        *path = std::path::absolute(&*path).map_err(Error::io(context))?;
    }
    Ok(())
}

/// The first of `runs/PRESET-SEED-1`, `-2`, .. that does not exist.
pub(super) fn free_directory(preset: &str, seed: u64) -> PathBuf {
    let directory = |number: u32| Path::new(RUNS).join(format!("{preset}-{seed}-{number}"));
    (1..).map(directory).find(|dir| !dir.exists()).expect("there are fewer than 2^32 directories")
}

/// Copies into the run what it needs of other files to generate text and to be exported; what is there stays.
fn keep_companions(config: &TrainConfig, dir: &Path) -> Result<(), Error> {
    if let Some(tokenizer) = &config.data.tokenizer {
        keep_copy(tokenizer, &dir.join(TOKENIZER_FILE))?;
    }
    match &config.train.init_from {
        Some(start) => hugging_face::keep_companions(start, dir),
        None => Ok(()),
    }
}

/// The settings of a run that goes on, on any rank, free of contradictions; and whether it is now to be longer than it was planned.
pub(super) fn resumed<C: Settings>(config: RunConfig, dir: &Path, args: &TrainArgs) -> Result<(C, bool), Error> {
    let mut config = C::of(config, dir)?;
    let longer = raise_steps(config.steps_mut(), args.steps)?;
    config.check()?;
    Ok((config, longer))
}

/// Gives a resumed run more steps; returns whether it has more than before.
fn raise_steps(steps: &mut usize, asked: Option<usize>) -> Result<bool, Error> {
    let planned = *steps;
    let asked = asked.unwrap_or(planned);
    if asked < planned {
        return Err(Error::FewerSteps { asked, planned });
    }
    *steps = asked;
    Ok(asked > planned)
}

fn check_same(before: &Context, now: &Context) -> Result<(), Error> {
    let changed = before.text_crc32.is_some() && before.text_crc32 != now.text_crc32;
    if changed { Err(Error::ChangedData { description: before.data.clone() }) } else { Ok(()) }
}

/// 1234567 -> `1,234,567`.
pub(super) fn grouped(number: u64) -> String {
    progress::thousands(number as f64)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::Dtype;

    fn args(set: &[&str]) -> TrainArgs {
        TrainArgs {
            preset: "tiny".into(),
            set: set.iter().map(|text| text.to_string()).collect(),
            ..TrainArgs::default()
        }
    }

    #[test]
    fn short_options_count_more_than_set_and_set_more_than_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        fs::write(&file, "[train]\nsteps = 500\nseed = 5\nbatch_size = 5\n").unwrap();
        let args = TrainArgs {
            config: Some(file),
            steps: Some(700),
            dtype: Some(Dtype::Bf16),
            ..args(&["train.steps=600", "train.seed=6"])
        };
        let train = settings(&args).unwrap().0.train;
        assert_eq!((train.steps, train.seed, train.batch_size, train.dtype), (700, 6, 5, Dtype::Bf16));
    }

    #[test]
    fn paths_are_stored_absolute() {
        let args = TrainArgs { data: Some("some/text.txt".into()), ..args(&[]) };
        let path = settings(&args).unwrap().0.data.path.unwrap();
        assert!(path.is_absolute() && path.ends_with("some/text.txt"));
    }

    #[test]
    fn a_contradiction_is_found_without_reading_any_text() {
        let args = TrainArgs { data: Some("does/not/exist".into()), ..args(&["moe.top_k=99"]) };
        assert!(matches!(settings(&args), Err(Error::Config(_))));
    }

    #[test]
    fn a_tokenizer_sets_the_vocabulary_unless_the_user_did() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tokenizer.json");
        fs::write(&file, r#"{"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0, "b": 6}, "merges": []}}"#).unwrap();
        let vocab_size = |set: &[&str]| {
            let args = TrainArgs { tokenizer: Some(file.clone()), ..args(set) };
            settings(&args).unwrap().0.model.vocab_size
        };
        assert_eq!(vocab_size(&[]), 7);
        assert_eq!(vocab_size(&["model.vocab_size=64"]), 64);
    }

    #[test]
    fn a_run_without_a_directory_gets_one_of_its_own() {
        assert_eq!(free_directory("no-such-preset", 3), Path::new("runs/no-such-preset-3-1"));
    }

    #[test]
    fn a_resumed_run_can_only_be_made_longer() {
        let mut steps = 100;
        assert!(!raise_steps(&mut steps, None).unwrap());
        assert!(raise_steps(&mut steps, Some(101)).unwrap());
        assert_eq!(steps, 101);
        assert!(matches!(raise_steps(&mut steps, Some(100)), Err(Error::FewerSteps { .. })));
    }

    #[test]
    fn a_changed_text_is_refused() {
        let before = Context { text_crc32: Some(1), ..Context::default() };
        let other = Context { text_crc32: Some(2), ..Context::default() };
        assert!(check_same(&before, &before).is_ok());
        assert!(check_same(&Context::default(), &other).is_ok());
        assert!(matches!(check_same(&before, &other), Err(Error::ChangedData { .. })));
    }
}

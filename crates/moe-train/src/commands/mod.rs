//! What the commands of the program do.

mod eval;
mod export;
mod generate;
mod hugging_face;
mod nodes;
mod report;
mod train;
mod vit;

use std::{
    fmt::Display,
    fs,
    io::{Write, stdout},
    path::{Path, PathBuf},
};

use default_moe::Evaluation;
use moe_models::lm::Lm;

use crate::{
    backend::{Device, Plain},
    cli::{CheckpointChoice, Cli, Command, EvaluationChoice},
    config::TrainConfig,
    data::Vocab,
    error::Error,
    run::{Checkpoints, RunError, TrainState, Which, write_atomic},
};

/// Name of the tokenizer's copy in a run directory.
const TOKENIZER_FILE: &str = "tokenizer.json";

/// Does what the command line asks for.
///
/// # Errors
///
/// [`Error`], whose message is one line that says what to do.
pub fn run(cli: Cli) -> Result<(), Error> {
    match cli.command {
        Command::Train(args) => train::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Report(args) => report::run(&args),
    }
}

impl From<CheckpointChoice> for Which {
    fn from(choice: CheckpointChoice) -> Self {
        match choice {
            CheckpointChoice::Latest => Self::Latest,
            CheckpointChoice::Best => Self::Best,
        }
    }
}

impl From<EvaluationChoice> for Evaluation {
    fn from(choice: EvaluationChoice) -> Self {
        match choice {
            EvaluationChoice::Frozen => Self::Frozen,
            EvaluationChoice::TopK => Self::TopK,
        }
    }
}

/// A trained model, without gradients.
fn load_model(
    checkpoints: &Checkpoints,
    config: &TrainConfig,
    which: Which,
    device: &Device,
) -> Result<(Lm<Plain>, TrainState), Error> {
    let model = config.model.init::<Plain>(device).with_dtype(config.train.dtype.into());
    Ok(checkpoints.load_model(which, model, device)?)
}

/// The vocabulary of a run: of the run's own copy of the tokenizer, so that it works on another machine too.
fn run_vocab(dir: &Path, config: &TrainConfig) -> Result<Vocab, Error> {
    let copy = dir.join(TOKENIZER_FILE);
    let path: Option<PathBuf> = match &config.data.tokenizer {
        Some(_) if copy.is_file() => Some(copy),
        original => original.clone(),
    };
    Ok(Vocab::load(path.as_deref())?)
}

/// Copies a file into a run directory, as a whole, unless it is there.
fn keep_copy(source: &Path, copy: &Path) -> Result<(), Error> {
    if copy.is_file() {
        return Ok(());
    }
    let bytes = fs::read(source).map_err(Error::io(format!("cannot read `{}`", source.display())))?;
    Ok(write_atomic(copy, &bytes).map_err(RunError::from)?)
}

/// Prints a line on stdout.
fn say(line: impl Display) -> Result<(), Error> {
    writeln!(stdout(), "{line}").map_err(Error::io("cannot print"))
}

/// Prints a piece of a line on stdout at once.
fn say_part(text: &str) -> Result<(), Error> {
    let mut out = stdout();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Error::io("cannot print"))
}

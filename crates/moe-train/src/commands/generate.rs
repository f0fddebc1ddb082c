//! `moe-train generate`: continues a prompt, showing the text as it comes.

use std::path::Path;

use moe_models::{
    generate::{SamplingConfig, generate},
    lm::Lm,
};

use super::{hugging_face, load_model, run_vocab, say, say_part};
use crate::{
    backend::{self, Device, DeviceChoice, Plain},
    cli::{CheckpointChoice, GenerateArgs, Weights},
    config::{Dtype, TrainConfig},
    data::Vocab,
    error::Error,
    run::{Settings, inspect},
};

/// What a model goes on from when there is no prompt: something has to come before the first token.
const NO_PROMPT: &str = "\n";

pub(super) fn run(args: &GenerateArgs) -> Result<(), Error> {
    let (model, vocab, device) = match (&args.run, &args.checkpoint) {
        (Some(run), Weights::OfRun(choice)) => trained(run, *choice, args.device)?,
        (None, Weights::HuggingFace(dir)) => {
            let device = backend::open(args.device, Dtype::F32)?;
            let (model, vocab) = hugging_face::load(dir, &device)?;
            (model, vocab, device)
        }
        (Some(_), Weights::HuggingFace(dir)) => return Err(Error::TwoModels { dir: dir.clone() }),
        (None, Weights::OfRun(_)) => return Err(Error::NoModel),
    };
    let sampling = SamplingConfig { temperature: args.temperature, top_p: args.top_p, seed: args.seed };
    say_part(&args.prompt)?;
    continue_prompt(&model, &vocab, &args.prompt, args.tokens, &sampling, &device)
}

/// The model of a run, with its vocabulary.
fn trained(run: &Path, choice: CheckpointChoice, device: DeviceChoice) -> Result<(Lm<Plain>, Vocab, Device), Error> {
    let (checkpoints, config) = inspect(run)?;
    let config = TrainConfig::of(config, run)?;
    let device = backend::open(device, config.train.dtype)?;
    let vocab = run_vocab(run, &config)?;
    vocab.check_model(config.model.vocab_size)?;
    let (model, _) = load_model(&checkpoints, &config, choice.into(), &device)?;
    Ok((model, vocab, device))
}

/// Prints `tokens` tokens after the prompt, each as soon as it is known, and a line end.
pub(super) fn continue_prompt(
    model: &Lm<Plain>,
    vocab: &Vocab,
    prompt: &str,
    tokens: usize,
    sampling: &SamplingConfig,
    device: &Device,
) -> Result<(), Error> {
    let prompt = vocab.encode_prompt(if prompt.is_empty() { NO_PROMPT } else { prompt })?;
    let mut stream = vocab.stream();
    let mut printed = Ok(());
    generate(model, &prompt, tokens, sampling, device, |token| {
        let text = stream.push(token);
        if printed.is_ok() {
            printed = say_part(&text);
        }
    })?;
    printed?;
    say(stream.finish())
}

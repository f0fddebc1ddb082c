//! `moe-train generate`: continues a prompt, showing the text as it comes.

use moe_models::{
    generate::{SamplingConfig, generate},
    lm::Lm,
};

use super::{load_model, run_vocab, say, say_part};
use crate::{
    backend::{self, Device, Plain},
    cli::GenerateArgs,
    data::Vocab,
    error::Error,
    run::inspect,
};

/// What a model goes on from when there is no prompt: something has to come before the first token.
const NO_PROMPT: &str = "\n";

pub(super) fn run(args: &GenerateArgs) -> Result<(), Error> {
    let (checkpoints, config) = inspect(&args.run)?;
    let device = backend::open(args.device, config.train.dtype)?;
    let vocab = run_vocab(&args.run, &config)?;
    vocab.check_model(config.model.vocab_size)?;
    let (model, _) = load_model(&checkpoints, &config, args.checkpoint.into(), &device)?;
    let sampling = SamplingConfig { temperature: args.temperature, top_p: args.top_p, seed: args.seed };
    say_part(&args.prompt)?;
    continue_prompt(&model, &vocab, &args.prompt, args.tokens, &sampling, &device)
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

//! `moe-train generate`: continues a prompt, showing the text as it comes.

use std::path::Path;

use burn::module::Module;
use moe_models::{
    checkpoint::TokenIds,
    generate::{SamplingConfig, generate},
    lm::Lm,
};

use super::{hugging_face, load_model, run_vocab, say, say_part};
use crate::{
    backend::{self, DeviceChoice, Plain},
    cli::{CheckpointChoice, GenerateArgs, Weights},
    config::{Dtype, TrainConfig},
    data::{DataError, Vocab},
    error::Error,
    run::{Settings, inspect},
};

/// What a model goes on from when there is no prompt and no token that begins a text: something has to come before the first.
const NO_PROMPT: &str = "\n";

pub(super) fn run(args: &GenerateArgs) -> Result<(), Error> {
    let writer = match (&args.run, &args.checkpoint) {
        (Some(run), Weights::OfRun(choice)) => Writer::trained(run, *choice, args.device)?,
        (None, Weights::HuggingFace(dir)) => hugging_face::load(dir, &backend::open(args.device, Dtype::F32)?)?,
        (Some(_), Weights::HuggingFace(dir)) => return Err(Error::TwoModels { dir: dir.clone() }),
        (None, Weights::OfRun(_)) => return Err(Error::NoModel),
    };
    let sampling = SamplingConfig::new().with_temperature(args.temperature).with_top_p(args.top_p).with_seed(args.seed);
    say_part(&args.prompt)?;
    writer.go_on(&args.prompt, args.tokens, sampling)
}

/// What goes on with a text.
pub(super) struct Writer {
    pub(super) model: Lm<Plain>,
    pub(super) vocab: Vocab,
    /// Tokens that begin and end a text. `None` when the model was trained on text without them, as a run from new weights is.
    pub(super) special: Option<TokenIds>,
}

impl Writer {
    /// The model of a run.
    fn trained(run: &Path, choice: CheckpointChoice, device: DeviceChoice) -> Result<Self, Error> {
        let (checkpoints, config) = inspect(run)?;
        let config = TrainConfig::of(config, run)?;
        let device = backend::open(device, config.train.dtype)?;
        let vocab = run_vocab(run, &config)?;
        vocab.check_model(config.model.vocab_size)?;
        let special = hugging_face::special_tokens(run)?;
        let (model, _) = load_model(&checkpoints, &config, choice.into(), &device)?;
        Ok(Self { model, vocab, special })
    }

    /// Prints at most `tokens` tokens after the prompt, each as soon as it is known, and a line end; nothing for the token that
    /// ends the text.
    pub(super) fn go_on(&self, prompt: &str, tokens: usize, sampling: SamplingConfig) -> Result<(), Error> {
        let special = self.special.as_ref();
        let ids = prompt_ids(&self.vocab, special, prompt)?;
        let mut stream = self.vocab.stream(if prompt.is_empty() { &[] } else { &ids });
        let sampling = sampling.with_stop(special.map_or_else(Vec::new, |special| special.eos.clone()));
        let device = self.model.devices().swap_remove(0);
        let mut printed = Ok(());
        generate(&self.model, &ids, tokens, &sampling, &device, |token| {
            let text = stream.push(token);
            if printed.is_ok() {
                printed = say_part(&text);
            }
        })?;
        printed?;
        say(stream.finish())
    }
}

/// The tokens of a prompt; for an empty one, what comes before a text.
fn prompt_ids(vocab: &Vocab, special: Option<&TokenIds>, prompt: &str) -> Result<Vec<u32>, DataError> {
    let ids = vocab.encode_prompt(prompt, special.is_some())?;
    match special.and_then(|special| special.bos) {
        _ if !ids.is_empty() => Ok(ids),
        Some(bos) => Ok(vec![bos]),
        None => vocab.encode_prompt(NO_PROMPT, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::sentence_piece_tokenizer;

    fn special(bos: Option<u32>) -> TokenIds {
        TokenIds { bos, eos: vec![2], pad: None }
    }

    #[test]
    fn special_tokens_are_for_models_that_have_seen_them() {
        let vocab = sentence_piece_tokenizer(&["▁It", "▁was"]);
        let ids = |special: Option<&TokenIds>| prompt_ids(&vocab, special, "It was").unwrap();
        assert_eq!(ids(Some(&special(Some(1)))), [1, 3, 4]);
        assert_eq!(ids(None), [3, 4]);
    }

    #[test]
    fn an_empty_prompt_is_the_beginning_of_a_text_or_else_a_line_end() {
        let ids = |vocab: &Vocab, special: Option<&TokenIds>| prompt_ids(vocab, special, "").unwrap();
        assert_eq!(ids(&sentence_piece_tokenizer(&[]), Some(&special(None))), [1], "the tokenizer's");
        assert_eq!(ids(&Vocab::Bytes, Some(&special(Some(7)))), [7], "the checkpoint's");
        assert_eq!(ids(&Vocab::Bytes, Some(&special(None))), [10]);
        assert_eq!(ids(&Vocab::Bytes, None), [10]);
    }
}

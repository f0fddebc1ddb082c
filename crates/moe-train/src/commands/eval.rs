//! `moe-train eval`: loss and routing of a trained model on a text.

use default_moe::optimizer::HasDefaultVectors;

use super::{load_model, run_vocab, say, vit};
use crate::{
    backend,
    cli::EvalArgs,
    config::TrainConfig,
    data::{Split, Tokens, Vocab, check_length, load_whole},
    error::Error,
    evaluate::{EvalResult, evaluate},
    run::{Checkpoints, LayerRecord, RunConfig, TrainState, inspect},
};

pub(super) fn run(args: &EvalArgs) -> Result<(), Error> {
    match inspect(&args.run)? {
        (checkpoints, RunConfig::Lm(config)) => of_text(args, &checkpoints, &config),
        (checkpoints, RunConfig::Vit(config)) => vit::eval(args, &checkpoints, &config),
    }
}

fn of_text(args: &EvalArgs, checkpoints: &Checkpoints, config: &TrainConfig) -> Result<(), Error> {
    let device = backend::open(args.device, config.train.dtype)?;
    let (mut model, state) = load_model(checkpoints, config, args.checkpoint.into(), &device)?;
    if let Some(choice) = args.default_vectors {
        model.set_evaluation(choice.into());
    }
    let (tokens, description) = text(args, config, &run_vocab(&args.run, config)?)?;
    check_length("evaluated", &tokens, config.train.seq_len)?;
    say(format!("text   {description}"))?;
    let batches = args.batches.map(|batches| batches as usize);
    let result = evaluate(&model, &tokens, &config.train, batches, &device);
    print(&result, &state)
}

/// The text to measure on, in tokens, and what it is.
fn text(args: &EvalArgs, config: &TrainConfig, vocab: &Vocab) -> Result<(Tokens, String), Error> {
    let (text, description) = match &args.data {
        Some(path) => load_whole(path)?,
        None => {
            let split = Split::load(&config.data)?;
            (split.valid, format!("held out of {}", split.description))
        }
    };
    Ok((vocab.encode(text)?, description))
}

fn print(result: &EvalResult, state: &TrainState) -> Result<(), Error> {
    say_layers(&result.layers)?;
    say(format!("eval: step={} tokens={} loss={:.4} bpb={:.4}", state.step, result.tokens, result.loss, result.bpb))
}

/// Prints a line on the routing of every layer.
pub(super) fn say_layers(layers: &[LayerRecord]) -> Result<(), Error> {
    for layer in layers {
        let stats = &layer.stats;
        say(format!(
            "layer {:>2}  load max/mean {:.2}  entropy {:.3}  dead {}  router entropy {:.3} nats  gate mass {:.3}",
            layer.layer,
            stats.load_ratio,
            stats.load_entropy,
            stats.dead_experts,
            stats.router_entropy,
            stats.gate_mass,
        ))?;
    }
    Ok(())
}

//! A whole training step, in tokens per second: ours is the step of `moe-train`, PyTorch's is Hugging Face's Mixtral with
//! AdamW. Both train on one batch of random bytes, step by step in turns.

mod preset;
mod record;
mod sides;

use clap::ValueEnum;
use moe_train::backend;
use moe_train::config::Dtype;

pub(crate) use preset::Preset;

use crate::args::StepArgs;
use crate::clock::Clock;
use crate::error::Result;
use crate::machine::Machine;
use crate::session::{self, ON_GPU, Session};
use record::{ModelRecord, Setting, StepRecord};
use sides::{Ours, Steps, TorchSide};

/// `moe-bench step`.
///
/// # Errors
///
/// A device, a Python or a file that cannot be used, models that differ, and a loss that does not fall.
pub(crate) fn run(args: &StepArgs) -> Result<()> {
    let session = Session::open(&args.common, Dtype::F32)?;
    let machine = Machine::here(&session.device_name);
    println!("{}", machine.line());
    let setting = setting(args, &session);
    println!("{}\n", setting.line());
    let presets = if args.config.is_empty() { Preset::value_variants() } else { &args.config };
    let mut models = Vec::new();
    for &preset in presets {
        let record = measure(preset, &setting, args, &session)?;
        println!("{}", record.table(&setting));
        models.push(record);
    }
    session::write_json(&args.common, &StepRecord { benchmark: "step", machine, setting, models })
}

fn setting(args: &StepArgs, session: &Session) -> Setting {
    let threads = args.common.threads;
    Setting {
        backend: backend::NAME,
        device: session.device_name.clone(),
        threads,
        rounds: args.common.rounds(),
        clock: Clock::choose(threads, ON_GPU),
    }
}

fn measure(preset: Preset, setting: &Setting, args: &StepArgs, session: &Session) -> Result<ModelRecord> {
    let sizes = preset.sizes();
    let mut ours = Ours::new(&sizes, &session.device);
    let start = |python: &std::path::PathBuf| TorchSide::start(python, &sizes, setting.threads);
    let mut torch = args.common.torch.as_ref().map(start).transpose()?;
    if let Some(torch) = &torch {
        torch.check_parameters(ours.parameters())?;
    }
    let (mut our_steps, mut torch_steps) = (Steps::default(), Steps::default());
    for round in 0..args.common.warm_up() + setting.rounds {
        let counts = round >= args.common.warm_up();
        session::pause();
        our_steps.add(ours.step()?, counts);
        if let Some(torch) = &mut torch {
            session::pause();
            torch_steps.add(torch.step()?, counts);
        }
    }
    let our_steps = our_steps.check("our")?;
    let torch = match torch {
        Some(torch) => Some((torch.facts, torch_steps.check("PyTorch's")?)),
        None => None,
    };
    Ok(ModelRecord::new(preset, ours.parameters(), setting, &our_steps, torch))
}

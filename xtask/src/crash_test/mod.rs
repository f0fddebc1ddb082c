//! `cargo xtask crash-test`: whether a run survives SIGKILL at any moment.
//!
//! A small run is trained undisturbed. Then others like it are started, killed, resumed and killed again until they
//! have finished: at random moments of start-up and training, while a checkpoint is being written or removed, just after
//! one, and at the end. Nothing may be lost at any kill, and in the end everything must be as in the undisturbed run:
//! each record of the metrics, the values of every checkpoint that is kept, the files in the directory. Numbers are
//! compared bit for bit, so the backend must be deterministic; flex is.
//!
//! Of ranks that train together, any can be hit, and some are frozen: the others must then end in time, with one line, and leave nothing behind.
//!
//! A moment is an event that is waited for and a random time, both drawn from the seed. The same seed draws the same
//! moments, and hits the program in other places: when an event is seen is up to the machine.

mod burn_record;
mod campaign;
mod moment;
mod outcome;
mod random;
mod scenario;
mod sight;
mod tally;
mod victim;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::backend::Backend;
use crate::program::{self, Request};
use crate::{Result, cargo, files};

use campaign::Campaign;
use random::Random;

/// Options of `cargo xtask crash-test`.
#[derive(Args, Debug)]
pub(crate) struct CrashTestArgs {
    /// How often to kill, over all runs
    #[arg(long, value_name = "N", default_value_t = 300)]
    kills: usize,
    /// Hit ranks that were launched too, and freeze some (SIGSTOP) instead of killing them; needs `-- --launch N --rank-timeout SECONDS`
    #[arg(long)]
    any_rank: bool,
    /// Seed of the moments
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Where the runs go, of which only those stay in which something is wrong [default: target/crash-test]
    #[arg(long, value_name = "DIR")]
    runs: Option<PathBuf>,
    /// Where to write the record: every kill with what it hit
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The moe-train to test, instead of building one
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Arguments for every start of `moe-train train`, after `--`; those that resume are starts too
    #[arg(last = true)]
    args: Vec<OsString>,
}

/// Carries out a campaign and says what it found; a run that failed is an error.
pub(crate) fn run(args: &CrashTestArgs) -> Result<()> {
    if !cfg!(unix) {
        return Err("a program is killed by a signal here, which only Unix has".into());
    }
    if args.any_rank && !(cfg!(target_os = "linux") && args.args.iter().any(|word| word == "--launch")) {
        return Err(
            "--any-rank looks for launched ranks in /proc: use it on Linux, with `-- --launch 2 --rank-timeout 2`"
                .into(),
        );
    }
    let dir = empty_folder(args.runs.as_deref())?;
    let scenarios = scenario::all(&dir.join("data"), &args.args)?;
    let campaign =
        Campaign { program: binary(args)?, dir, extra: args.args.clone(), kills: args.kills, any_rank: args.any_rank };
    let tally = campaign.carry_out(scenarios, &mut Random::new(args.seed))?;
    if let Some(path) = &args.json {
        let extra: Vec<String> = args.args.iter().map(|word| word.display().to_string()).collect();
        tally.write(path, args.seed, &extra)?;
    }
    println!("{}", tally.summary());
    match tally.faults() {
        0 => Ok(()),
        _ => Err(format!("something was lost; the runs are kept in {}", campaign.dir.display())),
    }
}

/// The folder that was asked for, which must be new or empty, or our own, emptied.
fn empty_folder(asked: Option<&Path>) -> Result<PathBuf> {
    let own = cargo::root().join("target/crash-test");
    let dir = asked.unwrap_or(&own);
    if asked.is_none() && own.exists() {
        files::at(&own, fs::remove_dir_all(&own))?;
    }
    files::at(dir, fs::create_dir_all(dir))?;
    match files::at(dir, fs::read_dir(dir))?.next() {
        Some(_) => Err(format!("{} is not empty: choose another --runs", dir.display())),
        None => files::at(dir, dir.canonicalize()),
    }
}

fn binary(args: &CrashTestArgs) -> Result<PathBuf> {
    let request = Request { backend: Backend::Flex, release: false, help: false, rest: Vec::new() };
    match &args.program {
        Some(path) => files::at(path, path.canonicalize()),
        None => program::build("moe-train", &request),
    }
}

//! `moe-bench`, run as `cargo xtask bench`: how fast a layer and a training step are, against the bare matrix products
//! of the same shapes and, on request, against PyTorch in the same run.
//!
//! Two rules. What is timed is verified first, and a wrong result ends the program before it prints a number. What is
//! compared takes turns, repetition by repetition, so that all sides meet the same disturbances of a machine.

mod args;
mod clock;
mod data;
mod default_moe;
mod error;
mod excitation;
mod grouped;
mod layer;
mod machine;
mod record;
mod session;
mod step;
mod table;
mod torch;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};

/// Counts the bytes that are alive, for what autodiff keeps between forward and backward.
#[global_allocator]
static ALLOCATOR: moe_tests::CountingAllocator = moe_tests::CountingAllocator;

fn main() -> ExitCode {
    // As the program that trains does.
    moe_train::memory::keep_freed_pages();
    let result = match Cli::parse().command {
        Command::Layer(args) => layer::run(&args),
        Command::Grouped(args) => grouped::run(&args),
        Command::Step(args) => step::run(&args),
        Command::DefaultMoe(args) => default_moe::run(&args),
        Command::Excitation(args) => excitation::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

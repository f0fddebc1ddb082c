//! The program: parses the command line, runs one command, reports an error as one line on stderr.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use moe_train::{cli::Cli, commands, error::one_line, memory};

fn main() -> ExitCode {
    memory::keep_freed_pages();
    match commands::run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is_closed_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", one_line(&error.to_string()));
            ExitCode::FAILURE
        }
    }
}

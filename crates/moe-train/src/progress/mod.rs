//! What a person sees while a run trains.
//!
//! On a terminal that is burn's dashboard, elsewhere plain lines.

mod dashboard;
mod plain;
mod priority;

use std::io::{IsTerminal, stdin, stdout};

use crate::run::{StepRecord, Subject};

pub use dashboard::Dashboard;
pub(crate) use dashboard::leave_terminal;
pub use plain::Plain;

pub(crate) use plain::thousands;

/// Told about a run as it goes; shows it.
pub trait Progress {
    /// Training begins or goes on, with `done` of `total` steps taken in earlier sessions.
    fn start(&mut self, done: usize, total: usize);

    /// A step was logged; a validation is in the record of its step.
    fn step(&mut self, record: &StepRecord, total: usize);

    /// Training has ended or was interrupted. Afterwards the terminal is as it was before.
    fn finish(&mut self);

    /// Whether the person asked to stop after the current step.
    fn interrupted(&self) -> bool;
}

/// burn's dashboard if a person sits at a terminal, plain lines on stdout otherwise.
pub fn for_terminal(subject: Subject) -> Box<dyn Progress> {
    // The dashboard draws on stdout and listens to keys, so it needs both.
    if stdout().is_terminal() && stdin().is_terminal() {
        Box::new(Dashboard::new(subject))
    } else {
        Box::new(Plain::new(stdout(), subject))
    }
}

//! `moe-train report`: writes the report of a run again.

use super::say;
use crate::{cli::ReportArgs, error::Error, report::write_report};

pub(super) fn run(args: &ReportArgs) -> Result<(), Error> {
    let path = write_report(&args.run)?;
    say(format!("report: {}", path.display()))
}

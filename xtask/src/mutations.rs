//! `cargo xtask mutations`: every reader of files against more changed files than CI has time for, and the record of it.
//!
//! The tests are those of CI (`docs/bad-input.md`); they note what they read in a file, and this makes the record of it. A test that fails
//! ends the command with its message, which has the seed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde_json::{Value, json};

use crate::files::at;
use crate::{Result, cargo, machine};

const ROUNDS_VARIABLE: &str = "MOE_MUTATIONS";
const SEED_VARIABLE: &str = "MOE_MUTATION_SEED";
const NOTES_VARIABLE: &str = "MOE_MUTATION_NOTES";

/// Records behind their checksums, then files of every kind.
const TESTS: [&[&str]; 2] = [
    &["--package", "moe-train", "--package", "moe-tests", "--lib", "changed_bytes"],
    &["--package", "moe-train", "--package", "moe-tests", "--test", "mutated", "--test", "plan_mutated"],
];

/// Options of the command.
#[derive(Args)]
pub(crate) struct MutationsArgs {
    /// Changed files of each original
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    rounds: u64,
    /// The first seed; each changed file has the next one
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Tests at once [default: one for each core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Where to write the record
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs the tests and says what was read.
pub(crate) fn run(args: &MutationsArgs) -> Result<()> {
    let notes = cargo::root().join("target/mutations.jsonl");
    at(&notes, fs::create_dir_all(notes.with_file_name("")))?;
    at(&notes, fs::write(&notes, ""))?;
    // Files may change while the tests run, what they were built from does not.
    let (machine, started) = (machine::here(), Instant::now());
    for tests in TESTS {
        let mut command = cargo::cargo();
        command.args(["test", "--quiet"]).args(tests);
        command.envs([(ROUNDS_VARIABLE, args.rounds.to_string()), (SEED_VARIABLE, args.seed.to_string())]);
        command.env(NOTES_VARIABLE, &notes);
        if let Some(threads) = args.threads {
            command.args(["--", "--test-threads"]).arg(threads.to_string());
        }
        cargo::run(&mut command)?;
    }
    let readers = readers(&at(&notes, fs::read_to_string(&notes))?)?;
    println!("{}", summary(&readers));
    args.json.as_deref().map_or(Ok(()), |path| write(path, args, (machine, started.elapsed().as_secs()), &readers))
}

/// A line for each original, in the order of their names: tests run at once.
fn readers(notes: &str) -> Result<Vec<Value>> {
    let lines = notes.lines().map(|line| serde_json::from_str(line).map_err(|error| format!("the notes: {error}")));
    let mut readers = lines.collect::<Result<Vec<Value>>>()?;
    readers.sort_by_key(|reader| reader["reader"].to_string());
    if readers.is_empty() { Err("the tests noted nothing".into()) } else { Ok(readers) }
}

fn summary(readers: &[Value]) -> String {
    let files: u64 = readers.iter().filter_map(|reader| reader["changed_files"].as_u64()).sum();
    format!("{files} changed files of {} originals: an error or what is still right, no panic", readers.len())
}

fn write(path: &Path, args: &MutationsArgs, (machine, seconds): (Value, u64), readers: &[Value]) -> Result<()> {
    let head = json!({
        "machine": machine,
        "changes_of_each": args.rounds,
        "first_seed": args.seed,
        "seconds": seconds,
        "found": summary(readers),
    });
    let head = format!("{head:#}");
    let lines = readers.iter().map(|reader| format!("    {reader}")).collect::<Vec<_>>().join(",\n");
    at(path, fs::write(path, format!("{},\n  \"readers\": [\n{lines}\n  ]\n}}\n", head.trim_end_matches(['\n', '}']))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_has_a_line_for_each_original_in_the_order_of_names() {
        let notes = "{\"reader\":\"b\",\"changed_files\":3,\"refused\":2}\n{\"reader\":\"a\",\"changed_files\":3,\"refused\":1}\n";
        let readers = readers(notes).unwrap();
        assert_eq!(summary(&readers).split(':').next(), Some("6 changed files of 2 originals"));
        let path = std::env::temp_dir().join(format!("xtask-mutations-{}.json", std::process::id()));
        let args = MutationsArgs { rounds: 3, seed: 5, threads: None, json: None };
        write(&path, &args, (json!({}), 7), &readers).unwrap();
        let record: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).expect("JSON");
        fs::remove_file(&path).unwrap();
        assert_eq!((&record["changes_of_each"], &record["first_seed"]), (&json!(3), &json!(5)));
        assert_eq!(record["readers"][0], json!({"reader": "a", "changed_files": 3, "refused": 1}));
    }

    #[test]
    fn tests_that_note_nothing_are_an_error() {
        assert!(readers("").is_err());
        assert!(readers("{").unwrap_err().starts_with("the notes"));
    }
}

//! A checkpoint that is not what was written is never loaded: one clear line names it, and the newest that is whole.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Place, checkpoint, fail, program, succeed};

const FILES: [&str; 3] = ["model.mpk", "optim.mpk", "state.json"];

/// Places where a section of a file begins: the parts of a record and its tensors, the lines of the state.
fn sections(name: &str, bytes: &[u8]) -> Vec<usize> {
    let marks: &[&[u8]] = if name == "state.json" { &[b"\n"] } else { &[b"metadata", b"item", b"bytes"] };
    let begins = |at: &usize| marks.iter().any(|mark| bytes[*at..].starts_with(mark));
    (0..bytes.len()).filter(begins).collect()
}

/// A finished run with checkpoints of steps 5 and 10.
fn finished() -> Place {
    let place = Place::new();
    succeed(place.train("run", 10));
    place
}

fn eval(place: &Place, args: &[&str]) -> Command {
    let mut command = program();
    command.arg("eval").arg("--run").arg(place.path("run")).args(args);
    command
}

/// Every file below a directory.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            files.extend(contents(&path));
        } else {
            files.insert(path.clone(), fs::read(&path).expect("readable"));
        }
    }
    files
}

/// Goes on with the run, whose newest checkpoint has this file instead: refused, and nothing is changed.
fn refused(place: &Place, name: &str, bytes: &[u8], what: &str) {
    let file = checkpoint(&place.path("run"), 10).join(name);
    fs::write(&file, bytes).expect("writable");
    let checkpoints = place.path("run/checkpoints");
    let before = contents(&checkpoints);
    let message = fail(place.resume("run"));
    assert!(message.contains("step-00000010 is damaged: ") && message.contains(name), "{what}: {message}");
    assert!(message.contains("step-00000005 is intact: move the damaged directory away"), "{what}: {message}");
    assert!(contents(&checkpoints) == before, "{what}: something was changed");
}

#[test]
fn a_file_that_ends_at_any_boundary_is_refused() {
    let place = finished();
    for name in FILES {
        let file = checkpoint(&place.path("run"), 10).join(name);
        let whole = fs::read(&file).expect("it was written");
        let ends = sections(name, &whole);
        assert!(ends.len() > 10, "{name} has only {} sections", ends.len());
        for length in [0, 1, 7, 40, whole.len() / 2, whole.len() - 1].into_iter().chain(ends) {
            refused(&place, name, &whole[..length], &format!("{name} of {length} bytes"));
        }
        refused(&place, name, &[whole.as_slice(), b"\0"].concat(), &format!("{name} with a byte more"));
        fs::write(&file, whole).expect("writable");
    }
    succeed(place.resume("run"));
}

#[test]
fn a_byte_changed_in_any_section_is_refused() {
    let place = finished();
    for name in FILES {
        let file = checkpoint(&place.path("run"), 10).join(name);
        let whole = fs::read(&file).expect("it was written");
        let mut starts = sections(name, &whole);
        starts.insert(0, 0);
        for (index, &start) in starts.iter().enumerate() {
            let end = starts.get(index + 1).copied().unwrap_or(whole.len());
            let middle = start + (end - start) / 2;
            // A blank of JSON says nothing.
            let Some(at) = (middle..end).find(|&at| !whole[at].is_ascii_whitespace()) else { continue };
            let mut changed = whole.clone();
            changed[at] ^= 1;
            refused(&place, name, &changed, &format!("{name} with another byte {at}"));
        }
        fs::write(&file, whole).expect("writable");
    }
    succeed(place.resume("run"));
}

#[test]
fn a_missing_file_and_the_files_of_another_checkpoint_are_refused() {
    let place = finished();
    let (older, newest) = (checkpoint(&place.path("run"), 5), checkpoint(&place.path("run"), 10));
    for name in FILES {
        let whole = fs::read(newest.join(name)).expect("it was written");
        fs::remove_file(newest.join(name)).expect("removable");
        let message = fail(place.resume("run"));
        assert!(message.contains("step-00000010 is damaged: ") && message.contains(name), "{message}");
        refused(&place, name, &fs::read(older.join(name)).expect("it was written"), name);
        fs::write(newest.join(name), whole).expect("writable");
    }
    succeed(place.resume("run"));
}

#[test]
fn a_damaged_model_is_neither_measured_nor_continued_nor_exported() {
    let place = finished();
    let model = checkpoint(&place.path("run"), 10).join("model.mpk");
    let mut bytes = fs::read(&model).expect("it was written");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    fs::write(&model, bytes).expect("writable");
    let mut generate = program();
    generate.args(["generate", "--prompt", "the", "--run"]).arg(place.path("run"));
    let mut export = program();
    export.arg("export").arg("--run").arg(place.path("run")).arg("--out").arg(place.path("out"));
    for command in [eval(&place, &[]), eval(&place, &["--checkpoint", "best"]), generate, export] {
        let message = fail(command);
        assert!(message.contains("model.mpk does not match its checksum"), "{message}");
    }
    assert!(!place.path("out").exists());
}

#[test]
fn without_the_damaged_checkpoint_the_run_ends_as_if_nothing_had_happened() {
    let place = finished();
    let before = succeed(eval(&place, &[]));
    let newest = checkpoint(&place.path("run"), 10);
    fs::write(newest.join("optim.mpk"), "").expect("writable");
    fail(place.resume("run"));
    fs::rename(&newest, place.path("damaged")).expect("as the message says");
    succeed(place.resume("run"));
    assert_eq!(succeed(eval(&place, &[])), before);
}

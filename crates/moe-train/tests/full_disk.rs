//! A disk that is full or cannot be written: one clear line, and everything that was there before stays good.
#![cfg(unix)]

mod common;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output};

use common::{Place, fail, failure, last_checkpoint, metrics, output, program, records, succeed};

/// A shell script in which file systems can be mounted that nobody else sees; `None`, with the reason on stderr, where
/// the system does not allow that. It gets the program as `$0`.
fn mounting(script: &str, args: &[&Path]) -> Option<Command> {
    let unshare = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]);
        command
    };
    let probe = unshare("mount -t tmpfs tmpfs /mnt").output();
    match probe {
        Ok(probe) if probe.status.success() => {}
        Ok(probe) => {
            eprintln!("skipped: no file system can be mounted here: {}", String::from_utf8_lossy(&probe.stderr).trim());
            return None;
        }
        Err(error) => {
            eprintln!("skipped: unshare cannot be started: {error}");
            return None;
        }
    }
    let mut command = unshare(script);
    command.arg(env!("CARGO_BIN_EXE_moe-train")).args(args);
    Some(command)
}

/// Trains 20 steps on a file system of `KIB` KiB, then gives it more room, trains on and copies the run to `OUT`.
const ON_A_SMALL_DISK: &str = r#"
    disk=$1 out=$2 text=$3 kib=$4; shift 4
    mount -t tmpfs -o size=${kib}k tmpfs "$disk" || exit 9
    go() {
        if [ -e "$disk/run/config.json" ]; then "$0" train --resume "$disk/run"
        else "$0" train --data "$text" --out "$disk/run" "$@"; fi
    }
    go "$@" >/dev/null 2>"$out.first"; echo $? >"$out.code"
    mount -o remount,size=64m "$disk" || exit 9
    go "$@" && cp -R "$disk/run" "$out"
"#;

/// The last word of a message's path: what could not be written.
fn unwritten(message: &str) -> String {
    let path = message.split("while writing ").nth(1).and_then(|rest| rest.split(';').next()).unwrap_or(message);
    Path::new(path).file_name().expect("a path").to_string_lossy().into_owned()
}

/// Settings of a run that writes one checkpoint, at its end.
fn one_checkpoint() -> Vec<&'static str> {
    let settings = common::MICRO.iter().filter(|setting| !setting.contains("checkpoint_every"));
    let settings = settings.flat_map(|setting| ["--set", setting]);
    ["--steps", "20"].into_iter().chain(settings).collect()
}

#[test]
fn a_disk_that_fills_up_at_any_moment_costs_nothing_that_was_written() {
    let place = Place::new();
    let (whole, disk) = (place.path("whole"), place.path("disk"));
    let mut command = program();
    command.arg("train").arg("--data").arg(place.text()).arg("--out").arg(&whole).args(one_checkpoint());
    succeed(command);
    fs::create_dir(&disk).expect("writable");

    let mut unwritten_files = BTreeSet::new();
    for kib in (4..32).step_by(4).chain([100, 200, 300]).chain((340..).step_by(8)) {
        let out = place.path(&format!("run-{kib}"));
        let Some(mut command) = mounting(ON_A_SMALL_DISK, &[&disk, &out, &place.text()]) else { return };
        command.arg(kib.to_string()).args(one_checkpoint());
        succeed(command);
        let read = |suffix: &str| fs::read_to_string(out.with_extension(suffix)).expect("the script wrote it");
        assert_eq!(records(&out), records(&whole), "{kib} KiB");
        assert_eq!(last_checkpoint(&out), Some(20), "{kib} KiB");
        if read("code").trim() == "0" {
            break;
        }
        let message = read("first");
        assert_eq!((read("code").trim(), message.lines().count()), ("1", 1), "{kib} KiB: {message}");
        assert!(message.starts_with("error: no space left while writing "), "{kib} KiB: {message}");
        unwritten_files.insert(unwritten(&message));
    }
    for file in ["config.json", "metrics.jsonl", "model.mpk", "optim.mpk", "report.html"] {
        assert!(unwritten_files.contains(file), "no size was too small for {file}: {unwritten_files:?}");
    }
}

/// A file size limit stands for the full disk where nothing can be mounted.
#[test]
fn metrics_that_cannot_grow_end_the_run_and_keep_their_whole_lines() {
    let place = Place::new();
    succeed(place.train("whole", 30));
    let mut limited = Command::new("sh");
    // 16 blocks of 512 bytes: a few records.
    limited.args(["-c", "trap '' XFSZ; ulimit -f 16; exec \"$0\" \"$@\""]).arg(env!("CARGO_BIN_EXE_moe-train"));
    limited.args(place.train("run", 30).get_args()).args(["--set", "train.checkpoint_every=30"]);
    let message = fail(limited);
    assert!(message.contains("cannot write") && message.contains("metrics.jsonl"), "{message}");
    let written = metrics(&place.path("run")).len();
    assert!((5..30).contains(&written), "{written}");
    succeed(place.resume("run"));
    assert_eq!(records(&place.path("run")), records(&place.path("whole")));
}

#[cfg(target_os = "linux")]
#[test]
fn a_report_that_cannot_be_written_is_an_error_that_names_it() {
    let place = Place::new();
    succeed(place.train("run", 5));
    let before = fs::read(place.path("run/report.html")).expect("it was written");
    symlink("/dev/full", place.path("run/.report.html.tmp")).expect("writable");
    let mut longer = place.resume("run");
    longer.args(["--steps", "8"]);
    let message = fail(longer);
    assert!(message.contains("no space left while writing") && message.contains("run/report.html;"), "{message}");
    assert_eq!(fs::read(place.path("run/report.html")).expect("it is still there"), before);
    assert_eq!(last_checkpoint(&place.path("run")), Some(8));
    assert!(succeed(place.resume("run")).contains("final: steps=8 "));
}

#[test]
fn a_read_only_file_system_can_be_read_and_refuses_the_rest_by_name() {
    let place = Place::new();
    succeed(place.train("run", 5));
    let run = place.path("run");
    let read_only = |args: &str| -> Option<Output> {
        let script =
            format!("mount --bind \"$1\" \"$1\" && mount -o remount,ro,bind \"$1\" || exit 9; exec \"$0\" {args}");
        mounting(&script, &[&run]).map(output)
    };
    for (args, named) in [
        ("train --resume \"$1\" --steps 8", "run/.lock"),
        ("report --run \"$1\"", "run/report.html"),
        ("train --out \"$1/below\" --steps 1", "run/below"),
    ] {
        let Some(output) = read_only(args) else { return };
        let message = failure(&output);
        assert!(message.contains(named) && message.contains("Read-only file system"), "{args}: {message}");
    }
    let evaluated = read_only("eval --run \"$1\"").expect("as before");
    assert!(evaluated.status.success(), "{}", String::from_utf8_lossy(&evaluated.stderr));
}

/// The same call by somebody whom the permissions of files bind. They do not bind root, unless it gives up the capability
/// to pass over them; `None`, with the reason on stderr, where it cannot.
fn bound_by_permissions(command: &Command) -> Option<Command> {
    let bound = |program: &OsStr| {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-dac_override", "--inh-caps=-dac_override", "--"]).arg(program);
        command
    };
    let probe = tempfile::tempdir().expect("a temporary directory");
    fs::set_permissions(probe.path(), fs::Permissions::from_mode(0o555)).expect("our own");
    if fs::create_dir(probe.path().join("new")).is_err() {
        let mut same = Command::new(command.get_program());
        same.args(command.get_args());
        return Some(same);
    }
    let refused = bound("mkdir".as_ref()).arg(probe.path().join("other")).output();
    if !refused.as_ref().is_ok_and(|output| String::from_utf8_lossy(&output.stderr).contains("Permission denied")) {
        eprintln!("skipped: nothing binds root here: {refused:?}");
        return None;
    }
    let mut bound = bound(command.get_program());
    bound.args(command.get_args());
    Some(bound)
}

#[test]
fn a_directory_without_permission_to_write_ends_the_run_at_its_checkpoint_and_loses_nothing() {
    let place = Place::new();
    let longer = |out: &str| {
        succeed(place.train(out, 5));
        let mut command = place.resume(out);
        command.args(["--steps", "15"]);
        command
    };
    succeed(longer("undisturbed"));
    let Some(bound) = bound_by_permissions(&longer("run")) else { return };
    let checkpoints = place.path("run/checkpoints");
    let allow = |mode| fs::set_permissions(&checkpoints, fs::Permissions::from_mode(mode)).expect("our own");
    allow(0o555);
    let message = fail(bound);
    allow(0o755);
    assert!(message.contains("step-00000010") && message.contains("Permission denied"), "{message}");
    assert_eq!(last_checkpoint(&place.path("run")), Some(5));
    succeed(place.resume("run"));
    assert_eq!(records(&place.path("run")), records(&place.path("undisturbed")));
}

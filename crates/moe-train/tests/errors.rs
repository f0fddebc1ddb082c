//! Bad input ends with one clear line, code 1, and nothing lost.

mod common;

use std::fs;
use std::process::Command;

use common::{Place, checkpoint, fail, last_checkpoint, metrics, program, succeed};

fn failing(place: &Place, args: &[&str]) -> String {
    let mut command = place.train("run", 4);
    command.args(args);
    let message = fail(command);
    assert!(!place.path("run").exists(), "a run that cannot start leaves no directory behind");
    message
}

#[test]
fn missing_and_empty_texts_are_named() {
    let place = Place::new();
    fs::write(place.path("empty.txt"), "").expect("writable");
    fs::create_dir(place.path("empty")).expect("writable");
    for (name, what) in [("absent.txt", "does not exist"), ("empty.txt", "holds no text"), ("empty", "holds no text")] {
        let mut command = place.train("run", 4);
        command.arg("--data").arg(place.path(name));
        let message = fail(without_first_data(command));
        assert!(message.contains(what) && message.contains(name), "{message}");
    }
}

/// The program takes `--data` once; the later one is meant.
fn without_first_data(command: Command) -> Command {
    let mut args: Vec<_> = command.get_args().map(|arg| arg.to_os_string()).collect();
    let first = args.iter().position(|arg| arg == "--data").expect("there are two");
    args.drain(first..first + 2);
    let mut command = program();
    command.args(args);
    command
}

#[test]
fn a_text_shorter_than_a_sequence_is_refused_with_both_numbers() {
    let place = Place::new();
    fs::write(place.text(), "short").expect("writable");
    let message = failing(&place, &[]);
    assert!(message.contains("one sequence needs 33"), "{message}");
}

#[test]
fn an_unknown_key_comes_with_a_suggestion() {
    let message = failing(&Place::new(), &["--set", "optim.learning_rate=1"]);
    assert!(message.contains("unknown key `optim.learning_rate`"), "{message}");
    let message = failing(&Place::new(), &["--set", "moe.top_kk=1"]);
    assert!(message.contains("top_k`"), "{message}");
}

#[test]
fn contradictions_are_refused_with_numbers() {
    let place = Place::new();
    for (setting, what) in [
        ("moe.top_k=5", "4"),
        ("model.num_heads=5", "5"),
        ("model.num_kv_heads=3", "3"),
        ("train.seq_len=64", "32"),
        ("train.batch_size=0", "batch_size"),
        ("optim.lr=abc", "abc"),
    ] {
        let message = failing(&place, &["--set", setting]);
        assert!(message.contains(what), "{setting}: {message}");
    }
}

#[test]
fn a_broken_tokenizer_is_refused() {
    let place = Place::new();
    fs::write(place.path("tokenizer.json"), "{\"version\": ").expect("writable");
    let path = place.path("tokenizer.json");
    let message = failing(&place, &["--tokenizer", path.to_str().expect("UTF-8")]);
    assert!(message.contains("tokenizer.json"), "{message}");
}

#[test]
fn a_tokenizer_that_gives_other_tokens_every_time_is_refused() {
    let place = Place::new();
    let path = place.path("tokenizer.json");
    let model = serde_json::json!({"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [], "dropout": 0.1});
    let tokenizer = serde_json::json!({"version": "1.0", "added_tokens": [], "model": model});
    fs::write(&path, tokenizer.to_string()).expect("writable");
    let message = failing(&place, &["--tokenizer", path.to_str().expect("UTF-8")]);
    assert!(message.contains("model.dropout") && message.contains("tokenizer.json"), "{message}");
}

#[cfg(unix)]
#[test]
fn a_pipe_among_the_texts_is_left_out() {
    let place = Place::new();
    let folder = place.path("texts");
    fs::create_dir(&folder).expect("writable");
    for part in 0..10 {
        fs::copy(place.text(), folder.join(format!("{part}.txt"))).expect("writable");
    }
    let made = Command::new("mkfifo").arg(folder.join("pipe.txt")).status().expect("there is a mkfifo");
    assert!(made.success());
    let mut command = without_first_data(place.train("run", 3));
    command.arg("--data").arg(&folder);
    let said = succeed(command);
    assert!(said.contains("10 files") && said.contains("1 hidden, binary or no files skipped"), "{said}");
}

#[test]
fn an_existing_run_is_not_overwritten() {
    let place = Place::new();
    succeed(place.train("run", 4));
    let before = metrics(&place.path("run"));
    let message = fail(place.train("run", 4));
    assert!(message.contains("--resume") && message.contains("--out"), "{message}");
    assert_eq!(metrics(&place.path("run")), before);
}

#[test]
fn a_directory_that_holds_no_run_cannot_be_resumed_or_evaluated() {
    let place = Place::new();
    let message = fail(place.resume("absent"));
    assert!(message.contains("absent"), "{message}");
    let mut eval = program();
    eval.arg("eval").arg("--run").arg(place.dir.path());
    assert!(fail(eval).contains("holds no run"));
}

#[test]
fn a_truncated_checkpoint_is_named_and_the_older_one_offered() {
    let place = Place::new();
    succeed(place.train("run", 10));
    let run = place.path("run");
    let model = checkpoint(&run, 10).join("model.mpk");
    let bytes = fs::read(&model).expect("there is a checkpoint");
    fs::write(&model, &bytes[..bytes.len() / 2]).expect("writable");

    let mut command = place.resume("run");
    command.args(["--steps", "12"]);
    let message = fail(command);
    assert!(message.contains("step-00000010") && message.contains("step-00000005"), "{message}");
    assert!(checkpoint(&run, 5).join("model.mpk").is_file() && model.is_file(), "nothing is deleted");

    fs::remove_dir_all(checkpoint(&run, 10)).expect("writable");
    let mut command = place.resume("run");
    command.args(["--steps", "12"]);
    assert!(succeed(command).contains("final: steps=12 "));
}

#[test]
fn a_flipped_bit_in_a_checkpoint_is_found() {
    let place = Place::new();
    succeed(place.train("run", 5));
    let optim = checkpoint(&place.path("run"), 5).join("optim.mpk");
    let mut bytes = fs::read(&optim).expect("there is a checkpoint");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&optim, bytes).expect("writable");
    let mut command = place.resume("run");
    command.args(["--steps", "6"]);
    assert!(fail(command).contains("optim.mpk"));
}

#[test]
fn a_run_whose_settings_were_changed_to_a_contradiction_does_not_go_on() {
    let place = Place::new();
    succeed(place.train("run", 5));
    let path = place.path("run/config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).expect("it is there")).expect("JSON");
    let top_k = config.pointer_mut("/model/moe/top_k").expect("a setting");
    *top_k = 9.into();
    // As the program says, where a change is meant.
    config.as_object_mut().and_then(|config| config.remove("crc32")).expect("a checksum");
    fs::write(&path, config.to_string()).expect("writable");
    for action in ["eval", "generate", "export", "report"] {
        let mut command = program();
        command.arg(action).arg("--run").arg(place.path("run"));
        if action == "export" {
            command.arg("--out").arg(place.path("exported"));
        }
        let message = fail(command);
        assert!(message.contains("config.json: ") && message.contains("moe.top_k = 9 is"), "{action}: {message}");
    }
    let mut command = place.resume("run");
    command.args(["--steps", "6"]);
    let message = fail(command);
    assert!(message.contains("moe.top_k = 9 is more than moe.num_experts = 4"), "{message}");
}

#[test]
fn a_checkpoint_of_another_model_is_refused() {
    let place = Place::new();
    succeed(place.train("run", 5));
    let mut other = place.train("other", 5);
    other.args(["--set", "moe.d_hidden=20"]);
    succeed(other);
    let (from, to) = (checkpoint(&place.path("other"), 5), checkpoint(&place.path("run"), 5));
    for file in ["model.mpk", "optim.mpk", "state.json"] {
        fs::copy(from.join(file), to.join(file)).expect("writable");
    }
    let mut command = place.resume("run");
    command.args(["--steps", "6"]);
    let message = fail(command);
    assert!(message.contains("does not fit"), "{message}");
}

/// A file size limit stands for the full disk: the program gets an error from the same write.
#[cfg(unix)]
#[test]
fn a_full_disk_is_an_error_that_keeps_the_earlier_checkpoint() {
    let place = Place::new();
    succeed(place.train("run", 5));
    let run = place.path("run");
    let mut limited = Command::new("sh");
    // 64 blocks of 512 bytes: enough for metrics, not for a model.
    limited.args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$0\" \"$@\""]).arg(env!("CARGO_BIN_EXE_moe-train"));
    limited.arg("train").arg("--resume").arg(&run).args(["--steps", "15"]);
    let message = fail(limited);
    assert!(message.contains("checkpoint"), "{message}");
    assert_eq!(last_checkpoint(&run), Some(5));

    let mut command = place.resume("run");
    command.args(["--steps", "15"]);
    assert!(succeed(command).contains("final: steps=15 "));
}

#[test]
fn an_unknown_device_is_refused() {
    let message = failing(&Place::new(), &["--device", "7"]);
    assert!(message.contains("no device `7`"), "{message}");
}

#[test]
fn usage_errors_end_with_code_two() {
    let mut command = program();
    command.args(["train", "--no-such-option"]);
    assert_eq!(common::output(command).status.code(), Some(2));
}

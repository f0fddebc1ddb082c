//! What a run directory accepts, refuses and survives.

use super::*;
use crate::config::TrainConfig;

fn config() -> TrainConfig {
    TrainConfig::preset("tiny").unwrap()
}

fn refusal(result: Result<Run, RunError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn a_run_opens_with_the_configuration_it_was_created_with() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("new/run");
    let mut config = config();
    config.train.steps = 12_345;
    drop(Run::create(&dir, &config).unwrap());
    let (run, opened) = Run::open(&dir).unwrap();
    assert_eq!(run.dir(), dir);
    assert_eq!(opened, RunConfig::from(&config));
}

#[test]
fn a_directory_with_a_run_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = Run::create(dir.path(), &config()).unwrap();
    run.log(&test_record(1)).unwrap();
    drop(run);
    let text = refusal(Run::create(dir.path(), &config()));
    assert!(text.contains("already holds a run") && text.contains("--resume"), "{text}");
    assert_eq!(read_records(dir.path()).unwrap().len(), 1);
}

#[test]
fn a_directory_with_other_files_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.tex"), "x").unwrap();
    let text = refusal(Run::create(dir.path(), &config()));
    assert!(text.contains("thesis.tex") && text.contains("--out"), "{text}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_file_in_the_place_of_the_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("out");
    fs::write(&file, "x").unwrap();
    assert!(refusal(Run::create(&file, &config())).contains("is not a directory"));
    refusal(Run::create(&file.join("below"), &config()));
}

#[test]
fn what_a_killed_creation_leaves_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join(CHECKPOINT_DIR)).unwrap();
    for name in [LOCK_FILE, ".config.json.tmp"] {
        fs::write(dir.path().join(name), "").unwrap();
    }
    Run::create(dir.path(), &config()).unwrap();
}

#[test]
fn a_second_program_is_refused_but_may_read() {
    let dir = tempfile::tempdir().unwrap();
    let run = Run::create(dir.path(), &config()).unwrap();
    let text = Run::open(dir.path()).unwrap_err().to_string();
    assert!(text.contains("in use by another program"), "{text}");
    inspect(dir.path()).unwrap();
    drop(run);
    Run::open(dir.path()).unwrap();
}

#[test]
fn opening_what_is_no_run_says_so_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let text = Run::open(dir.path()).unwrap_err().to_string();
    assert!(text.contains("holds no run"), "{text}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    Run::open(&dir.path().join("nowhere")).unwrap_err();
}

#[test]
fn a_broken_configuration_is_named() {
    let dir = tempfile::tempdir().unwrap();
    drop(Run::create(dir.path(), &config()).unwrap());
    fs::write(dir.path().join(CONFIG_FILE), "{}").unwrap();
    let text = Run::open(dir.path()).unwrap_err().to_string();
    assert!(text.contains("config.json is not the configuration of a run"), "{text}");
}

#[test]
fn resuming_replaces_the_steps_after_the_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = Run::create(dir.path(), &config()).unwrap();
    for step in [10, 20, 30] {
        run.log(&test_record(step)).unwrap();
    }
    drop(run);
    let (mut run, _) = Run::open(dir.path()).unwrap();
    run.truncate_metrics_after(20).unwrap();
    run.log(&test_record(25)).unwrap();
    let steps: Vec<_> = read_records(dir.path()).unwrap().iter().map(|record| record.step).collect();
    assert_eq!(steps, [10, 20, 25]);
}

#[test]
fn reference_figures_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let run = Run::create(dir.path(), &config()).unwrap();
    assert_eq!(read_context::<Context>(dir.path()).unwrap(), None);
    let context = Context {
        data: "1.2 MB of text".into(),
        bytes_per_token: 1.0,
        references: vec![Reference { name: "gzip -9".into(), bits_per_byte: 2.1 }],
        text_crc32: Some(7),
    };
    run.write_context(&context).unwrap();
    assert_eq!(read_context(dir.path()).unwrap(), Some(context));
}

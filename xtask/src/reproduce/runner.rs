//! Carries out runs side by side: trains (or goes on training), measures, keeps the result.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::grid::Run;
use super::results::{Results, line};
use crate::Result;
use crate::files::at;

/// What `moe-train` says when training cannot go on.
const DIVERGED: &str = "is not finite";

/// How to carry out runs.
pub(crate) struct Setting {
    /// `moe-train`.
    pub(crate) program: PathBuf,
    pub(crate) data: PathBuf,
    /// Run directories, by name.
    pub(crate) runs: PathBuf,
    /// Runs side by side.
    pub(crate) jobs: usize,
    /// Threads of each; `None` leaves it to the program.
    pub(crate) threads: Option<usize>,
    /// That the program is of, where it is known.
    pub(crate) commit: Option<String>,
    /// How long all of it may take.
    pub(crate) within: Option<Duration>,
}

/// When to begin no other run: one that takes as long as the longest yet would not end in time.
struct Deadline {
    started: Instant,
    within: Option<Duration>,
    longest: Mutex<Duration>,
}

impl Deadline {
    fn from_now(within: Option<Duration>) -> Self {
        Self { started: Instant::now(), within, longest: Mutex::default() }
    }

    fn leaves_room(&self) -> Result<bool> {
        let longest = *self.longest.lock().map_err(poisoned)?;
        Ok(self.within.is_none_or(|within| self.started.elapsed() + longest <= within))
    }

    fn note(&self, took: Duration) -> Result<()> {
        let mut longest = self.longest.lock().map_err(poisoned)?;
        *longest = took.max(*longest);
        Ok(())
    }
}

/// Carries out `runs`, as many as there is time for, and adds their results; the first failure ends it after the runs that are under way. Returns how
/// many are left.
pub(crate) fn run_all(runs: Vec<Run>, setting: &Setting, results: &mut Results) -> Result<usize> {
    let total = runs.len();
    let deadline = Deadline::from_now(setting.within);
    let queue = Mutex::new(VecDeque::from_iter(runs.into_iter().enumerate()));
    let results = Mutex::new(results);
    let work = || -> Result<()> {
        loop {
            if !deadline.leaves_room()? {
                return Ok(());
            }
            let next = queue.lock().map_err(poisoned)?.pop_front();
            let Some((i, run)) = next else { return Ok(()) };
            eprintln!("[{}/{total}] {}", i + 1, run.name());
            let begun = Instant::now();
            match carry_out(&run, setting) {
                Ok(result) => {
                    results.lock().map_err(poisoned)?.add(result)?;
                    deadline.note(begun.elapsed())?;
                }
                Err(message) => {
                    queue.lock().map_err(poisoned)?.clear();
                    return Err(format!("{}: {message}", run.name()));
                }
            }
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..setting.jobs).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| Err("a worker failed".into())))
    })?;
    Ok(queue.into_inner().map_err(poisoned)?.len())
}

fn poisoned<T>(_: T) -> String {
    "another worker failed".into()
}

/// Trains from where it was left, and measures.
fn carry_out(run: &Run, setting: &Setting) -> Result<Value> {
    let dir = setting.runs.join(run.name());
    let trained = output(&mut begin_or_resume(run, setting, &dir)?)?;
    let (last, commit) = (last_record(&dir)?, setting.commit.as_deref());
    if !trained.success && trained.stderr.contains(DIVERGED) {
        return Ok(line(run, None, &last, commit));
    }
    trained.check("train")?;
    check_steps(run, &dir, &last)?;
    let mut losses = Map::from_iter([("top-k".to_string(), json!(measure(run, setting, &dir, "top-k")?))]);
    if run.arm.has_default_vectors() {
        losses.insert("frozen".into(), json!(measure(run, setting, &dir, "frozen")?));
    }
    Ok(line(run, Some(losses), &last, commit))
}

/// What trains the run, or goes on with it, if what has begun there is this run and no other of its name.
fn begin_or_resume(run: &Run, setting: &Setting, dir: &Path) -> Result<Command> {
    let mut command = program(setting, "train");
    let (begun, asked) = (dir.with_file_name(run.name() + ".asked"), asked(run, setting));
    if dir.join("config.json").is_file() {
        if fs::read_to_string(&begun).ok().as_deref() != Some(&asked.join("\n")) {
            return Err(format!("{}: begun with other settings or another text; {ANOTHER_FOLDER}", dir.display()));
        }
        command.arg("--resume").arg(dir);
        return Ok(command);
    }
    at(&setting.runs, fs::create_dir_all(&setting.runs))?;
    at(&begun, fs::write(&begun, asked.join("\n")))?;
    command.args(asked).arg("--out").arg(dir);
    Ok(command)
}

/// What to do about a folder that holds something else.
const ANOTHER_FOLDER: &str = "remove it, or name another folder for the runs with --runs";

/// Everything that a training run depends on, as arguments.
fn asked(run: &Run, setting: &Setting) -> Vec<String> {
    let data = setting.data.to_string_lossy();
    let mut asked = ["--preset", "tiny", "--seed", &run.seed.to_string(), "--data", &data].map(String::from).to_vec();
    asked.extend(run.settings().into_iter().flat_map(|assignment| ["--set".into(), assignment]));
    asked
}

/// Whether training came to its last step: it also ends well when somebody has stopped it.
fn check_steps(run: &Run, dir: &Path, last: &Value) -> Result<()> {
    let trained = last["step"].as_u64().unwrap_or(0);
    if trained == run.steps as u64 {
        return Ok(());
    }
    let dir = dir.display();
    Err(format!(
        "{dir}: the last record is of step {trained}, not {}; if training was stopped, the same command goes on, otherwise {ANOTHER_FOLDER}",
        run.steps
    ))
}

/// Loss in nats per token on held-out text.
fn measure(run: &Run, setting: &Setting, dir: &Path, evaluation: &str) -> Result<f64> {
    let mut command = program(setting, "eval");
    command.arg("--run").arg(dir).args(["--batches", &run.size.eval_batches.to_string()]);
    command.args(["--default-vectors", evaluation]);
    let measured = output(&mut command)?;
    measured.check("eval")?;
    loss_of(&measured.stdout).ok_or_else(|| format!("eval printed no loss: {}", measured.stdout))
}

fn program(setting: &Setting, subcommand: &str) -> Command {
    let mut command = Command::new(&setting.program);
    command.arg(subcommand).stdin(Stdio::null());
    if let Some(threads) = setting.threads {
        // Rayon's own setting, and that of burn-ndarray's products.
        command.env("RAYON_NUM_THREADS", threads.to_string()).env("MATMUL_NUM_THREADS", threads.to_string());
    }
    command
}

/// What a program said.
struct Output {
    success: bool,
    stdout: String,
    stderr: String,
}

impl Output {
    fn check(&self, what: &str) -> Result<()> {
        if self.success { Ok(()) } else { Err(format!("{what} failed: {}", self.stderr.trim())) }
    }
}

fn output(command: &mut Command) -> Result<Output> {
    let output = command.output().map_err(|error| format!("cannot start moe-train: {error}"))?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(Output { success: output.status.success(), stdout: text(output.stdout), stderr: text(output.stderr) })
}

/// The number after `loss=` in the last line.
fn loss_of(stdout: &str) -> Option<f64> {
    let last = stdout.lines().rfind(|line| line.starts_with("eval: "))?;
    last.split_whitespace().find_map(|word| word.strip_prefix("loss="))?.parse().ok()
}

/// The last record of the metrics; `null` without any.
fn last_record(dir: &Path) -> Result<Value> {
    let path = dir.join("metrics.jsonl");
    if !path.exists() {
        return Ok(Value::Null);
    }
    let text = at(&path, fs::read_to_string(&path))?;
    let last = text.lines().filter_map(|line| serde_json::from_str(line).ok()).next_back();
    Ok(last.unwrap_or(Value::Null))
}

#[cfg(test)]
mod tests {
    use super::super::Scale;
    use super::super::default_moe::grid;
    use super::*;

    #[test]
    fn the_loss_is_read_from_the_last_line() {
        let text = "layer  1  load max/mean 1.20\neval: step=800 tokens=131072 loss=1.6123 bpb=2.3260\n";
        assert_eq!(loss_of(text), Some(1.6123));
        assert_eq!(loss_of("nothing"), None);
    }

    fn setting(name: &str, script: &str) -> Setting {
        let dir = std::env::temp_dir().join(format!("xtask-runner-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        let program = dir.join("program");
        fs::write(&program, format!("#!/bin/sh\n{script}")).unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Setting {
            program,
            data: dir.clone(),
            runs: dir.join("runs"),
            jobs: 2,
            threads: Some(1),
            commit: None,
            within: None,
        }
    }

    /// Stands in for `moe-train`: trains by making a directory, and says a loss for each way of evaluation.
    #[cfg(unix)]
    const STAND_IN: &str = r#"
        echo "$@" >> "$(dirname "$0")/calls"
        case "$1" in
        train) while [ $# -gt 0 ]; do case "$1" in --out|--resume) dir=$2;; esac; shift; done
            mkdir -p "$dir"; echo '{}' > "$dir/config.json"; echo '{"step": 4, "loss": 2.5, "layers": []}' > "$dir/metrics.jsonl";;
        eval) case "$*" in *frozen*) loss=1.5;; *) loss=1.75;; esac; echo "eval: step=4 tokens=9 loss=$loss bpb=2.0";;
        esac
    "#;

    /// Leaves a run as a kill before its first record does.
    fn begun(run: &Run, setting: &Setting) {
        let dir = setting.runs.join(run.name());
        let _ = begin_or_resume(run, setting, &dir).unwrap();
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("config.json"), "{}").unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn a_run_of_another_length_or_text_is_not_gone_on_with() {
        let (here, run) = (setting("leftover", STAND_IN), grid(Scale::Cpu, Some(4))[0]);
        begun(&run, &here);
        let elsewhere = Setting { data: "another".into(), runs: here.runs.clone(), ..setting("elsewhere", STAND_IN) };
        for (run, setting) in [(Run { steps: 5, ..run }, &here), (run, &elsewhere)] {
            let message = carry_out(&run, setting).unwrap_err();
            assert!(message.contains("other settings or another text") && message.contains("--runs"), "{message}");
        }
        fs::remove_file(here.runs.join(run.name() + ".asked")).unwrap();
        assert!(carry_out(&run, &here).unwrap_err().contains("--runs"), "nobody knows how it was begun");
        assert!(!here.data.join("calls").exists(), "nothing was started");
    }

    /// Exit code 0 is also that of a run that a signal stopped.
    #[cfg(unix)]
    #[test]
    fn a_run_that_stopped_early_is_an_error_and_no_result() {
        for (name, record) in [("short", r#"{"step": 3, "loss": 2.5}"#), ("recordless", "")] {
            let setting = setting(name, &STAND_IN.replace(r#"{"step": 4, "loss": 2.5, "layers": []}"#, record));
            let file = setting.data.join("results.jsonl");
            let runs: Vec<Run> = grid(Scale::Cpu, Some(4)).into_iter().take(1).collect();
            let message = run_all(runs, &setting, &mut Results::open(&file).unwrap()).unwrap_err();
            assert!(message.contains("not 4; if training was stopped, the same command goes on"), "{message}");
            assert!(!file.exists(), "{message}");
        }
    }

    #[test]
    fn runs_that_differ_by_their_seed_keep_what_they_were_asked_apart() {
        let here = setting("apart", "");
        let grid = grid(Scale::Cpu, None);
        let [first, second] = [0, 1].map(|seed| *grid.iter().find(|run| run.lr == 1.6e-2 && run.seed == seed).unwrap());
        [first, second].iter().for_each(|run| begun(run, &here));
        assert!([first, second].iter().all(|run| begin_or_resume(run, &here, &here.runs.join(run.name())).is_ok()));
    }

    #[cfg(unix)]
    #[test]
    fn results_are_kept_and_what_is_there_is_not_run_again() {
        let setting = setting("grid", STAND_IN);
        let file = setting.data.join("results.jsonl");
        let runs: Vec<Run> = grid(Scale::Cpu, Some(4)).into_iter().take(4).collect();
        begun(&runs[1], &setting);
        let left = run_all(runs.clone(), &setting, &mut Results::open(&file).unwrap()).unwrap();
        assert_eq!(left, 0);

        let results = Results::open(&file).unwrap();
        assert!(runs.iter().all(|run| results.has(run)));
        let default = results.find(&runs[1]).unwrap();
        assert_eq!((&default["loss"]["frozen"], &default["loss"]["top-k"]), (&json!(1.5), &json!(1.75)));
        assert_eq!(results.find(&runs[0]).unwrap()["loss"]["frozen"], Value::Null);
        let calls = fs::read_to_string(setting.data.join("calls")).unwrap();
        assert_eq!(calls.matches("--resume").count(), 1, "a run that had begun goes on: {calls}");
    }

    #[cfg(unix)]
    #[test]
    fn no_run_begins_that_would_not_end_in_time() {
        let slow = format!("[ $1 = train ] && sleep 1\n{STAND_IN}");
        let within = Some(Duration::from_millis(2500));
        let setting = Setting { jobs: 1, within, ..setting("within", &slow) };
        let file = setting.data.join("results.jsonl");
        let runs: Vec<Run> = grid(Scale::Cpu, Some(4)).into_iter().take(9).collect();
        let started = Instant::now();
        let left = run_all(runs.clone(), &setting, &mut Results::open(&file).unwrap()).unwrap();
        let results = Results::open(&file).unwrap();
        assert_eq!(runs.iter().filter(|run| results.has(run)).count(), 9 - left);
        // Each takes a second and a little: two, or one on a machine that is busy.
        assert!((7..=8).contains(&left), "{left} after {:?}", started.elapsed());
    }

    #[cfg(unix)]
    #[test]
    fn a_run_that_diverges_is_a_result_and_another_failure_an_error() {
        let run = grid(Scale::Cpu, Some(4))[0];
        let diverges = setting("diverges", "echo 'error: the loss is not finite at step 3' >&2; exit 1\n");
        assert_eq!(carry_out(&run, &diverges).unwrap()["diverged"], true);
        let fails = setting("fails", "echo 'error: no such text' >&2; exit 1\n");
        assert!(carry_out(&run, &fails).unwrap_err().contains("no such text"));
    }
}

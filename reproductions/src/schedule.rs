//! Runs side by side, each a process with one thread; every finished one is a line of a file, and is not run again.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use crate::cell::{Cell, Finished};

/// Where finished runs are kept, and how the others are made.
pub(crate) struct Schedule<'a> {
    /// One [`Finished`] a line.
    pub(crate) results: &'a Path,
    /// The data set, handed to the processes.
    pub(crate) data: &'a Path,
    /// Processes at once.
    pub(crate) jobs: usize,
}

/// All runs that are finished in the file `results`; a last line that was cut short is none.
///
/// # Errors
///
/// A file that cannot be read, or a line in the middle that is no run.
pub(crate) fn finished(results: &Path) -> Result<Vec<Finished>, String> {
    let shown = results.display();
    let text = match fs::read_to_string(results) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result.map_err(|error| format!("cannot read {shown}: {error}"))?,
    };
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    let lines = text[..whole].lines().enumerate();
    lines
        .map(|(index, line)| {
            serde_json::from_str(line).map_err(|error| format!("line {} of {shown}: {error}", index + 1))
        })
        .collect()
}

impl Schedule<'_> {
    /// All runs finished so far.
    ///
    /// # Errors
    ///
    /// As [`finished`].
    pub(crate) fn finished(&self) -> Result<Vec<Finished>, String> {
        finished(self.results)
    }

    /// Makes those of `cells` that are not finished.
    ///
    /// # Errors
    ///
    /// The first run that fails; those that run beside it are finished first.
    pub(crate) fn run(&self, cells: &[Cell]) -> Result<(), String> {
        let done = self.finished()?;
        let open: Vec<&Cell> = cells.iter().filter(|cell| done.iter().all(|run| run.cell != **cell)).collect();
        println!("{} runs, {} of them finished", cells.len(), cells.len() - open.len());
        self.cut_torn_line()?;
        let queue = Mutex::new((open.into_iter(), None));
        std::thread::scope(|scope| {
            for _ in 0..self.jobs {
                scope.spawn(|| self.work(&queue));
            }
        });
        let (_, failure) = queue.into_inner().expect("no thread panicked with the queue");
        failure.map_or(Ok(()), Err)
    }

    /// Takes runs until there are no more or one failed.
    fn work<'c>(&self, queue: &Mutex<(impl Iterator<Item = &'c Cell>, Option<String>)>) {
        let next = || {
            let mut queue = queue.lock().expect("no thread panics with the queue");
            if queue.1.is_some() { None } else { queue.0.next() }
        };
        while let Some(cell) = next() {
            let made = self.make(cell).and_then(|line| {
                let _one_writer = queue.lock().expect("no thread panics with the queue");
                self.append(&line)
            });
            if let Err(message) = made {
                queue.lock().expect("no thread panics with the queue").1 = Some(message);
            }
        }
    }

    fn make(&self, cell: &Cell) -> Result<String, String> {
        let program = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
        let json = serde_json::to_string(cell).expect("a cell is plain data");
        let mut command = Command::new(program);
        command.arg("cell").arg("--data").arg(self.data).arg(&json).env("RAYON_NUM_THREADS", "1");
        let output = command.output().map_err(|error| format!("cannot start a run: {error}"))?;
        if !output.status.success() {
            return Err(format!("the run {json} failed:\n{}", String::from_utf8_lossy(&output.stderr)));
        }
        let line = String::from_utf8_lossy(&output.stdout).trim().to_string();
        let run: Finished = serde_json::from_str(&line).map_err(|error| format!("a run printed `{line}`: {error}"))?;
        println!("{} | {} | seed {}: {:.2} %", cell.table, cell.row, cell.seed, run.outcome.accuracy);
        Ok(line)
    }

    fn append(&self, line: &str) -> Result<(), String> {
        let open = OpenOptions::new().create(true).append(true).open(self.results);
        open.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()))
            .map_err(|error| format!("cannot write {}: {error}", self.results.display()))
    }

    /// Removes what a kill left of a line.
    fn cut_torn_line(&self) -> Result<(), String> {
        let Ok(text) = fs::read(self.results) else { return Ok(()) };
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let file = OpenOptions::new().write(true).open(self.results);
        file.and_then(|file| file.set_len(whole as u64))
            .map_err(|error| format!("cannot repair {}: {error}", self.results.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grid::{self, tests::SETTING};

    #[test]
    fn finished_runs_are_kept_and_a_torn_line_is_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let results = dir.path().join("results.jsonl");
        let schedule = Schedule { results: &results, data: dir.path(), jobs: 1 };
        assert_eq!(schedule.finished(), Ok(Vec::new()));
        let run = grid::tests::finished(grid::headline(SETTING), 40.0, 1.0);
        let line = serde_json::to_string(&run).expect("plain data");
        schedule.append(&line).expect("writable");
        fs::write(&results, format!("{line}\n{}", &line[..line.len() / 2])).expect("writable");
        assert_eq!(schedule.finished(), Ok(vec![run.clone()]));
        // Nothing is left to do, so no process is started.
        schedule.run(std::slice::from_ref(&run.cell)).expect("it is finished");
        assert_eq!(fs::read_to_string(&results).expect("readable"), format!("{line}\n"));
    }

    /// An error, or a report of what is still there; never a panic.
    #[test]
    fn changed_lines_are_an_error_or_make_a_report() {
        use rand::{RngExt, SeedableRng};
        let dir = tempfile::tempdir().expect("a directory");
        let results = dir.path().join("results.jsonl");
        let cells = grid::study(&grid::Scale::Cpu.settings(), SETTING).into_iter().take(6);
        let lines = cells
            .map(|cell| serde_json::to_string(&grid::tests::finished(cell, 40.0, 1.5)).expect("plain data") + "\n");
        let whole: Vec<u8> = lines.collect::<String>().into_bytes();
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let mut refused = 0;
        for _ in 0..600 {
            let (mut bytes, at) = (whole.clone(), random.random_range(0..whole.len() as u64) as usize);
            match random.random_range(0..4) {
                0 => bytes.truncate(at),
                1 => bytes[at] ^= 1 << random.random_range(0..8),
                2 => drop(bytes.splice(at..at + 1, *b"999999999999999999")),
                _ => bytes.extend_from_within(at..),
            }
            fs::write(&results, bytes).expect("writable");
            match finished(&results) {
                Ok(runs) => {
                    assert!(!crate::report::render(&runs, None).is_empty());
                    crate::report::plots(&runs);
                }
                Err(message) => refused += usize::from(message.contains("results.jsonl")),
            }
        }
        assert!(refused > 0, "no change was ever noticed");
    }

    #[test]
    fn a_broken_line_in_the_middle_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let results = dir.path().join("results.jsonl");
        let schedule = Schedule { results: &results, data: dir.path(), jobs: 1 };
        fs::write(&results, "{}\n").expect("writable");
        assert!(schedule.finished().unwrap_err().contains("line 1 of "));
    }
}

//! PyTorch as a program on the other end of two pipes: one JSON object a line, a question and its answer.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use crate::error::{Error, Result};

const COMMON: &str = include_str!("../torch/common.py");

/// A script of `benchmarks/torch`; it is part of this program, so that one file is all a machine needs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Script {
    #[cfg_attr(not(feature = "cube"), allow(dead_code, reason = "a processor has no kernels to choose from"))]
    Grouped,
    Layer,
    Step,
}

impl Script {
    fn file(self) -> (&'static str, &'static str) {
        match self {
            Self::Grouped => ("grouped.py", include_str!("../torch/grouped.py")),
            Self::Layer => ("layer.py", include_str!("../torch/layer.py")),
            Self::Step => ("step.py", include_str!("../torch/step.py")),
        }
    }
}

/// A running script.
pub(crate) struct Peer {
    child: Child,
    questions: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    folder: Folder,
}

impl Peer {
    /// Starts `script` with `python`.
    ///
    /// # Errors
    ///
    /// When there is no such program, when it lacks what the script needs, or there is no folder for temporary files.
    pub(crate) fn start(python: &Path, script: Script) -> Result<Self> {
        let folder = Folder::new()?;
        let (name, text) = script.file();
        folder.write("common.py", COMMON)?;
        let path = folder.write(name, text)?;
        let mut child = command(python, &path)
            .spawn()
            .map_err(|error| Error::of(format!("cannot start `{}` of --torch", python.display()), error))?;
        let questions = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
        let mut peer = Self { child, questions, answers, folder };
        peer.ask(&json!({"do": "versions"}))?;
        Ok(peer)
    }

    /// Sends a question and waits for its answer.
    ///
    /// # Errors
    ///
    /// What the script reports, or that it ended without an answer.
    pub(crate) fn ask(&mut self, question: &Value) -> Result<Value> {
        // A script that gave up has closed its end but left its reason: read on.
        if let Some(pipe) = &mut self.questions {
            let _ = writeln!(pipe, "{question}").and_then(|()| pipe.flush());
        }
        let mut line = String::new();
        self.answers.read_line(&mut line).map_err(|error| Error::of("PyTorch", error))?;
        let answer: Value = serde_json::from_str(&line)
            .map_err(|_| Error::new("the PyTorch side ended without an answer; its own words are above"))?;
        match answer["error"].as_str() {
            Some(reason) => Err(Error::of("PyTorch", reason)),
            None => Ok(answer),
        }
    }

    /// A file for bulk data, gone when the peer is.
    pub(crate) fn scratch_file(&self) -> PathBuf {
        self.folder.0.join("values")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // The end of its stdin ends the script.
        drop(self.questions.take());
        let _ = self.child.wait();
    }
}

/// A folder of this process among the temporary files.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("moe-bench-{}", std::process::id()));
        fs::create_dir_all(&path).map_err(|error| Error::of(format!("cannot make `{}`", path.display()), error))?;
        Ok(Self(path))
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.0.join(name);
        fs::write(&path, text).map_err(|error| Error::of(format!("cannot write `{}`", path.display()), error))?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What starts a script, with pipes for questions and answers.
fn command(python: &Path, script: &Path) -> Command {
    let mut command = Command::new(python);
    command.arg("-B").arg(script).envs(moe_train::memory::as_environment());
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_python_that_is_not_there_is_named() {
        let message = Peer::start(Path::new("no-such-python"), Script::Layer).err().unwrap().to_string();
        assert!(message.contains("cannot start `no-such-python` of --torch"), "{message}");
    }

    #[test]
    fn the_other_side_keeps_freed_memory_as_we_do() {
        let command = command(Path::new("python3"), Path::new("layer.py"));
        let value =
            |name: &str| command.get_envs().find(|(key, _)| *key == name).and_then(|(_, value)| value?.to_str());
        assert_eq!(value("MALLOC_MMAP_THRESHOLD_"), Some("1073741824"));
        assert_eq!(value("MALLOC_TRIM_THRESHOLD_"), Some("2147483647"));
    }

    #[cfg(unix)]
    #[test]
    fn a_program_that_is_no_python_is_an_error() {
        let message = Peer::start(Path::new("true"), Script::Step).err().unwrap().to_string();
        assert!(message.contains("ended without an answer"), "{message}");
    }
}

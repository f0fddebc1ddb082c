//! What can be seen of a run from outside, while it trains and after it was killed.

use std::fs;
use std::path::Path;

use super::scenario::STEPS;

/// A run directory at one moment. What cannot be read, since it is just being renamed, counts as not there.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sight {
    /// Bytes of `metrics.jsonl`.
    pub(super) logged: u64,
    /// Step of the newest checkpoint.
    pub(super) newest: Option<usize>,
    /// Hidden name of a checkpoint that is being written.
    pub(super) writing: Option<String>,
    /// Hidden name of a checkpoint that is being removed.
    pub(super) removing: Option<String>,
}

impl Sight {
    pub(super) fn of(run: &Path) -> Self {
        let logged = fs::metadata(run.join("metrics.jsonl")).map_or(0, |file| file.len());
        let mut sight = Self { logged, ..Self::default() };
        for name in names(&run.join("checkpoints")) {
            if let Some(step) = name.strip_prefix("step-").and_then(|step| step.parse().ok()) {
                sight.newest = sight.newest.max(Some(step));
            } else if name.starts_with(".step-") && name.ends_with(".tmp") {
                sight.writing = Some(name);
            } else if name.starts_with(".step-") {
                sight.removing = Some(name);
            }
        }
        sight
    }

    pub(super) fn is_done(&self) -> bool {
        self.newest == Some(STEPS) && self.writing.is_none() && self.removing.is_none()
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

/// What a program was doing when it was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Nothing has been trained since it was started.
    StartUp,
    /// It trains.
    Step,
    /// A part of a checkpoint is there.
    Writing,
    /// A part of an old checkpoint is still there.
    Removing,
    /// The last thing it did was to put a checkpoint in its place.
    Written,
    /// The last checkpoint is there, the report or the last line may not be.
    End,
}

impl Phase {
    pub(super) const ALL: [Self; 6] =
        [Self::StartUp, Self::Step, Self::Writing, Self::Removing, Self::Written, Self::End];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::StartUp => "start-up",
            Self::Step => "training",
            Self::Writing => "writing a checkpoint",
            Self::Removing => "removing an old checkpoint",
            Self::Written => "just after a checkpoint",
            Self::End => "after the last checkpoint",
        }
    }

    /// What lies there after a kill tells what was going on; `last_step` is that of the last whole line of the metrics.
    pub(super) fn between(before: &Sight, after: &Sight, last_step: Option<usize>) -> Self {
        let moved = after.logged != before.logged;
        let news = |before: &Option<String>, after: &Option<String>| after.is_some() && (moved || before != after);
        if news(&before.removing, &after.removing) {
            Self::Removing
        } else if news(&before.writing, &after.writing) {
            Self::Writing
        } else if after.is_done() {
            Self::End
        } else if after.newest != before.newest && after.newest == last_step {
            Self::Written
        } else if moved {
            Self::Step
        } else {
            Self::StartUp
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sight(logged: u64, newest: Option<usize>) -> Sight {
        Sight { logged, newest, ..Sight::default() }
    }

    #[test]
    fn a_directory_is_seen_as_it_is() {
        let dir = std::env::temp_dir().join(format!("xtask-sight-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        assert_eq!(Sight::of(&dir), Sight::default());
        for name in ["step-00000003", "step-00000012", ".step-00000015.tmp", ".step-00000006.removed", "other"] {
            fs::create_dir_all(dir.join("checkpoints").join(name)).unwrap();
        }
        fs::write(dir.join("metrics.jsonl"), "{}\n").unwrap();
        let expected = Sight {
            logged: 3,
            newest: Some(12),
            writing: Some(".step-00000015.tmp".into()),
            removing: Some(".step-00000006.removed".into()),
        };
        assert_eq!(Sight::of(&dir), expected);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_was_there_before_the_start_does_not_count() {
        let torn = Sight { writing: Some(".step-00000006.tmp".into()), ..sight(50, Some(3)) };
        let phase = |after: &Sight, last_step| Phase::between(&torn, after, last_step);
        assert_eq!(phase(&torn, Some(5)), Phase::StartUp);
        assert_eq!(phase(&sight(30, Some(3)), Some(3)), Phase::Step);
        assert_eq!(phase(&Sight { logged: 60, ..torn.clone() }, Some(6)), Phase::Writing);
        assert_eq!(phase(&sight(60, Some(6)), Some(6)), Phase::Written);
        assert_eq!(phase(&sight(70, Some(6)), Some(7)), Phase::Step);
        let removed = Some(".step-00000003.removed".to_string());
        assert_eq!(phase(&Sight { removing: removed, ..sight(60, Some(6)) }, Some(6)), Phase::Removing);
        assert_eq!(phase(&sight(900, Some(STEPS)), Some(STEPS)), Phase::End);
    }
}

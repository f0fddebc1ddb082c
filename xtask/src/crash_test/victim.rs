//! Whom to hit, and how: the process that was started, or one that it has launched; with SIGKILL, or with SIGSTOP.

use std::fs;
use std::process::{Child, Command, ExitStatus};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::moment::{self, Ended};
use super::random::Random;
use crate::Result;

/// How long a process that is left alone by a frozen one may take to end: more than any `--rank-timeout` of a campaign.
const LIMIT: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(1);

/// Whom to hit, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Victim {
    /// Rank 0 is killed: those that it launched must end.
    KilledFirst,
    /// A rank that was launched is killed: rank 0 must say so and end.
    KilledOther,
    /// A rank that was launched is frozen: rank 0 must notice, say so, and leave nothing behind.
    FrozenOther,
    /// Rank 0 is frozen until those that it launched have ended, and killed.
    FrozenFirst,
}

/// Victims with how often each is drawn, in per cent.
const SHARES: [(Victim, u64); 4] =
    [(Victim::KilledFirst, 30), (Victim::KilledOther, 40), (Victim::FrozenOther, 15), (Victim::FrozenFirst, 15)];

impl Victim {
    pub(super) const ALL: [Self; 4] = [Self::KilledFirst, Self::KilledOther, Self::FrozenOther, Self::FrozenFirst];

    pub(super) fn draw(random: &mut Random) -> Self {
        random.by_share(&SHARES)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::KilledFirst => "rank 0 killed",
            Self::KilledOther => "a launched rank killed",
            Self::FrozenOther => "a launched rank frozen",
            Self::FrozenFirst => "rank 0 frozen",
        }
    }

    /// Hits `first`, which is rank 0, or one of those that it has launched. Nothing of either is left when this returns.
    pub(super) fn hit(self, first: &mut Child, random: &mut Random) -> Result<Ended> {
        match self {
            Self::KilledFirst => {
                let others = launched_by(first.id());
                let ended = kill(first)?;
                all_end(&others)?;
                Ok(ended)
            }
            Self::FrozenFirst => {
                signal("STOP", first.id())?;
                let all_ended = all_end(&launched_by(first.id()));
                let ended = kill(first)?;
                all_ended?;
                Ok(ended)
            }
            Self::KilledOther | Self::FrozenOther => {
                let others = some_launched_by(first)?;
                if let Some(other) = random.one_of(&others) {
                    signal(if self == Self::KilledOther { "KILL" } else { "STOP" }, *other)?;
                }
                let status = wait(first)?;
                all_end(&others)?;
                Ok(if status.success() || others.is_empty() { Ended::ByItself(status) } else { Ended::Left })
            }
        }
    }
}

/// Kills the program that was started; it may have ended by itself just before.
pub(super) fn kill(first: &mut Child) -> Result<Ended> {
    first.kill().map_err(|error| format!("cannot kill the program: {error}"))?;
    let status = first.wait().map_err(|error| format!("cannot wait for the program: {error}"))?;
    // A process that a signal ended has no code.
    Ok(if status.code().is_none() { Ended::Hit } else { Ended::ByItself(status) })
}

/// Waits for the end of the program.
pub(super) fn wait(first: &mut Child) -> Result<ExitStatus> {
    let started = Instant::now();
    loop {
        if let Some(status) = moment::poll(first, started)? {
            return Ok(status);
        }
    }
}

/// The processes that `first` has launched, waited for; none if it ends before it has.
fn some_launched_by(first: &mut Child) -> Result<Vec<u32>> {
    let started = Instant::now();
    loop {
        let others = launched_by(first.id());
        if !others.is_empty() || moment::poll(first, started)?.is_some() {
            return Ok(others);
        }
    }
}

/// Waits until none of these processes is left; those that are too late are killed, and an error.
fn all_end(processes: &[u32]) -> Result<()> {
    let started = Instant::now();
    while let Some(left) = processes.iter().find(|id| state_and_parent(**id).is_some_and(|(state, _)| state != "Z")) {
        if started.elapsed() > LIMIT {
            signal("KILL", *left)?;
            return Err(format!("a launched rank was still there after {} s", LIMIT.as_secs()));
        }
        sleep(PAUSE);
    }
    Ok(())
}

fn signal(name: &str, process: u32) -> Result<()> {
    let status = Command::new("kill").arg(format!("-{name}")).arg(process.to_string()).output();
    // One that has ended in the meantime cannot be hit, which is seen at what it leaves.
    status.map(drop).map_err(|error| format!("cannot start `kill`: {error}"))
}

/// The processes of which `parent` is the parent, zombies left out.
fn launched_by(parent: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter(|id| state_and_parent(*id).is_some_and(|(state, of)| of == parent && state != "Z")).collect()
}

/// Of a process that is there: what it does, in a letter, and the id of its parent.
fn state_and_parent(id: u32) -> Option<(String, u32)> {
    let text = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // Behind its name in brackets, which may hold anything.
    let mut words = text.rsplit_once(')')?.1.split_whitespace();
    Some((words.next()?.into(), words.next()?.parse().ok()?))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    fn start(script: &str) -> Child {
        Command::new("sh").args(["-c", script]).spawn().expect("there is a shell")
    }

    /// How a shell that runs `script` ends, and after what time.
    fn hit(victim: Victim, script: &str) -> (Ended, Duration) {
        let mut first = start(script);
        while launched_by(first.id()).is_empty() {
            sleep(PAUSE);
        }
        let others = launched_by(first.id());
        let started = Instant::now();
        let ended = victim.hit(&mut first, &mut Random::new(1)).expect("nobody is left");
        let left = others.iter().filter(|id| state_and_parent(**id).is_some_and(|(state, _)| state != "Z"));
        assert_eq!(left.count(), 0);
        (ended, started.elapsed())
    }

    #[test]
    fn a_killed_rank_is_the_one_that_was_launched() {
        let (ended, _) = hit(Victim::KilledOther, "sleep 60 & wait $!; exit 1");
        assert!(matches!(ended, Ended::Left), "{ended:?}");
        let (ended, _) = hit(Victim::KilledOther, "sleep 60 & wait $!; exit 0");
        assert!(matches!(ended, Ended::ByItself(status) if status.success()), "{ended:?}");
    }

    #[test]
    fn a_frozen_rank_is_stopped_and_not_killed() {
        let until_it_stops = "read id name state rest </proc/$!/stat; [ \"$state\" != T ]";
        let (ended, _) =
            hit(Victim::FrozenOther, &format!("sleep 60 & while {until_it_stops}; do :; done; kill -KILL $!; exit 1"));
        assert!(matches!(ended, Ended::Left), "{ended:?}");
    }

    #[test]
    fn rank_0_is_killed_at_once_or_frozen_until_the_others_have_ended() {
        let (ended, _) = hit(Victim::KilledFirst, "sleep 1 & wait; exit 0");
        assert!(matches!(ended, Ended::Hit), "{ended:?}");
        let (ended, took) = hit(Victim::FrozenFirst, "sleep 1 & wait; exit 0");
        assert!(matches!(ended, Ended::Hit) && took > Duration::from_millis(300), "{ended:?} {took:?}");
    }

    #[test]
    fn one_that_launches_nobody_ends_by_itself() {
        let ended = Victim::KilledOther.hit(&mut start("exit 3"), &mut Random::new(1)).expect("it ends");
        assert!(matches!(ended, Ended::ByItself(status) if status.code() == Some(3)), "{ended:?}");
    }
}

//! Runs that are killed again and again until they have finished, each compared with one that was left alone.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use super::moment::{self, Ended, Moment, Pace};
use super::outcome::{self, Outcome};
use super::random::Random;
use super::scenario::Scenario;
use super::sight::{Phase, Sight};
use super::tally::{Finished, Kill, Tally};
use super::victim::{self, Victim};
use crate::Result;
use crate::files::at;

/// How to carry out a campaign.
pub(super) struct Campaign {
    /// `moe-train`.
    pub(super) program: PathBuf,
    /// Where the runs go.
    pub(super) dir: PathBuf,
    /// Arguments of every start.
    pub(super) extra: Vec<OsString>,
    /// Kills in all.
    pub(super) kills: usize,
    /// Whether to hit launched ranks too, and to freeze as well as kill.
    pub(super) any_rank: bool,
}

/// A scenario, and what it gives when nobody disturbs it.
struct Case {
    scenario: Scenario,
    expected: Outcome,
    pace: Pace,
}

impl Campaign {
    /// Runs the scenarios in turns until enough kills were made, and lets the last run come to its end.
    pub(super) fn carry_out(&self, scenarios: [Scenario; 2], random: &mut Random) -> Result<Tally> {
        let mut tally = Tally::default();
        let mut cases = Vec::new();
        for scenario in scenarios {
            let case = self.undisturbed(scenario)?;
            tally.note_undisturbed(&case.scenario, &case.pace, &case.expected.size());
            cases.push(case);
        }
        for number in 1.. {
            if tally.kills.len() >= self.kills {
                break;
            }
            let case = &cases[(number - 1) % cases.len()];
            let name = format!("{}-{number}", case.scenario.name);
            let before = tally.kills.len();
            let fault = self.disturbed(case, &name, random, &mut tally).err();
            let kills = tally.kills.len() - before;
            eprintln!("{name}: {kills} kills, {}", fault.as_deref().unwrap_or("equal"));
            tally.runs.push(Finished { run: name, kills, fault });
        }
        Ok(tally)
    }

    fn undisturbed(&self, scenario: Scenario) -> Result<Case> {
        let name = format!("{}-undisturbed", scenario.name);
        let run = self.dir.join(&name);
        let (status, pace) = moment::measure(&mut self.start(&scenario, &name)?, &run)?;
        if !status.success() {
            return Err(format!("{}: {}", run.display(), self.complaint(&name)?));
        }
        eprintln!("{name}: {}", pace.line());
        Ok(Case { expected: Outcome::read(&run, &self.said(&name, "stdout")?)?, scenario, pace })
    }

    /// Kills a run until it has finished. Its directory goes if nothing is wrong with it.
    fn disturbed(&self, case: &Case, name: &str, random: &mut Random, tally: &mut Tally) -> Result<()> {
        let run = self.dir.join(name);
        loop {
            let before = Sight::of(&run);
            let mut child = self.start(&case.scenario, name)?;
            let hit = if tally.kills.len() < self.kills { Some(self.draw(case, random)) } else { None };
            let missed = match hit {
                Some((moment, _)) => moment.wait_for(&mut child, &run)?,
                None => Some(victim::wait(&mut child)?),
            };
            let started = Instant::now();
            let ended = match (missed, hit) {
                (None, Some((_, Some(victim)))) => victim.hit(&mut child, random)?,
                (None, _) => victim::kill(&mut child)?,
                (Some(status), _) => Ended::ByItself(status),
            };
            let took = started.elapsed();
            match ended {
                Ended::ByItself(status) if status.success() => break,
                Ended::ByItself(status) => {
                    return Err(format!("does not go on ({status}): {}", self.complaint(name)?));
                }
                Ended::Left => self.check_farewell(name, "rank 0 cannot train with the others: rank")?,
                Ended::Hit => (),
            }
            let victim = hit.and_then(|(_, victim)| victim).unwrap_or(Victim::KilledFirst);
            if self.any_rank && victim == Victim::FrozenFirst {
                self.check_farewell_of_others(name)?;
            }
            tally.kills.push(Kill { victim, took, ..after_kill(case, name, &run, &before)? });
        }
        let found = Outcome::read(&run, &self.said(name, "stdout")?)?;
        match case.expected.difference(&found) {
            Some(difference) => Err(difference),
            None => at(&run, fs::remove_dir_all(&run)),
        }
    }

    fn draw(&self, case: &Case, random: &mut Random) -> (Moment, Option<Victim>) {
        let moment = Moment::draw(random, &case.pace);
        (moment, if self.any_rank { Some(Victim::draw(random)) } else { None })
    }

    /// A run that lost a rank says which, in one line.
    fn check_farewell(&self, name: &str, line: &str) -> Result<()> {
        let said = self.said(name, "stderr")?;
        let lines = said.lines().filter(|line| line.starts_with("error: ")).count();
        let names_a_rank = said.contains(&format!("error: {line}"));
        if lines == 1 && names_a_rank { Ok(()) } else { Err(format!("it lost a rank and said: {}", said.trim())) }
    }

    /// One of those that a frozen rank 0 has launched says so, if it had launched any.
    fn check_farewell_of_others(&self, name: &str) -> Result<()> {
        match self.said(name, "stderr")?.is_empty() {
            true => Ok(()),
            false => self.check_farewell(name, "rank 1 cannot train with the others: "),
        }
    }

    /// Starts the program, which writes into two files beside its run.
    fn start(&self, scenario: &Scenario, name: &str) -> Result<Child> {
        let file = |stream| {
            let path = self.stream(name, stream);
            at(&path, File::create(&path))
        };
        let mut command = scenario.command(&self.program, &self.dir.join(name), &self.extra);
        command.stdout(file("stdout")?).stderr(file("stderr")?);
        command.spawn().map_err(|error| format!("cannot start {}: {error}", self.program.display()))
    }

    /// What the last start of a run wrote.
    fn said(&self, name: &str, stream: &str) -> Result<String> {
        let path = self.stream(name, stream);
        Ok(String::from_utf8_lossy(&at(&path, fs::read(&path))?).into_owned())
    }

    /// Why it ended.
    fn complaint(&self, name: &str) -> Result<String> {
        Ok(self.said(name, "stderr")?.trim().trim_start_matches("error: ").into())
    }

    fn stream(&self, name: &str, stream: &str) -> PathBuf {
        self.dir.join(format!("{name}.{stream}"))
    }
}

/// What the kill hit, if nothing is lost.
fn after_kill(case: &Case, name: &str, run: &Path, before: &Sight) -> Result<Kill> {
    let (after, records) = (Sight::of(run), outcome::records(run)?);
    if after.newest < before.newest {
        return Err(format!("the checkpoint of step {} is lost", before.newest.unwrap_or_default()));
    }
    if let Some(difference) = case.expected.interim_difference(&records, after.newest) {
        return Err(difference);
    }
    let log = fs::read(run.join("metrics.jsonl")).unwrap_or_default();
    Ok(Kill {
        run: name.into(),
        victim: Victim::KilledFirst,
        took: Duration::ZERO,
        phase: Phase::between(before, &after, Some(records.len())),
        torn_line: log.last().is_some_and(|&byte| byte != b'\n'),
        checkpoint: after.newest,
        records: records.len(),
    })
}

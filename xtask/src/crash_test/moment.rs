//! When to kill: an event of a run, and a random time after it.

use std::path::Path;
use std::process::{Child, ExitStatus};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::random::Random;
use super::scenario::{CHECKPOINT_EVERY, STEPS};
use super::sight::Sight;
use crate::Result;

/// Between two looks at the run.
const PAUSE: Duration = Duration::from_micros(50);

/// A start of the program that takes longer hangs: it takes seconds.
const LIMIT: Duration = Duration::from_secs(900);

/// How long the parts of an undisturbed run take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    start_up: Duration,
    step: Duration,
    writing: Duration,
    end: Duration,
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Started,
    Logged,
    Writing,
    Written,
    Done,
}

/// Events with how often each is drawn, in per cent.
const SHARES: [(Event, u64); 5] =
    [(Event::Started, 15), (Event::Logged, 30), (Event::Writing, 35), (Event::Written, 10), (Event::Done, 10)];

/// When to kill.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    event: Event,
    /// Such events that are let pass first.
    skip: u64,
    delay: Duration,
}

/// How a start of the program ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// It was hit.
    Hit,
    /// By itself, with an error, when another rank was hit.
    Left,
    ByItself(ExitStatus),
}

impl Moment {
    pub(super) fn draw(random: &mut Random, pace: &Pace) -> Self {
        let event = random.by_share(&SHARES);
        // The run gets on by a tenth between two kills, or it would never end.
        let (skip, span) = match event {
            Event::Started => (0, pace.start_up),
            Event::Logged => (random.below(STEPS as u64 / 5), pace.step),
            Event::Writing => (random.below((STEPS / CHECKPOINT_EVERY) as u64 / 5), pace.writing),
            Event::Written => (random.below((STEPS / CHECKPOINT_EVERY) as u64 / 5), pace.writing / 4),
            Event::Done => (0, pace.end),
        };
        Self { event, skip, delay: random.part_of(span) }
    }

    /// Waits for this moment of `child`, which works in the directory `run`; for its status, if it ends before.
    pub(super) fn wait_for(self, child: &mut Child, run: &Path) -> Result<Option<ExitStatus>> {
        let (started, mut last, mut left) = (Instant::now(), Sight::of(run), self.skip + 1);
        while self.event != Event::Started && left > 0 {
            if let Some(status) = poll(child, started)? {
                return Ok(Some(status));
            }
            let now = Sight::of(run);
            left -= u64::from(self.event.is_between(&last, &now));
            last = now;
        }
        sleep(self.delay);
        Ok(None)
    }
}

impl Event {
    fn is_between(self, before: &Sight, now: &Sight) -> bool {
        match self {
            Self::Started => true,
            Self::Logged => now.logged > before.logged,
            Self::Writing => now.writing.is_some() && now.writing != before.writing,
            Self::Written => now.newest > before.newest,
            Self::Done => now.is_done(),
        }
    }
}

/// Waits for the end of `child`, which works in the directory `run`, and measures on the way.
pub(super) fn measure(child: &mut Child, run: &Path) -> Result<(ExitStatus, Pace)> {
    let started = Instant::now();
    let (mut last, mut trained, mut done) = (Sight::of(run), None, None);
    let (mut writing, mut begun) = (Duration::ZERO, None::<Instant>);
    let status = loop {
        if let Some(status) = poll(child, started)? {
            break status;
        }
        let now = Sight::of(run);
        if Event::Logged.is_between(&last, &now) {
            trained.get_or_insert_with(|| started.elapsed());
        }
        if now.writing.is_none() {
            writing += begun.take().map_or(Duration::ZERO, |begun| begun.elapsed());
        } else {
            begun.get_or_insert_with(Instant::now);
        }
        if now.is_done() {
            done.get_or_insert_with(|| started.elapsed());
        }
        last = now;
    };
    let whole = started.elapsed();
    let (start_up, done) = (trained.unwrap_or(whole), done.unwrap_or(whole));
    let step = done.saturating_sub(start_up + writing) / STEPS as u32;
    let writing = writing / (STEPS / CHECKPOINT_EVERY) as u32;
    Ok((status, Pace { start_up, step, writing, end: whole - done }))
}

/// The status of a program that has ended; gives it a moment otherwise.
pub(super) fn poll(child: &mut Child, started: Instant) -> Result<Option<ExitStatus>> {
    let status = child.try_wait().map_err(|error| format!("cannot wait for the program: {error}"))?;
    if status.is_none() && started.elapsed() > LIMIT {
        child.kill().map_err(|error| format!("cannot kill the program: {error}"))?;
        return Err(format!("the program was still running after {} s", LIMIT.as_secs()));
    }
    if status.is_none() {
        sleep(PAUSE);
    }
    Ok(status)
}

impl Pace {
    /// For people.
    pub(super) fn line(&self) -> String {
        let [start_up, step, writing, end] =
            [self.start_up, self.step, self.writing, self.end].map(|time| time.as_secs_f64() * 1e3);
        format!(
            "start-up {start_up:.0} ms, a step {step:.1} ms, writing a checkpoint {writing:.1} ms, the end {end:.0} ms"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace {
        start_up: Duration::from_millis(80),
        step: Duration::from_millis(2),
        writing: Duration::from_millis(20),
        end: Duration::from_millis(40),
    };

    #[test]
    fn every_event_is_drawn_sometimes() {
        let mut random = Random::new(3);
        let events: Vec<Event> = (0..1000).map(|_| Moment::draw(&mut random, &PACE).event).collect();
        assert_eq!(SHARES.iter().map(|(_, share)| share).sum::<u64>(), 100);
        SHARES.iter().for_each(|(event, _)| assert!(events.contains(event), "{event:?}"));
    }

    #[test]
    fn the_same_seed_draws_the_same_moments() {
        let draw = || {
            let mut random = Random::new(9);
            (0..20).map(|_| format!("{:?}", Moment::draw(&mut random, &PACE))).collect::<Vec<_>>()
        };
        assert_eq!(draw(), draw());
    }

    #[cfg(unix)]
    #[test]
    fn a_program_is_hit_at_its_moment_and_one_that_ended_before_is_not() {
        use std::process::Command;

        use super::super::victim;

        let run = std::env::temp_dir().join(format!("xtask-moment-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&run);
        std::fs::create_dir_all(&run).unwrap();
        let start = |script: &str| Command::new("sh").args(["-c", script]).current_dir(&run).spawn().unwrap();
        let logged = Moment { event: Event::Logged, skip: 1, delay: Duration::ZERO };

        let log = "sleep 0.5; echo x >> metrics.jsonl";
        let mut child = start(&format!("{log}; {log}; exec sleep 60"));
        assert!(matches!(logged.wait_for(&mut child, &run), Ok(None)));
        assert!(matches!(victim::kill(&mut child), Ok(Ended::Hit)));
        assert_eq!(std::fs::read_to_string(run.join("metrics.jsonl")).unwrap(), "x\nx\n");

        let mut child = start("exit 7");
        let status = logged.wait_for(&mut child, &run).expect("it can be waited for").expect("it has ended");
        assert_eq!(status.code(), Some(7));
        assert!(matches!(victim::kill(&mut child), Ok(Ended::ByItself(_))));
        std::fs::remove_dir_all(&run).unwrap();
    }
}

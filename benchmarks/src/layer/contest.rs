//! Who takes part in a comparison, and the rounds in which they take turns.

use serde::Serialize;

use crate::clock::Time;
use crate::error::Result;
use crate::session;

/// What a repetition computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// Forward as in training, so with whatever backward will need.
    Forward,
    /// Forward and backward, gradients of tokens, gates and weights.
    Training,
}

/// Whose code a contestant is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Side {
    /// This workspace.
    Ours,
    /// Bare matrix products of the same shapes.
    Products,
    /// PyTorch.
    Torch,
}

/// Something that can be timed again and again.
pub(crate) trait Contestant {
    fn name(&self) -> String;
    fn side(&self) -> Side;
    /// Takes one repetition.
    fn run(&mut self, pass: Pass) -> Result<Time>;
}

/// The times of one contestant, one entry a round.
#[derive(Clone, Debug)]
pub(crate) struct Times {
    pub(crate) name: String,
    pub(crate) side: Side,
    pub(crate) forward: Vec<Time>,
    pub(crate) training: Vec<Time>,
}

/// `warm_up` rounds that do not count, then `rounds` that do; in a round everybody runs each pass once. Every round begins with another one: who comes
/// after somebody who has left no memory to take over pays for pages of its own.
pub(crate) fn contest(
    contestants: &mut [Box<dyn Contestant + '_>],
    warm_up: usize,
    rounds: usize,
) -> Result<Vec<Times>> {
    let none =
        |one: &(dyn Contestant + '_)| Times { name: one.name(), side: one.side(), forward: vec![], training: vec![] };
    let mut times: Vec<Times> = contestants.iter().map(|one| none(one.as_ref())).collect();
    for round in 0..warm_up + rounds {
        for pass in [Pass::Forward, Pass::Training] {
            for turn in 0..contestants.len() {
                let who = (round + turn) % contestants.len();
                session::pause();
                let time = contestants[who].run(pass)?;
                if round >= warm_up {
                    times[who].of_mut(pass).push(time);
                }
            }
        }
    }
    Ok(times)
}

impl Times {
    fn of_mut(&mut self, pass: Pass) -> &mut Vec<Time> {
        match pass {
            Pass::Forward => &mut self.forward,
            Pass::Training => &mut self.training,
        }
    }

    /// The times of a pass.
    pub(crate) fn of(&self, pass: Pass) -> &[Time] {
        match pass {
            Pass::Forward => &self.forward,
            Pass::Training => &self.training,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    struct Noted<'a>(&'static str, &'a RefCell<Vec<(&'static str, Pass)>>);

    impl Contestant for Noted<'_> {
        fn name(&self) -> String {
            self.0.into()
        }

        fn side(&self) -> Side {
            Side::Ours
        }

        fn run(&mut self, pass: Pass) -> Result<Time> {
            self.1.borrow_mut().push((self.0, pass));
            Ok(Time { wall: self.1.borrow().len() as f64, cpu: 0.0 })
        }
    }

    #[test]
    fn contestants_take_turns_and_the_warm_up_does_not_count() {
        let log = RefCell::new(Vec::new());
        let mut both: [Box<dyn Contestant>; 2] = [Box::new(Noted("a", &log)), Box::new(Noted("b", &log))];
        let times = contest(&mut both, 1, 2).unwrap();
        let round =
            |first, second| [Pass::Forward, Pass::Training].map(|pass| [(first, pass), (second, pass)]).concat();
        assert_eq!(*log.borrow(), [round("a", "b"), round("b", "a"), round("a", "b")].concat());
        let walls: Vec<f64> = times[1].training.iter().map(|time| time.wall).collect();
        assert_eq!(walls, [7.0, 12.0]);
    }
}

//! A limit for ranks that are threads: one that hangs cannot be ended from outside, and the others wait for it inside `burn-collective`, which has no limit.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use burn::tensor::backend::Backend;
use burn_collective::reset_collective;

use super::RankError;

/// When ranks that are threads count as lost.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    /// How long a rank waits for another one.
    pub limit: Duration,
    /// How long the training may then take to end.
    pub grace: Duration,
    /// What is called if it does not, as the thread that is silent hangs, or one waits for it where nothing can wake it (for all to take their seats):
    /// a program says what happened and exits.
    pub give_up: fn(RankError),
}

/// Who waits for the others.
#[derive(Default)]
struct Board {
    state: Mutex<State>,
    /// Told when the training has ended.
    ended: Condvar,
}

#[derive(Default)]
struct State {
    /// Of each rank.
    waits: Vec<Option<Instant>>,
    /// Why the exchange was ended.
    reason: Option<String>,
    has_ended: bool,
}

/// Of one rank for another.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Wait {
    rank: usize,
    since: Instant,
    silent: usize,
}

impl Board {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the end, at most so long; whether it came.
    fn ends_within(&self, time: Duration) -> bool {
        let waited = self.ended.wait_timeout_while(self.state(), time, |state| !state.has_ended);
        waited.unwrap_or_else(PoisonError::into_inner).0.has_ended
    }

    /// The rank that has waited longest, since when, and for whom. There is nobody to wait for when all take part.
    fn longest_wait(&self) -> Option<Wait> {
        let state = self.state();
        let waiting = state.waits.iter().enumerate().filter_map(|(rank, since)| Some((rank, (*since)?)));
        let (rank, since) = waiting.min_by_key(|(_, since)| *since)?;
        let silent = state.waits.iter().position(Option::is_none)?;
        Some(Wait { rank, since, silent })
    }
}

/// Looks after the threads of one training, in a thread of its own if there is a limit.
pub(super) struct Watcher {
    board: Arc<Board>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    pub(super) fn start<I: Backend>(num_ranks: usize, watch: Option<Watch>) -> Self {
        let board = Arc::new(Board::default());
        board.state().waits = vec![None; num_ranks];
        let thread = watch.map(|watch| {
            let board = board.clone();
            thread::spawn(move || look::<I>(&board, watch))
        });
        Self { board, thread }
    }

    /// For the seat of a rank.
    pub(super) fn patience(&self, rank: usize) -> Patience {
        Patience { board: self.board.clone(), rank }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.board.state().has_ended = true;
        self.board.ended.notify_all();
        if let Some(thread) = self.thread.take() {
            // It does nothing that could panic, but for what it was told to call.
            let _ = thread.join();
        }
    }
}

/// Looks that must see the same wait before a rank counts as lost. They are counted instead of the time, which goes on while the whole process
/// stands still.
const LOOKS: u32 = 8;

fn look<I: Backend>(board: &Board, watch: Watch) {
    let (mut last, mut looks) = (None, 0);
    let Wait { rank, silent, .. } = loop {
        if board.ends_within(watch.limit / LOOKS) {
            return;
        }
        let wait = board.longest_wait();
        looks = if wait.is_some() && wait == last { looks + 1 } else { 0 };
        last = wait;
        if let Some(wait) = wait.filter(|_| looks >= LOOKS) {
            break wait;
        }
    };
    let reason = format!("rank {silent} has been silent for {} s (--rank-timeout)", watch.limit.as_secs_f64());
    board.state().reason = Some(reason.clone());
    // Whoever waits gets an error.
    reset_collective::<I>();
    if !board.ends_within(watch.grace) {
        (watch.give_up)(RankError { rank, reason });
    }
}

/// What a seat tells the watcher.
pub(super) struct Patience {
    board: Arc<Board>,
    rank: usize,
}

impl Patience {
    /// Does something that waits for the other ranks.
    pub(super) fn wait<T>(&self, work: impl FnOnce() -> T) -> T {
        self.board.state().waits[self.rank] = Some(Instant::now());
        let done = work();
        self.board.state().waits[self.rank] = None;
        done
    }

    /// Why the watcher has ended the exchange, if it has.
    pub(super) fn reason(&self) -> Option<String> {
        self.board.state().reason.clone()
    }
}

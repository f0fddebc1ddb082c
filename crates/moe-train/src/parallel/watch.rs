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
    /// What is called if it does not, as the thread that is silent hangs: a program says what happened and exits.
    pub give_up: fn(RankError),
}

/// Who waits for the others, and since when.
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

impl Board {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the end, at most so long; whether it came.
    fn ends_within(&self, time: Duration) -> bool {
        let waited = self.ended.wait_timeout_while(self.state(), time, |state| !state.has_ended);
        waited.unwrap_or_else(PoisonError::into_inner).0.has_ended
    }

    /// The rank that has waited longest, and who has kept it waiting for longer than `limit`. Nobody has, when all take part.
    fn silent(&self, limit: Duration) -> Option<(usize, usize)> {
        let state = self.state();
        let waiting = state.waits.iter().enumerate().filter_map(|(rank, since)| Some((rank, (*since)?)));
        let (rank, since) = waiting.min_by_key(|(_, since)| *since)?;
        let silent = state.waits.iter().position(Option::is_none)?;
        (since.elapsed() > limit).then_some((rank, silent))
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

fn look<I: Backend>(board: &Board, watch: Watch) {
    let (rank, silent) = loop {
        if board.ends_within(watch.limit / 8) {
            return;
        }
        if let Some(found) = board.silent(watch.limit) {
            break found;
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

//! Threads that wait for work with open eyes.
//!
//! rayon's threads go to sleep as soon as there is nothing to do. A training step is hundreds of short parallel loops with serial
//! code between them, and waking a thread takes as long as some of the loops.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a thread without work stays awake: longer than the serial parts of a step. A machine with more processors than the work
/// has parts is not kept busy for the whole of a long one.
const PATIENCE: Duration = Duration::from_millis(50);

/// How often a waiting thread pauses before it looks for work again; together about a microsecond.
const PAUSES: usize = 30;

/// Whether somebody's work is in [`with_threads_awake`]: one is enough to keep the threads awake.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Runs `work` and keeps the other threads of the pool, which this thread must be one of, looking for what it splits off.
///
/// Never moves `work` into a pool: as a job it could be taken up by a thread that waits for a part of somebody else's, who may hold a lock
/// that `work` wants.
pub(crate) fn with_threads_awake<R>(work: impl FnOnce() -> R) -> R {
    let Some(own) = rayon::current_thread_index() else { return work() };
    let Some(_turn) = Turn::take() else { return work() };
    let done = AtomicBool::new(false);
    rayon::in_place_scope(|scope| {
        let done = &done;
        scope.spawn_broadcast(move |_, context| {
            if context.index() != own {
                look_for_work_until(done, PATIENCE);
            }
        });
        // Also when `work` panics, or the scope would wait for those who wait for it.
        let _end = SetAtEnd(done);
        work()
    })
}

fn look_for_work_until(done: &AtomicBool, patience: Duration) {
    let mut idle_since = Instant::now();
    while !done.load(Ordering::Acquire) && idle_since.elapsed() < patience {
        match rayon::yield_now() {
            Some(rayon::Yield::Executed) => idle_since = Instant::now(),
            _ => {
                (0..PAUSES).for_each(|_| spin_loop());
                // Another program may have better use of the processor.
                std::thread::yield_now();
            }
        }
    }
}

struct Turn;

impl Turn {
    fn take() -> Option<Self> {
        (!TAKEN.swap(true, Ordering::Acquire)).then_some(Self)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        TAKEN.store(false, Ordering::Release);
    }
}

struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    fn pool(threads: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads can be started")
    }

    #[test]
    fn work_stays_on_its_thread() {
        let here = || with_threads_awake(|| std::thread::current().id());
        assert_eq!(here(), std::thread::current().id());
        let (expected, found) = pool(2).install(|| (std::thread::current().id(), here()));
        assert_eq!(found, expected);
    }

    #[test]
    fn works_of_several_threads_and_work_inside_work_end() {
        let pool = pool(3);
        let sum = |n: u64| with_threads_awake(move || with_threads_awake(move || rayon::join(|| n, || n + 1)));
        std::thread::scope(|scope| {
            let (pool, sum) = (&pool, &sum);
            let run = move |n| (0..50).map(|_| if n % 2 == 0 { sum(n) } else { pool.install(|| sum(n)) }).max();
            let threads: Vec<_> = (0..8).map(|n| scope.spawn(move || run(n))).collect();
            for (n, thread) in (0..).zip(threads) {
                assert_eq!(thread.join().expect("no panic"), Some((n, n + 1)));
            }
        });
    }

    #[test]
    fn a_panic_arrives_and_the_threads_go_on() {
        let pool = pool(2);
        let panics = || with_threads_awake(|| panic!("no"));
        let result = catch_unwind(AssertUnwindSafe(|| pool.install(panics)));
        assert_eq!(result.expect_err("it panicked").downcast_ref::<&str>(), Some(&"no"));
        assert_eq!(pool.install(|| with_threads_awake(|| rayon::join(|| 1, || 2))), (1, 2));
    }

    #[test]
    fn a_pool_of_one_thread_has_nobody_to_keep_awake() {
        assert_eq!(pool(1).install(|| with_threads_awake(|| rayon::join(|| 1, || 2))), (1, 2));
    }

    #[test]
    fn waiting_ends_with_the_work_or_with_patience() {
        look_for_work_until(&AtomicBool::new(true), Duration::MAX);
        look_for_work_until(&AtomicBool::new(false), Duration::from_millis(1));
    }
}

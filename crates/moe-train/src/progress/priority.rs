//! Threads that take only the time that nobody else wants.
//!
//! The thread of burn's dashboard polls its channel without a pause (burn-train 0.21, `renderer/tui/renderer.rs`). On
//! a CPU it would take a core from training.

use std::thread;

/// Runs `start` so that the threads it starts have the lowest priority, where the system has priorities of threads.
///
/// # Panics
///
/// Panics when `start` does.
pub(super) fn with_lowest_priority<T: Send>(start: impl FnOnce() -> T + Send) -> T {
    let lowered = || {
        lower();
        start()
    };
    // A thread of its own, as the caller's priority could not be raised again.
    thread::scope(|scope| scope.spawn(lowered).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Lowers the priority of the calling thread, which threads that it starts inherit.
#[cfg(target_os = "linux")]
fn lower() {
    const LOWEST: i32 = 19;
    // On Linux, "the calling process" is the calling thread. A refusal leaves the priority as it is, which is no
    // reason to stop.
    let _ = rustix::process::setpriority_process(None, LOWEST);
}

/// Elsewhere priorities are those of whole processes.
#[cfg(not(target_os = "linux"))]
fn lower() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_comes_back_from_the_other_thread() {
        let outside = thread::current().id();
        assert!(with_lowest_priority(|| thread::current().id()) != outside);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn only_threads_started_inside_are_lowered() {
        /// The 19th field of `stat` (proc(5)), counted behind the name, which may hold blanks.
        fn nice() -> i32 {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            stat.rsplit(')').next().unwrap().split_whitespace().nth(16).unwrap().parse().unwrap()
        }
        let before = nice();
        let inside = with_lowest_priority(|| thread::spawn(nice)).join().unwrap();
        assert_eq!(inside, 19);
        assert_eq!(nice(), before);
    }

    #[test]
    #[should_panic(expected = "no terminal")]
    fn a_panic_comes_back_from_the_other_thread() {
        with_lowest_priority::<()>(|| panic!("no terminal"));
    }
}

//! Processes that one of them has started.

use std::io::Write;
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What rank 0 tells a process that it has started before it ends. One that hears nothing has lost it.
pub const FAREWELL: u8 = b'.';

/// Between two looks at a process that is to end.
const PAUSE: Duration = Duration::from_millis(10);

/// The processes that rank 0 has started to be ranks 1, 2 and so on; none where somebody else starts them. Clones are the same processes.
#[derive(Clone, Debug, Default)]
pub struct Processes(Arc<Mutex<Vec<Child>>>);

impl Processes {
    fn all(&self) -> MutexGuard<'_, Vec<Child>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the next rank.
    pub fn push(&self, process: Child) {
        self.all().push(process);
    }

    /// The first rank whose process has ended, and how.
    pub fn ended(&self) -> Option<(usize, ExitStatus)> {
        (1..).zip(self.all().iter_mut()).find_map(|(rank, process)| Some((rank, process.try_wait().ok()??)))
    }

    /// Says [`FAREWELL`] to them and closes their standard inputs, at which they end, and waits for that, so that nothing is left behind. One that has
    /// not ended after `grace` is killed, as it may be stopped.
    pub fn end(&self, grace: Duration) {
        let mut all = self.all();
        for process in all.iter_mut() {
            // One that is gone already is what is wanted.
            let _ = process.stdin.take().map(|mut input| input.write_all(&[FAREWELL]));
        }
        let deadline = Instant::now() + grace;
        for process in all.iter_mut() {
            while matches!(process.try_wait(), Ok(None)) && Instant::now() < deadline {
                sleep(PAUSE);
            }
            // One that is gone already is what is wanted.
            let _ = process.kill().and_then(|()| process.wait());
        }
    }
}

//! How often routing was read from a device: by the portable bodies, and by no op of a GPU.

use std::sync::atomic::{AtomicUsize, Ordering};

static READS: AtomicUsize = AtomicUsize::new(0);

/// One more.
pub(crate) fn note_host_read() {
    READS.fetch_add(1, Ordering::Relaxed);
}

/// So far, in this process. For tests.
#[doc(hidden)]
pub fn host_reads() -> usize {
    READS.load(Ordering::Relaxed)
}

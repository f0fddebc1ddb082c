//! The system's allocator with a counter: how many bytes are alive now.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, Ordering::Relaxed};

static LIVE: AtomicIsize = AtomicIsize::new(0);

/// Held by tests that read the counter: it is one for all threads.
#[cfg(test)]
pub(crate) static READING: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// [`System`], counting.
pub(crate) struct Counting;

/// Bytes allocated and not yet freed, by all threads.
pub(crate) fn live_bytes() -> isize {
    LIVE.load(Relaxed)
}

fn count(bytes: isize) {
    LIVE.fetch_add(bytes, Relaxed);
}

// SAFETY: every method passes its arguments on to `System` and returns what that returns.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let memory = unsafe { System.alloc(layout) };
        if !memory.is_null() {
            count(layout.size() as isize);
        }
        memory
    }

    // Not the default, which would write zeros to pages that the system hands out as zeros.
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let memory = unsafe { System.alloc_zeroed(layout) };
        if !memory.is_null() {
            count(layout.size() as isize);
        }
        memory
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        unsafe { System.dealloc(memory, layout) };
        count(-(layout.size() as isize));
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let moved = unsafe { System.realloc(memory, layout, new_size) };
        if !moved.is_null() {
            count(new_size as isize - layout.size() as isize);
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Far above what other tests of this program hold at the same time.
    const BIG: usize = 1 << 30;

    #[test]
    fn memory_is_counted_while_it_is_alive() {
        let _alone = READING.lock().expect("no reader has panicked");
        let before = live_bytes();
        let mut memory: Vec<u8> = Vec::with_capacity(BIG);
        let held = live_bytes() - before;
        memory.shrink_to(BIG / 2);
        let shrunk = live_bytes() - before;
        drop(memory);
        let freed = live_bytes() - before;
        let near = |bytes: isize, expected: usize| bytes.abs_diff(expected as isize) < BIG / 4;
        assert!(near(held, BIG) && near(shrunk, BIG / 2) && near(freed, 0), "{held} {shrunk} {freed}");
    }
}

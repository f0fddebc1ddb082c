//! The system's allocator with a counter: how many bytes are alive now, how many were at most, and the largest piece. A program that counts makes it its own:
//! `#[global_allocator] static ALLOCATOR: CountingAllocator = CountingAllocator;`

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering::Relaxed};

static LIVE: AtomicIsize = AtomicIsize::new(0);
static PEAK: AtomicIsize = AtomicIsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);

/// [`System`], counting.
#[derive(Debug)]
pub struct CountingAllocator;

/// Bytes allocated and not yet freed, by all threads; 0 unless the program's allocator is [`CountingAllocator`].
pub fn live_bytes() -> isize {
    LIVE.load(Relaxed)
}

/// The most bytes that were alive at once since the last call.
pub fn take_peak_bytes() -> isize {
    PEAK.swap(live_bytes(), Relaxed)
}

/// Size of the largest piece of memory since the last call.
pub fn take_largest_piece() -> usize {
    LARGEST.swap(0, Relaxed)
}

fn count_piece(bytes: usize) {
    LARGEST.fetch_max(bytes, Relaxed);
    let live = LIVE.fetch_add(bytes as isize, Relaxed) + bytes as isize;
    PEAK.fetch_max(live, Relaxed);
}

fn free(bytes: usize) {
    LIVE.fetch_sub(bytes as isize, Relaxed);
}

#[expect(unsafe_code, reason = "an allocator is an unsafe trait")]
// SAFETY: every method passes its arguments on to `System` and returns what that returns.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let memory = unsafe { System.alloc(layout) };
        if !memory.is_null() {
            count_piece(layout.size());
        }
        memory
    }

    // Not the default, which would write zeros to pages that the system hands out as zeros.
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let memory = unsafe { System.alloc_zeroed(layout) };
        if !memory.is_null() {
            count_piece(layout.size());
        }
        memory
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        unsafe { System.dealloc(memory, layout) };
        free(layout.size());
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let moved = unsafe { System.realloc(memory, layout, new_size) };
        if !moved.is_null() {
            count_piece(new_size);
            free(layout.size());
        }
        moved
    }
}

//! Freed memory is kept for the next step.
//!
//! Every step of training on a CPU allocates and frees the same few hundred megabytes. Left alone, the GNU C library
//! gives freed memory back to the system, which then clears each page again when it is touched: a tenth of a step's
//! time in models of a few million parameters.

/// Larger blocks are mapped by themselves, and unmapped when freed.
const MAPPED: i32 = 1 << 30;
/// Free memory at the end of the heap that is kept.
const KEPT: i32 = i32::MAX;

/// What [`keep_freed_pages`] sets, as environment variables of the GNU C library: for another program that is to be
/// compared with ours.
pub fn as_environment() -> [(&'static str, String); 2] {
    [("MALLOC_MMAP_THRESHOLD_", MAPPED.to_string()), ("MALLOC_TRIM_THRESHOLD_", KEPT.to_string())]
}

/// Tells the allocator to keep freed memory, up to 2 GiB of it. Call it once, at the start of a program that trains.
///
/// Does nothing where the allocator is not that of the GNU C library.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "a call of the C library that nobody wraps")]
pub fn keep_freed_pages() {
    // SAFETY: `mallopt` takes two integers and only changes settings of the allocator, under its lock. A refusal leaves
    // them as they are, which is no reason to stop.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}

/// Does nothing: the allocator is not that of the GNU C library.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn keep_freed_pages() {}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::*;

    /// Above the size that the allocator maps by itself unless told otherwise.
    const BLOCK: usize = 40 << 20;

    #[test]
    fn a_freed_block_comes_back_without_new_pages() {
        keep_freed_pages();
        drop(std::hint::black_box(vec![1u8; BLOCK]));
        let before = faults();
        drop(std::hint::black_box(vec![1u8; BLOCK]));
        let pages = BLOCK / 4096;
        assert!(faults() - before < pages / 2, "{} faults for {pages} pages", faults() - before);
    }

    /// Page faults of this thread (proc(5), field 10 of `stat`, counted behind the name).
    fn faults() -> usize {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").expect("Linux has it");
        let fields = stat.rsplit(')').next().expect("there is a name");
        fields.split_whitespace().nth(7).expect("there are 52 fields").parse().expect("it is a count")
    }
}

//! Memory that is written before it is read: no pass over it is spent on zeros that nobody sees.

use std::mem::MaybeUninit;

/// A vector whose numbers are not set yet.
#[derive(Debug)]
pub(crate) struct Unset(Vec<f32>);

impl Unset {
    /// Room for `len` numbers.
    pub(crate) fn new(len: usize) -> Self {
        Self(Vec::with_capacity(len))
    }

    /// The places to write to, as many as were asked for.
    pub(crate) fn slots(&mut self, len: usize) -> &mut [MaybeUninit<f32>] {
        &mut self.0.spare_capacity_mut()[..len]
    }

    /// The vector.
    ///
    /// # Safety
    ///
    /// The first `len` slots must have been written.
    pub(crate) unsafe fn assume_set(mut self, len: usize) -> Vec<f32> {
        assert!(len <= self.0.capacity());
        // SAFETY: there is room for `len` numbers, and the caller has written them.
        unsafe { self.0.set_len(len) };
        self.0
    }
}

/// Writes `value` to every slot.
pub(crate) fn fill(slots: &mut [MaybeUninit<f32>], value: f32) -> &mut [f32] {
    for slot in &mut *slots {
        slot.write(value);
    }
    // SAFETY: every slot has been written.
    unsafe { written(slots) }
}

/// Writes `row` to the slots again and again.
///
/// # Panics
///
/// Panics unless the number of slots is a multiple of the row's length.
pub(crate) fn repeat<'a>(slots: &'a mut [MaybeUninit<f32>], row: &[f32]) -> &'a mut [f32] {
    assert!(slots.len().is_multiple_of(row.len()), "{} slots are no whole rows of {}", slots.len(), row.len());
    for slots in slots.chunks_exact_mut(row.len()) {
        for (slot, &value) in slots.iter_mut().zip(row) {
            slot.write(value);
        }
    }
    // SAFETY: whole rows cover all slots.
    unsafe { written(slots) }
}

/// The slots as numbers.
///
/// # Safety
///
/// Every slot must have been written.
pub(crate) unsafe fn written(slots: &mut [MaybeUninit<f32>]) -> &mut [f32] {
    // SAFETY: `MaybeUninit<f32>` has the layout of `f32`, and the caller has written every slot.
    unsafe { &mut *(std::ptr::from_mut(slots) as *mut [f32]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_filled_by_rows_holds_them() {
        let mut unset = Unset::new(6);
        assert_eq!(repeat(&mut unset.slots(6)[..4], &[1.0, 2.0]), [1.0, 2.0, 1.0, 2.0]);
        fill(&mut unset.slots(6)[4..], 7.0);
        // SAFETY: four and two slots were written.
        assert_eq!(unsafe { unset.assume_set(6) }, [1.0, 2.0, 1.0, 2.0, 7.0, 7.0]);
    }

    #[test]
    #[should_panic(expected = "5 slots are no whole rows of 2")]
    fn part_of_a_row_panics() {
        repeat(Unset::new(5).slots(5), &[1.0, 2.0]);
    }
}

//! A routing plan in memory of the host.

use std::ops::Range;

/// Checks that slots and rows can be numbered in the integers of every backend, the smallest of which are `i32`.
///
/// # Panics
///
/// Panics when they cannot.
pub(crate) fn check_slots(num_slots: usize) {
    const MOST: usize = i32::MAX as usize;
    assert!(num_slots <= MOST, "T * K = {num_slots} slots are more than the {MOST} that an index holds");
}

/// The slots of a routing decision sorted by expert, as plain vectors. See [`ExpertPlan`](crate::ExpertPlan).
#[derive(Clone, Debug)]
pub(crate) struct HostPlan {
    /// First row of each expert and, last, the number of rows that are served: `E + 1`.
    pub(crate) offsets: Vec<usize>,
    /// Slot `t * K + k` of each row.
    pub(crate) slot_of_row: Vec<u32>,
    /// Token `t` of each row, ascending within an expert. Rows that nobody serves come last.
    pub(crate) token_of_row: Vec<u32>,
}

impl HostPlan {
    /// Stable counting sort of the slots `experts` `[T, K]`.
    ///
    /// # Panics
    ///
    /// Panics when an index is not below `num_experts`, or there are more than `i32::MAX` slots.
    pub(crate) fn new(experts: &[usize], top_k: usize, num_experts: usize) -> Self {
        check_slots(experts.len());
        let offsets = offsets(experts, num_experts);
        let mut next = offsets.clone();
        let mut slot_of_row = vec![0; experts.len()];
        for (slot, &expert) in experts.iter().enumerate() {
            slot_of_row[next[expert]] = slot as u32;
            next[expert] += 1;
        }
        Self::new_sorted(offsets, slot_of_row, top_k)
    }

    /// A plan that was sorted elsewhere.
    pub(crate) fn from_sorted(offsets: Vec<usize>, slot_of_row: Vec<usize>, top_k: usize) -> Self {
        Self::new_sorted(offsets, slot_of_row.into_iter().map(|slot| slot as u32).collect(), top_k)
    }

    /// The same with the rows of the last expert served by nobody.
    pub(crate) fn without_last_expert(&self) -> Self {
        let mut plan = self.clone();
        plan.offsets.pop();
        plan
    }

    /// The same with every slot a token of its own.
    pub(crate) fn per_slot(&self) -> Self {
        Self { token_of_row: self.slot_of_row.clone(), ..self.clone() }
    }

    fn new_sorted(offsets: Vec<usize>, slot_of_row: Vec<u32>, top_k: usize) -> Self {
        let token_of_row = slot_of_row.iter().map(|&slot| slot / top_k as u32).collect();
        Self { offsets, slot_of_row, token_of_row }
    }

    /// Row of each slot, the inverse of `slot_of_row`.
    pub(crate) fn row_of_slot(&self) -> Vec<u32> {
        let mut rows = vec![0; self.num_rows()];
        for (row, &slot) in self.slot_of_row.iter().enumerate() {
            rows[slot as usize] = row as u32;
        }
        rows
    }

    /// `R = T * K`.
    pub(crate) fn num_rows(&self) -> usize {
        self.slot_of_row.len()
    }

    /// Rows that an expert serves, the first ones: all of them unless the plan is partial.
    pub(crate) fn num_served(&self) -> usize {
        self.offsets[self.num_experts()]
    }

    /// `E`.
    pub(crate) fn num_experts(&self) -> usize {
        self.offsets.len() - 1
    }

    /// The rows of one expert.
    pub(crate) fn rows_of(&self, expert: usize) -> Range<usize> {
        self.offsets[expert]..self.offsets[expert + 1]
    }

    /// Values of the rows, or of those that are served, in the order of the slots.
    #[cfg(feature = "cpu")]
    pub(crate) fn by_slot<T: Copy + Default>(&self, values: &[T]) -> Vec<T> {
        let mut out = vec![T::default(); self.num_rows()];
        for (&value, &slot) in values.iter().zip(&self.slot_of_row) {
            out[slot as usize] = value;
        }
        out
    }
}

fn offsets(experts: &[usize], num_experts: usize) -> Vec<usize> {
    let mut offsets = vec![0; num_experts + 1];
    for &expert in experts {
        assert!(expert < num_experts, "expert index {expert} is not below num_experts = {num_experts}");
        offsets[expert + 1] += 1;
    }
    for e in 0..num_experts {
        offsets[e + 1] += offsets[e];
    }
    offsets
}

//! Which rank owns which experts.

use std::fmt;
use std::ops::Range;

/// The experts of a layer in contiguous ranges, one range for each rank: rows that are sorted by expert are then sorted by
/// rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertPlacement {
    /// First expert of each rank and, last, the number of experts: `N + 1`.
    bounds: Vec<usize>,
}

impl ExpertPlacement {
    /// `num_experts` over `num_ranks` as evenly as they go: the first ranks have one more where it does not come out even.
    ///
    /// # Errors
    ///
    /// When there are no ranks, or more ranks than experts.
    pub fn even(num_experts: usize, num_ranks: usize) -> Result<Self, PlacementError> {
        if num_ranks == 0 {
            return Err(PlacementError::NoRanks);
        }
        if num_ranks > num_experts {
            return Err(PlacementError::TooManyRanks { num_ranks, num_experts });
        }
        let (each, more) = (num_experts / num_ranks, num_experts % num_ranks);
        Ok(Self::of((0..num_ranks).map(|rank| each + usize::from(rank < more))))
    }

    /// A number of experts for each rank.
    ///
    /// # Errors
    ///
    /// When there are no ranks, or a rank has no expert.
    pub fn from_sizes(sizes: &[usize]) -> Result<Self, PlacementError> {
        match sizes.iter().position(|&size| size == 0) {
            _ if sizes.is_empty() => Err(PlacementError::NoRanks),
            Some(rank) => Err(PlacementError::IdleRank { rank }),
            None => Ok(Self::of(sizes.iter().copied())),
        }
    }

    fn of(sizes: impl Iterator<Item = usize>) -> Self {
        let mut bounds = vec![0];
        bounds.extend(sizes.scan(0, |end, size| {
            *end += size;
            Some(*end)
        }));
        Self { bounds }
    }

    /// Number of ranks, `N`.
    pub fn num_ranks(&self) -> usize {
        self.bounds.len() - 1
    }

    /// Number of experts of all ranks, `E`.
    pub fn num_experts(&self) -> usize {
        self.bounds[self.num_ranks()]
    }

    /// The experts of a rank.
    ///
    /// # Panics
    ///
    /// Panics when there is no such rank.
    pub fn experts_of(&self, rank: usize) -> Range<usize> {
        assert!(rank < self.num_ranks(), "ExpertPlacement: rank {rank} is not below {}", self.num_ranks());
        self.bounds[rank]..self.bounds[rank + 1]
    }
}

/// Why experts cannot be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlacementError {
    /// Nobody is there to have them.
    NoRanks,
    /// Some ranks would have none.
    TooManyRanks {
        /// Number of ranks.
        num_ranks: usize,
        /// Number of experts.
        num_experts: usize,
    },
    /// A rank was given none.
    IdleRank {
        /// Which.
        rank: usize,
    },
}

impl fmt::Display for PlacementError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRanks => write!(f, "experts need at least one device"),
            Self::TooManyRanks { num_ranks, num_experts } => {
                write!(f, "{num_experts} experts cannot be spread over {num_ranks} devices, which need one each")
            }
            Self::IdleRank { rank } => write!(f, "device {rank} has no expert; it needs at least one"),
        }
    }
}

impl std::error::Error for PlacementError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(placement: &ExpertPlacement) -> Vec<usize> {
        (0..placement.num_ranks()).map(|rank| placement.experts_of(rank).len()).collect()
    }

    #[test]
    fn the_first_ranks_have_what_is_left_over() {
        let placement = ExpertPlacement::even(11, 4).expect("enough experts");
        assert_eq!(sizes(&placement), [3, 3, 3, 2]);
        assert_eq!(placement.experts_of(3), 9..11);
        assert_eq!((placement.num_ranks(), placement.num_experts()), (4, 11));
    }

    #[test]
    fn sizes_may_be_uneven() {
        let placement = ExpertPlacement::from_sizes(&[1, 5, 2]).expect("no rank is idle");
        assert_eq!([0, 1, 2].map(|rank| placement.experts_of(rank)), [0..1, 1..6, 6..8]);
    }

    #[test]
    fn more_ranks_than_experts_are_refused() {
        let error = ExpertPlacement::even(4, 5).expect_err("one rank would be idle");
        assert_eq!(error.to_string(), "4 experts cannot be spread over 5 devices, which need one each");
        assert_eq!(ExpertPlacement::even(4, 0), Err(PlacementError::NoRanks));
    }

    #[test]
    fn a_rank_without_experts_is_refused() {
        assert_eq!(ExpertPlacement::from_sizes(&[2, 0, 1]), Err(PlacementError::IdleRank { rank: 1 }));
        assert_eq!(ExpertPlacement::from_sizes(&[]), Err(PlacementError::NoRanks));
    }

    #[test]
    #[should_panic(expected = "rank 2 is not below 2")]
    fn a_rank_that_is_not_there_panics() {
        ExpertPlacement::even(4, 2).expect("enough experts").experts_of(2);
    }
}

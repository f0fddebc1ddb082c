//! Shapes of tiles for the kernel of bulk copies.

use super::{GroupedError, Limits, Problem};

/// Elements that one line of a bulk copy holds: 128 bytes of f16 or bf16, across which its eight vectors are shuffled.
pub(super) const SPAN: usize = 64;

/// Lines a bulk copy may have.
const MOST_LINES: usize = 256;

/// Rows, and columns, that a plane's registers hold for one load of its operands.
pub(super) const BLOCK: usize = 16;

/// What a cube of the kernel of bulk copies computes at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BulkTile {
    /// Planes along the rows and along the columns.
    pub planes: [usize; 2],
    /// Blocks of 16 x 16 of a plane along the rows and along the columns.
    pub blocks: [usize; 2],
    /// Loads of 64 products each that shared memory has room for.
    pub stages: usize,
}

impl BulkTile {
    /// `128 x 128` by four planes: two cubes fit a multiprocessor of Hopper, and one multiplies while the other waits. On an H200 it was
    /// faster than `128 x 256` by eight planes in all products that were measured, by 1 to 14 %.
    pub const LARGE: Self = Self { planes: [2, 2], blocks: [4, 4], stages: 3 };
    /// `64 x 128` by four planes: for experts with little load.
    pub const MEDIUM: Self = Self { planes: [2, 2], blocks: [2, 4], stages: 4 };

    /// All shapes under their names, small ones first.
    pub const ALL: [(&str, Self); 2] = [("medium", Self::MEDIUM), ("large", Self::LARGE)];

    /// All shapes, the one that fits the problem first.
    pub(super) fn for_problem(problem: &Problem) -> [Self; 2] {
        let [m, n] = problem.typical_tile();
        if m >= 96 && n >= 96 { [Self::LARGE, Self::MEDIUM] } else { [Self::MEDIUM, Self::LARGE] }
    }

    /// Rows of the output.
    pub fn m(&self) -> usize {
        BLOCK * self.planes[0] * self.blocks[0]
    }

    /// Columns of the output.
    pub fn n(&self) -> usize {
        BLOCK * self.planes[1] * self.blocks[1]
    }

    /// Planes of a cube.
    pub fn planes(&self) -> usize {
        self.planes[0] * self.planes[1]
    }

    /// Both tiles, once a stage, and two barriers of eight bytes each.
    pub(super) fn shared_bytes(&self, element: usize) -> usize {
        self.stages * ((self.m() + self.n()) * SPAN * element + 16)
    }

    pub(super) fn check(&self, problem: &Problem, limits: &Limits) -> Result<(), GroupedError> {
        if !limits.bulk_copies {
            return Err(GroupedError::Unavailable("bulk copies into shared memory".into()));
        }
        let whole = |extent: usize| extent > 0 && extent.is_multiple_of(SPAN) && extent <= MOST_LINES;
        if !whole(self.m()) || !whole(self.n()) || self.stages < 2 {
            return Err(GroupedError::Invalid(format!("{self:?}")));
        }
        // A copy begins at a multiple of 16 bytes.
        let aligned = |width: usize| (width * problem.dtype.size()).is_multiple_of(16);
        if !aligned(problem.lhs_width) || !aligned(problem.width) {
            let (left, right) = (problem.lhs_width, problem.width);
            return Err(GroupedError::Unavailable(format!("bulk copies for rows of {left} and {right} elements")));
        }
        Ok(())
    }
}

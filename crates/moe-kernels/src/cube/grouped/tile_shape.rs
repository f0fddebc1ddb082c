//! Shapes of tiles for the kernel without matrix units.

use super::{GroupedError, Problem};

/// What a cube of the tiled kernel computes at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TileShape {
    /// Rows of the output.
    pub m: usize,
    /// Columns of the output.
    pub n: usize,
    /// Products summed between two loads.
    pub k: usize,
    /// Rows a unit keeps in registers.
    pub unit_m: usize,
    /// Columns a unit keeps in registers.
    pub unit_n: usize,
}

impl TileShape {
    /// For experts with little load: 64 units, 16 sums each.
    pub const SMALL: Self = Self { m: 32, n: 32, k: 16, unit_m: 4, unit_n: 4 };
    /// 256 units, 16 sums each.
    pub const MEDIUM: Self = Self { m: 64, n: 64, k: 16, unit_m: 4, unit_n: 4 };
    /// 256 units, 64 sums each: reads least, needs most registers.
    pub const LARGE: Self = Self { m: 128, n: 128, k: 8, unit_m: 8, unit_n: 8 };

    /// All shapes under their names, small ones first.
    pub const ALL: [(&str, Self); 3] = [("small", Self::SMALL), ("medium", Self::MEDIUM), ("large", Self::LARGE)];

    /// All shapes, the one that fits the problem first.
    pub(super) fn for_problem(problem: &Problem) -> [Self; 3] {
        let smallest = problem.typical_tile().into_iter().min().unwrap_or(0);
        match smallest {
            96.. => [Self::LARGE, Self::MEDIUM, Self::SMALL],
            40..96 => [Self::MEDIUM, Self::SMALL, Self::LARGE],
            _ => [Self::SMALL, Self::MEDIUM, Self::LARGE],
        }
    }

    /// Units of a cube: one a block in registers.
    pub fn units(&self) -> usize {
        (self.m / self.unit_m) * (self.n / self.unit_n)
    }

    /// Both tiles, with a vector of padding a line.
    pub(super) fn shared_bytes(&self, element: usize) -> usize {
        self.k * (self.m + self.n + 8) * element
    }

    /// Vectors have four elements, and a tile is made of whole blocks of whole vectors.
    pub(super) fn check(&self) -> Result<(), GroupedError> {
        let Self { m, n, k, unit_m, unit_n } = *self;
        let whole = |size: usize, part: usize| size > 0 && part > 0 && size.is_multiple_of(part);
        let fits = whole(m, unit_m) && whole(n, unit_n) && whole(k, 4) && whole(unit_m, 4) && whole(unit_n, 4);
        if fits { Ok(()) } else { Err(GroupedError::Invalid(format!("{self:?}"))) }
    }
}

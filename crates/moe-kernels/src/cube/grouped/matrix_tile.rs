//! Shapes of tiles for the kernel on matrix units.

use super::{GroupedError, Limits, Problem};

/// A product that matrix units compute in one instruction: `m x k` times `k x n`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fragment {
    /// Rows.
    pub m: usize,
    /// Columns.
    pub n: usize,
    /// Products in a sum.
    pub k: usize,
}

impl Fragment {
    /// What every runtime with matrix units has for f16, and CUDA, HIP and Vulkan for bf16.
    pub const SQUARE: Self = Self { m: 16, n: 16, k: 16 };
}

/// What a cube of the kernel on matrix units computes at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MatrixTile {
    /// The instruction.
    pub fragment: Fragment,
    /// Planes along the rows and along the columns.
    pub planes: [usize; 2],
    /// Fragments of a plane along the rows and along the columns.
    pub fragments: [usize; 2],
    /// Products summed between two loads, a multiple of the fragment's `k`.
    pub k: usize,
    /// Loads that shared memory has room for, 1 or 2.
    pub stages: usize,
}

impl MatrixTile {
    const fn square(planes: [usize; 2], fragments: [usize; 2]) -> Self {
        Self { fragment: Fragment::SQUARE, planes, fragments, k: 32, stages: 2 }
    }

    /// `32 x 64` by four planes: for experts with little load.
    pub const SMALL: Self = Self::square([2, 2], [1, 2]);
    /// `64 x 64` by four planes.
    pub const MEDIUM: Self = Self::square([2, 2], [2, 2]);
    /// `128 x 128` by eight planes.
    pub const LARGE: Self = Self::square([4, 2], [2, 4]);
    /// `128 x 128` by four planes, `64 x 64` each: reads shared memory a third less, keeps twice as many sums in registers.
    pub const BROAD: Self = Self::square([2, 2], [4, 4]);
    /// `128 x 256` by eight planes, `64 x 64` each.
    pub const WIDE: Self = Self::square([2, 4], [4, 4]);

    /// All shapes under their names, small ones first.
    pub const ALL: [(&str, Self); 5] = [
        ("small", Self::SMALL),
        ("medium", Self::MEDIUM),
        ("large", Self::LARGE),
        ("broad", Self::BROAD),
        ("wide", Self::WIDE),
    ];

    /// All shapes, the one that fits the problem first.
    pub(super) fn for_problem(problem: &Problem) -> [Self; 5] {
        let [m, n] = problem.typical_tile();
        match (m, n) {
            (96.., 96..) => [Self::BROAD, Self::LARGE, Self::WIDE, Self::MEDIUM, Self::SMALL],
            (40.., 40..) => [Self::MEDIUM, Self::SMALL, Self::BROAD, Self::LARGE, Self::WIDE],
            _ => [Self::SMALL, Self::MEDIUM, Self::BROAD, Self::LARGE, Self::WIDE],
        }
    }

    /// Rows of the output.
    pub fn m(&self) -> usize {
        self.fragment.m * self.planes[0] * self.fragments[0]
    }

    /// Columns of the output.
    pub fn n(&self) -> usize {
        self.fragment.n * self.planes[1] * self.fragments[1]
    }

    /// Planes of a cube.
    pub fn planes(&self) -> usize {
        self.planes[0] * self.planes[1]
    }

    /// Both tiles as the longer of their two layouts, once a stage, and one fragment of f32 a plane on the way out.
    pub(super) fn shared_bytes(&self, element: usize) -> usize {
        let tile = |extent: usize| (extent * padded(self.k)).max(self.k * padded(extent));
        self.stages * (tile(self.m()) + tile(self.n())) * element
            + self.planes() * self.fragment.m * self.fragment.n * 4
    }

    pub(super) fn check(&self, limits: &Limits) -> Result<(), GroupedError> {
        if !limits.fragments.contains(&self.fragment) {
            return Err(GroupedError::Unavailable(format!("matrix unit for {:?} with sums in f32", self.fragment)));
        }
        if limits.plane == 0 {
            return Err(GroupedError::Unavailable("planes of one size".into()));
        }
        if self.k == 0
            || !self.k.is_multiple_of(self.fragment.k)
            || self.planes() * self.fragments[0] * self.fragments[1] == 0
            || !(1..=2).contains(&self.stages)
        {
            return Err(GroupedError::Invalid(format!("{self:?}")));
        }
        Ok(())
    }
}

/// Elements from one line of a tile to the next in shared memory. The eight beyond the line keep neighbouring lines in
/// different banks and each line aligned to 16 bytes.
pub(super) fn padded(line: usize) -> usize {
    line + 8
}

//! Where a tile of an operand lies in memory, and reading it within bounds.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

/// Where the tile of one operand lies. `x` is the row of the tile's product for the left operand and the column for
/// the right one.
#[derive(CubeType, Clone)]
pub(super) struct Window {
    /// Scalar at `x = 0`, `k = 0`.
    pub(super) base: usize,
    /// Scalars from one line to the next.
    pub(super) stride: usize,
    /// First `x` of the tile.
    pub(super) begin: usize,
    /// Where `x` ends.
    pub(super) end: usize,
    /// Whether a line goes along `k`, and not along `x`.
    #[cube(comptime)]
    pub(super) along_k: bool,
}

/// The vector at `position` of `line`, or zeros beyond either end. A vector is inside whole: ends are multiples of it.
#[cube]
pub(super) fn read<F: Float, N: Size>(
    source: &Tensor<Vector<F, N>>,
    window: &Window,
    line: usize,
    line_end: usize,
    position: usize,
    end: usize,
) -> Vector<F, N> {
    let mut value = Vector::<F, N>::new(F::new(0.0));
    if line < line_end && position < end {
        value = source[(window.base + line * window.stride + position) / N::value()];
    }
    value
}

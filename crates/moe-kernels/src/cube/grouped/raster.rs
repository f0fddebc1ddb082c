//! In which order cubes take the tiles of a matrix.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

/// Lines of tiles that are worked on together.
const BAND: usize = 8;

/// Line and column of the tile with this number, when tiles are counted down the lines of a band, column by column.
///
/// Cubes that run at the same time then read few lines and few columns, which stay in the cache: in the order of the output,
/// a wide one would read the whole right operand for every line.
#[cube]
pub(super) fn tile_position(index: usize, lines: usize, columns: usize) -> (usize, usize) {
    let first = index / (BAND * columns) * BAND;
    let left = lines - first;
    let height = select(left < BAND, left, BAND.runtime());
    let inside = index % (BAND * columns);
    (first + inside % height, inside / height)
}

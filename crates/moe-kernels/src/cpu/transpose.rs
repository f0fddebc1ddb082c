//! A matrix turned around once, where products would turn it around again and again.
//!
//! A row-major product `X W^T` has to bring `W` into another order before it can load vectors of it. The `gemm` crate does so
//! number by number, once per call. For a small matrix that serves many calls, as the keys of one head do, that is a third of the
//! time; turned in tiles first, the same products run at their full rate.

use multiversion::multiversion;

/// Side of the square that is turned in registers.
const TILE: usize = 4;
/// Side of the square whose rows, read and written, stay in the first cache. A multiple of [`TILE`].
const BLOCK: usize = 64;

/// `matrix` `[rows, columns]`, whose row `i` starts at `i * row_stride`, to `out` `[columns, rows]`.
#[multiversion(targets = "simd")]
pub(super) fn transpose(matrix: &[f32], [rows, columns]: [usize; 2], row_stride: usize, out: &mut [f32]) {
    let whole = [rows, columns].map(|size| size - size % TILE);
    for i_block in (0..whole[0]).step_by(BLOCK) {
        for j_block in (0..whole[1]).step_by(BLOCK) {
            for j in (j_block..whole[1].min(j_block + BLOCK)).step_by(TILE) {
                for i in (i_block..whole[0].min(i_block + BLOCK)).step_by(TILE) {
                    turn_tile(&matrix[i * row_stride + j..], row_stride, &mut out[j * rows + i..], rows);
                }
            }
        }
    }
    for i in 0..rows {
        let rest = if i < whole[0] { whole[1] } else { 0 };
        for j in rest..columns {
            out[j * rows + i] = matrix[i * row_stride + j];
        }
    }
}

#[inline(always)]
fn turn_tile(matrix: &[f32], row_stride: usize, out: &mut [f32], out_stride: usize) {
    let mut tile = [[0.0; TILE]; TILE];
    for (i, row) in tile.iter_mut().enumerate() {
        row.copy_from_slice(&matrix[i * row_stride..][..TILE]);
    }
    for j in 0..TILE {
        let column = [tile[0][j], tile[1][j], tile[2][j], tile[3][j]];
        out[j * out_stride..][..TILE].copy_from_slice(&column);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_columns_whatever_the_size() {
        for [rows, columns] in [[1, 1], [4, 4], [5, 7], [3, 70], [70, 3], [131, 66], [64, 128], [0, 3], [3, 0]] {
            let stride = columns + 2;
            let matrix: Vec<f32> = (0..rows * stride).map(|i| i as f32).collect();
            let mut out = vec![f32::NAN; rows * columns];
            transpose(&matrix, [rows, columns], stride, &mut out);
            let expected: Vec<f32> = (0..rows * columns).map(|i| matrix[i % rows * stride + i / rows]).collect();
            assert_eq!(out, expected, "{rows} x {columns}");
        }
    }
}

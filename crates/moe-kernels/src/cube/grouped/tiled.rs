//! Tiles in shared memory, blocks in registers: for every float, without matrix units.
//!
//! A cube computes one tile `m x n` of an expert's product in steps of `k`. Both operands are brought into shared
//! memory `k`-major, `[k][m]` and `[k][n]` in vectors of four, whichever way they lie in memory; a unit keeps a block
//! `unit_m x unit_n` in registers. Each element is one sum over ascending `k`, so the tile shape does not change
//! the result.

use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, cubecl};

use super::raster::tile_position;
use super::tile_map::tile_map;
use super::window::{Window, read};
use super::{Operands, Product, TileShape};
use crate::cube::launch::{accumulator, address_type, cube_count, storage, vector_size};

/// Elements of a vector in shared memory and registers.
const WIDE: usize = 4;
type Wide = Const<WIDE>;

pub(super) fn launch<R: CubeRuntime>(operands: Operands<R>, output: &CubeTensor<R>, tile: TileShape) {
    let p = operands.problem();
    let Operands { product, lhs, rhs, offsets, .. } = operands;
    let (client, dim) = (&output.client, CubeDim::new_1d(tile.units() as u32));
    let address = address_type(&[&lhs, &rhs, output]);
    let vector = vector_size(&[&lhs, &rhs, output]);
    let target = output.clone().into_tensor_arg();
    // SAFETY: every access is compared with the bounds of its operand; cubes beyond the last tile end at once.
    unsafe {
        if product == Product::Outer {
            let tiles = p.lhs_width.div_ceil(tile.m) * p.width.div_ceil(tile.n) * p.experts;
            let types = [storage(p.dtype), accumulator(p.dtype), storage(offsets.dtype)];
            let (lhs, rhs, offsets) = (lhs.into_tensor_arg(), rhs.into_tensor_arg(), offsets.into_tensor_arg());
            let count = cube_count(client, tiles);
            outer_kernel::launch_unchecked(client, count, dim, address, vector, lhs, rhs, offsets, target, tile, types);
        } else {
            let map = tile_map(&offsets, p.rows, tile.m);
            let count = cube_count(client, map.meta.shape()[0] * p.width.div_ceil(tile.n));
            let (transposed, types) = (product == Product::Transposed, [storage(p.dtype), accumulator(p.dtype)]);
            let (lhs, rhs, map) = (lhs.into_tensor_arg(), rhs.into_tensor_arg(), map.into_tensor_arg());
            rows_kernel::launch_unchecked(
                client, count, dim, address, vector, lhs, rhs, map, target, tile, transposed, types,
            );
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn rows_kernel<F: Float, A: Float, N: Size>(
    lhs: &Tensor<Vector<F, N>>,
    weight: &Tensor<Vector<F, N>>,
    map: &Tensor<u32>,
    output: &mut Tensor<Vector<F, N>>,
    #[comptime] tile: TileShape,
    #[comptime] transposed: bool,
    #[define(F, A)] _types: [StorageType; 2],
) {
    let width = output.shape(1);
    let columns = width.div_ceil(tile.n);
    if CUBE_POS >= map.shape(0) * columns {
        terminate!();
    }
    let (index, column) = tile_position(CUBE_POS, map.shape(0), columns);
    let expert = map[index * 3] as usize;
    let (begin, end) = (map[index * 3 + 1] as usize, map[index * 3 + 2] as usize);
    if begin >= end {
        terminate!();
    }
    let left = Window { base: 0usize, stride: lhs.stride(0), begin, end, along_k: true };
    let right = Window {
        base: expert * weight.stride(0),
        stride: weight.stride(1),
        begin: column * tile.n,
        end: width,
        along_k: transposed,
    };
    let sums = multiply::<F, A, N>(lhs, &left, weight, &right, 0usize, lhs.shape(1), tile);
    store::<F, A, N>(&sums, output, 0usize, &left, &right, tile);
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn outer_kernel<F: Float, A: Float, I: Int, N: Size>(
    lhs: &Tensor<Vector<F, N>>,
    rhs: &Tensor<Vector<F, N>>,
    offsets: &Tensor<I>,
    output: &mut Tensor<Vector<F, N>>,
    #[comptime] tile: TileShape,
    #[define(F, A, I)] _types: [StorageType; 3],
) {
    let (d_in, d_out) = (output.shape(1), output.shape(2));
    let (lines, columns) = (d_in.div_ceil(tile.m), d_out.div_ceil(tile.n));
    let expert = CUBE_POS / (lines * columns);
    if expert >= output.shape(0) {
        terminate!();
    }
    let (line, column) = tile_position(CUBE_POS % (lines * columns), lines, columns);
    let left = Window { base: 0usize, stride: lhs.stride(0), begin: line * tile.m, end: d_in, along_k: false };
    let right = Window { base: 0usize, stride: rhs.stride(0), begin: column * tile.n, end: d_out, along_k: false };
    let (begin, end) = (usize::cast_from(offsets[expert]), usize::cast_from(offsets[expert + 1]));
    let sums = multiply::<F, A, N>(lhs, &left, rhs, &right, begin, end, tile);
    store::<F, A, N>(&sums, output, expert * d_in * d_out, &left, &right, tile);
}

/// A unit's block of the product over `k_begin..k_end`, `unit_m` lines of `unit_n`.
#[cube]
fn multiply<F: Float, A: Float, N: Size>(
    lhs: &Tensor<Vector<F, N>>,
    left: &Window,
    rhs: &Tensor<Vector<F, N>>,
    right: &Window,
    k_begin: usize,
    k_end: usize,
    #[comptime] tile: TileShape,
) -> Array<Vector<A, Wide>> {
    let mut lhs_tile = SharedMemory::<Vector<F, Wide>>::new(comptime!(tile.k * pitch(tile.m)));
    let mut rhs_tile = SharedMemory::<Vector<F, Wide>>::new(comptime!(tile.k * pitch(tile.n)));
    let block = comptime!(tile.unit_m * tile.unit_n / WIDE);
    let mut sums = Array::<Vector<A, Wide>>::new(block);
    #[unroll]
    for i in 0..block {
        sums[i] = Vector::new(A::new(0.0));
    }
    for k in range_stepped(k_begin, k_end, tile.k) {
        load::<F, N>(lhs, left, k, k_end, &mut lhs_tile, tile.m, tile);
        load::<F, N>(rhs, right, k, k_end, &mut rhs_tile, tile.n, tile);
        sync_cube();
        accumulate::<F, A>(&lhs_tile, &rhs_tile, &mut sums, tile);
        sync_cube();
    }
    sums
}

/// Vectors from one `k` to the next in shared memory; the odd one keeps columns of the tile in different banks.
fn pitch(extent: usize) -> usize {
    extent / WIDE + 1
}

/// Brings `extent x tile.k` elements into shared memory, zeros beyond the bounds.
///
/// A unit takes blocks of `WIDE` along `x` and one vector along a line, so that neighbours read neighbouring memory
/// and shared memory is written in whole vectors.
#[cube]
fn load<F: Float, N: Size>(
    source: &Tensor<Vector<F, N>>,
    window: &Window,
    k: usize,
    k_end: usize,
    target: &mut SharedMemory<Vector<F, Wide>>,
    #[comptime] extent: usize,
    #[comptime] tile: TileShape,
) {
    let n = N::value();
    let per_line = comptime!(if window.along_k { tile.k / n } else { extent / WIDE });
    let blocks = comptime!(if window.along_k { per_line * extent / WIDE } else { per_line * tile.k });
    for block in range_stepped(UNIT_POS as usize, blocks, tile.units()) {
        if comptime!(window.along_k) {
            let (line, part) = (block / per_line, block % per_line);
            let mut values = Array::<Vector<F, N>>::new(WIDE);
            #[unroll]
            for i in 0..WIDE {
                let x = window.begin + line * WIDE + i;
                values[i] = read::<F, N>(source, window, x, window.end, k + part * n, k_end);
            }
            #[unroll]
            for c in 0..n {
                let mut column = Vector::<F, Wide>::new(F::new(0.0));
                #[unroll]
                for i in 0..WIDE {
                    let value = values[i];
                    column[i] = value[c];
                }
                target[(part * n + c) * comptime!(pitch(extent)) + line] = column;
            }
        } else {
            let (line, part) = (block / per_line, block % per_line);
            let mut row = Vector::<F, Wide>::new(F::new(0.0));
            #[unroll]
            for i in 0..comptime!(WIDE / n) {
                let x = window.begin + part * WIDE + i * n;
                let value = read::<F, N>(source, window, k + line, k_end, x, window.end);
                #[unroll]
                for c in 0..n {
                    row[i * n + c] = value[c];
                }
            }
            target[line * comptime!(pitch(extent)) + part] = row;
        }
    }
}

/// Lines of a unit's block lie in groups of `WIDE`, groups of one unit as far apart as there are units: without that,
/// units would read shared memory in the same banks.
#[cube]
fn position(#[comptime] index: usize, unit: usize, #[comptime] units: usize) -> usize {
    (comptime!(index / WIDE * units) + unit) * WIDE + comptime!(index % WIDE)
}

#[cube]
fn accumulate<F: Float, A: Float>(
    lhs_tile: &SharedMemory<Vector<F, Wide>>,
    rhs_tile: &SharedMemory<Vector<F, Wide>>,
    sums: &mut Array<Vector<A, Wide>>,
    #[comptime] tile: TileShape,
) {
    let (units_m, units_n) = comptime!((tile.m / tile.unit_m, tile.n / tile.unit_n));
    let (groups_m, groups_n) = comptime!((tile.unit_m / WIDE, tile.unit_n / WIDE));
    let (unit_m, unit_n) = (UNIT_POS as usize / units_n, UNIT_POS as usize % units_n);
    let mut right = Array::<Vector<A, Wide>>::new(groups_n);

    for k in 0..tile.k {
        #[unroll]
        for j in 0..groups_n {
            right[j] = Vector::cast_from(rhs_tile[k * comptime!(pitch(tile.n)) + comptime!(j * units_n) + unit_n]);
        }
        #[unroll]
        for i in 0..groups_m {
            let left = lhs_tile[k * comptime!(pitch(tile.m)) + comptime!(i * units_m) + unit_m];
            let left = Vector::<A, Wide>::cast_from(left);
            #[unroll]
            for c in 0..WIDE {
                #[unroll]
                for j in 0..groups_n {
                    sums[comptime!((i * WIDE + c) * groups_n + j)] += Vector::new(left[c]) * right[j];
                }
            }
        }
    }
}

/// Writes a unit's block into the matrix that begins at scalar `base` of the output.
#[cube]
fn store<F: Float, A: Float, N: Size>(
    sums: &Array<Vector<A, Wide>>,
    output: &mut Tensor<Vector<F, N>>,
    base: usize,
    left: &Window,
    right: &Window,
    #[comptime] tile: TileShape,
) {
    let n = N::value();
    let (units_m, units_n) = comptime!((tile.m / tile.unit_m, tile.n / tile.unit_n));
    let groups_n = comptime!(tile.unit_n / WIDE);
    let (unit_m, unit_n) = (UNIT_POS as usize / units_n, UNIT_POS as usize % units_n);
    #[unroll]
    for i in 0..tile.unit_m {
        let row = left.begin + position(i, unit_m, units_m);
        #[unroll]
        for j in 0..groups_n {
            let values = sums[comptime!(i * groups_n + j)];
            #[unroll]
            for part in 0..comptime!(WIDE / n) {
                let column = right.begin + (comptime!(j * units_n) + unit_n) * WIDE + part * n;
                let mut value = Vector::<F, N>::new(F::new(0.0));
                #[unroll]
                for c in 0..n {
                    value[c] = F::cast_from(values[comptime!(part * n + c)]);
                }
                if row < left.end && column < right.end {
                    output[(base + row * right.end + column) / n] = value;
                }
            }
        }
    }
}

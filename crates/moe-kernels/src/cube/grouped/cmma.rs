//! Tiles in shared memory, multiplied by matrix units: f16 and bf16 with sums in f32.
//!
//! A cube computes one tile `m x n` in steps of `k`; its planes share the tile as a grid, each with its own fragments.
//! Operands keep their layout in shared memory, since matrix units read rows and columns alike. While a step is
//! multiplied, the next one is on its way into registers; with two stages it has a place of its own in shared memory, so that cubes
//! wait for each other once a step.

use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, cubecl};

use super::matrix_tile::padded;
use super::raster::tile_position;
use super::tile_map::tile_map;
use super::window::{Window, read};
use super::{Limits, MatrixTile, Operands, Product};
use crate::cube::launch::{address_type, cube_count, storage, vector_size_up_to};

/// Elements of the widest vector: 16 bytes.
const VECTOR: usize = 8;

/// What matrix units ask of the address of a fragment, in bytes.
const ALIGNMENT: usize = 32;

pub(super) fn launch<R: CubeRuntime>(operands: Operands<R>, output: &CubeTensor<R>, tile: MatrixTile) {
    let p = operands.problem();
    let Operands { product, lhs, rhs, offsets, .. } = operands;
    let (client, plane) = (&output.client, Limits::of(&output.client, p.dtype).plane);
    let dim = CubeDim::new_2d(plane as u32, tile.planes() as u32);
    let address = address_type(&[&lhs, &rhs, output]);
    let vector = vector_size_up_to(VECTOR, &[&lhs, &rhs, output]);
    let columns = p.width.div_ceil(tile.n());
    let target = output.clone().into_tensor_arg();
    // SAFETY: every access is compared with the bounds of its operand; cubes beyond the last tile end at once.
    unsafe {
        if product == Product::Outer {
            let count = cube_count(client, p.lhs_width.div_ceil(tile.m()) * columns * p.experts);
            let types = [storage(p.dtype), storage(offsets.dtype)];
            let (lhs, rhs, offsets) = (lhs.into_tensor_arg(), rhs.into_tensor_arg(), offsets.into_tensor_arg());
            outer_kernel::launch_unchecked(
                client, count, dim, address, vector, lhs, rhs, offsets, target, tile, plane, types,
            );
        } else {
            let map = tile_map(&offsets, p.rows, tile.m());
            let count = cube_count(client, map.meta.shape()[0] * columns);
            let (lhs, rhs, map) = (lhs.into_tensor_arg(), rhs.into_tensor_arg(), map.into_tensor_arg());
            let (transposed, element) = (product == Product::Transposed, storage(p.dtype));
            rows_kernel::launch_unchecked(
                client, count, dim, address, vector, lhs, rhs, map, target, tile, plane, transposed, element,
            );
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn rows_kernel<F: Float, N: Size>(
    lhs: &Tensor<Vector<F, N>>,
    weight: &Tensor<Vector<F, N>>,
    map: &Tensor<u32>,
    output: &mut Tensor<Vector<F, N>>,
    #[comptime] tile: MatrixTile,
    #[comptime] plane: usize,
    #[comptime] transposed: bool,
    #[define(F)] _type: StorageType,
) {
    let width = output.shape(1);
    let columns = width.div_ceil(tile.n());
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
        begin: column * tile.n(),
        end: width,
        along_k: transposed,
    };
    let sums = multiply::<F, N>(lhs, &left, weight, &right, 0usize, lhs.shape(1), tile, plane);
    store::<F, N>(&sums, output, 0usize, &left, &right, tile, plane);
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn outer_kernel<F: Float, I: Int, N: Size>(
    lhs: &Tensor<Vector<F, N>>,
    rhs: &Tensor<Vector<F, N>>,
    offsets: &Tensor<I>,
    output: &mut Tensor<Vector<F, N>>,
    #[comptime] tile: MatrixTile,
    #[comptime] plane: usize,
    #[define(F, I)] _types: [StorageType; 2],
) {
    let (d_in, d_out) = (output.shape(1), output.shape(2));
    let (lines, columns) = (d_in.div_ceil(tile.m()), d_out.div_ceil(tile.n()));
    let expert = CUBE_POS / (lines * columns);
    if expert >= output.shape(0) {
        terminate!();
    }
    let (line, column) = tile_position(CUBE_POS % (lines * columns), lines, columns);
    let left = Window { base: 0usize, stride: lhs.stride(0), begin: line * tile.m(), end: d_in, along_k: false };
    let right = Window { base: 0usize, stride: rhs.stride(0), begin: column * tile.n(), end: d_out, along_k: false };
    let (begin, end) = (usize::cast_from(offsets[expert]), usize::cast_from(offsets[expert + 1]));
    let sums = multiply::<F, N>(lhs, &left, rhs, &right, begin, end, tile, plane);
    store::<F, N>(&sums, output, expert * d_in * d_out, &left, &right, tile, plane);
}

/// A plane's fragments of the product over `k_begin..k_end`.
#[cube]
fn multiply<F: Float, N: Size>(
    lhs: &Tensor<Vector<F, N>>,
    left: &Window,
    rhs: &Tensor<Vector<F, N>>,
    right: &Window,
    k_begin: usize,
    k_end: usize,
    #[comptime] tile: MatrixTile,
    #[comptime] plane: usize,
) -> Sequence<cmma::Matrix<f32>> {
    let units = comptime!(tile.planes() * plane);
    let (lhs_lines, lhs_line) = comptime!(lines_of(left.along_k, tile.m(), tile.k));
    let (rhs_lines, rhs_line) = comptime!(lines_of(right.along_k, tile.n(), tile.k));
    let n = N::value();
    let lhs_size = comptime!(lhs_lines * padded(lhs_line) / n);
    let rhs_size = comptime!(rhs_lines * padded(rhs_line) / n);
    let mut lhs_tile = SharedMemory::<Vector<F, N>>::new_aligned(comptime!(tile.stages * lhs_size), ALIGNMENT);
    let mut rhs_tile = SharedMemory::<Vector<F, N>>::new_aligned(comptime!(tile.stages * rhs_size), ALIGNMENT);
    let mut lhs_next = Array::<Vector<F, N>>::new(comptime!((lhs_lines * lhs_line / n).div_ceil(units)));
    let mut rhs_next = Array::<Vector<F, N>>::new(comptime!((rhs_lines * rhs_line / n).div_ceil(units)));

    let mut sums = Sequence::<cmma::Matrix<f32>>::new();
    #[unroll]
    for _ in 0..comptime!(tile.fragments[0] * tile.fragments[1]) {
        sums.push(cmma::Matrix::<f32>::from_value(
            cmma::MatrixIdent::Accumulator,
            tile.fragment.m,
            tile.fragment.n,
            tile.fragment.k,
            cmma::MatrixLayout::Undefined,
            0.0,
        ));
    }

    fetch::<F, N>(lhs, left, k_begin, k_end, &mut lhs_next, lhs_lines, lhs_line, units);
    fetch::<F, N>(rhs, right, k_begin, k_end, &mut rhs_next, rhs_lines, rhs_line, units);
    place::<F, N>(&lhs_next, &mut lhs_tile, 0usize.runtime(), lhs_lines, lhs_line, units);
    place::<F, N>(&rhs_next, &mut rhs_tile, 0usize.runtime(), rhs_lines, rhs_line, units);
    sync_cube();
    let mut stage = 0usize.runtime();
    for k in range_stepped(k_begin, k_end, tile.k) {
        fetch::<F, N>(lhs, left, k + tile.k, k_end, &mut lhs_next, lhs_lines, lhs_line, units);
        fetch::<F, N>(rhs, right, k + tile.k, k_end, &mut rhs_next, rhs_lines, rhs_line, units);
        let (lhs_start, rhs_start) = (stage * lhs_size, stage * rhs_size);
        accumulate::<F, N>(&lhs_tile, lhs_start, left.along_k, &rhs_tile, rhs_start, right.along_k, &sums, tile);
        if comptime!(tile.stages == 1) {
            sync_cube();
        } else {
            stage = 1 - stage;
        }
        place::<F, N>(&lhs_next, &mut lhs_tile, stage * lhs_size, lhs_lines, lhs_line, units);
        place::<F, N>(&rhs_next, &mut rhs_tile, stage * rhs_size, rhs_lines, rhs_line, units);
        sync_cube();
    }
    sums
}

/// Lines of a tile and their length.
fn lines_of(along_k: bool, extent: usize, k: usize) -> (usize, usize) {
    if along_k { (extent, k) } else { (k, extent) }
}

/// Reads a unit's share of a tile, zeros beyond the bounds.
#[cube]
fn fetch<F: Float, N: Size>(
    source: &Tensor<Vector<F, N>>,
    window: &Window,
    k: usize,
    k_end: usize,
    target: &mut Array<Vector<F, N>>,
    #[comptime] lines: usize,
    #[comptime] line_length: usize,
    #[comptime] units: usize,
) {
    let n = N::value();
    let per_line = comptime!(line_length / n);
    #[unroll]
    for i in 0..comptime!((lines * per_line).div_ceil(units)) {
        let index = UNIT_POS as usize + comptime!(i * units);
        let (line, position) = (index / per_line, index % per_line * n);
        target[i] = if comptime!(window.along_k) {
            read::<F, N>(source, window, window.begin + line, window.end, k + position, k_end)
        } else {
            read::<F, N>(source, window, k + line, k_end, window.begin + position, window.end)
        };
    }
}

/// Writes a unit's share of a tile to shared memory, from vector `start` on.
#[cube]
fn place<F: Float, N: Size>(
    source: &Array<Vector<F, N>>,
    target: &mut SharedMemory<Vector<F, N>>,
    start: usize,
    #[comptime] lines: usize,
    #[comptime] line_length: usize,
    #[comptime] units: usize,
) {
    let n = N::value();
    let per_line = comptime!(line_length / n);
    let pitch = comptime!(padded(line_length) / n);
    #[unroll]
    for i in 0..comptime!((lines * per_line).div_ceil(units)) {
        let index = UNIT_POS as usize + comptime!(i * units);
        // Where units outnumber what is left of the tile.
        if comptime!((lines * per_line).is_multiple_of(units)) || index < comptime!(lines * per_line) {
            target[start + index / per_line * pitch + index % per_line] = source[i];
        }
    }
}

#[cube]
fn accumulate<F: Float, N: Size>(
    lhs_tile: &SharedMemory<Vector<F, N>>,
    lhs_start: usize,
    #[comptime] lhs_along_k: bool,
    rhs_tile: &SharedMemory<Vector<F, N>>,
    rhs_start: usize,
    #[comptime] rhs_along_k: bool,
    sums: &Sequence<cmma::Matrix<f32>>,
    #[comptime] tile: MatrixTile,
) {
    let [across, down] = comptime!([tile.fragments[1], tile.fragments[0]]);
    let plane = UNIT_POS_Y as usize;
    let row = plane / tile.planes[1] * comptime!(down * tile.fragment.m);
    let column = plane % tile.planes[1] * comptime!(across * tile.fragment.n);
    let lhs_pitch = comptime!(padded(if lhs_along_k { tile.k } else { tile.m() }));
    let rhs_pitch = comptime!(padded(if rhs_along_k { tile.k } else { tile.n() }));
    let lhs_layout = comptime!(if lhs_along_k { cmma::MatrixLayout::RowMajor } else { cmma::MatrixLayout::ColMajor });
    let rhs_layout = comptime!(if rhs_along_k { cmma::MatrixLayout::ColMajor } else { cmma::MatrixLayout::RowMajor });

    #[unroll]
    for step in 0..comptime!(tile.k / tile.fragment.k) {
        let k = comptime!(step * tile.fragment.k);
        let mut right = Sequence::<cmma::Matrix<F>>::new();
        #[unroll]
        for j in 0..across {
            let x = column + comptime!(j * tile.fragment.n);
            right.push(fragment::<F, N>(
                rhs_tile,
                rhs_start,
                x,
                k,
                rhs_pitch,
                rhs_along_k,
                cmma::MatrixIdent::B,
                rhs_layout,
                tile,
            ));
        }
        #[unroll]
        for i in 0..down {
            let x = row + comptime!(i * tile.fragment.m);
            let left = fragment::<F, N>(
                lhs_tile,
                lhs_start,
                x,
                k,
                lhs_pitch,
                lhs_along_k,
                cmma::MatrixIdent::A,
                lhs_layout,
                tile,
            );
            #[unroll]
            for j in 0..across {
                let sum = sums.index(comptime!(i * across + j));
                cmma::execute::<F, F, f32, f32>(&left, right.index(j), sum, sum);
            }
        }
    }
}

#[cube]
fn fragment<F: Float, N: Size>(
    source: &SharedMemory<Vector<F, N>>,
    first: usize,
    x: usize,
    #[comptime] k: usize,
    #[comptime] pitch: usize,
    #[comptime] along_k: bool,
    #[comptime] ident: cmma::MatrixIdent,
    #[comptime] layout: cmma::MatrixLayout,
    #[comptime] tile: MatrixTile,
) -> cmma::Matrix<F> {
    let start = if comptime!(along_k) { x * pitch + k } else { comptime!(k * pitch) + x };
    // SAFETY: `load` writes the whole fragment before it is read.
    let matrix =
        unsafe { cmma::Matrix::<F>::uninitialized(ident, tile.fragment.m, tile.fragment.n, tile.fragment.k, layout) };
    let slice = source.slice(first + start / N::value(), source.len());
    cmma::load(&matrix, &slice, pitch as u32);
    matrix
}

/// Writes a plane's fragments into the matrix that begins at scalar `base` of the output, one after the other through
/// shared memory of the plane's own, where each unit finds the elements that are its own to compare with the bounds.
#[cube]
fn store<F: Float, N: Size>(
    sums: &Sequence<cmma::Matrix<f32>>,
    output: &mut Tensor<Vector<F, N>>,
    base: usize,
    left: &Window,
    right: &Window,
    #[comptime] tile: MatrixTile,
    #[comptime] plane: usize,
) {
    let n = N::value();
    let (rows, columns) = comptime!((tile.fragment.m, tile.fragment.n));
    let size = comptime!(rows * columns);
    let mut staging = SharedMemory::<f32>::new_aligned(comptime!(tile.planes() * size), ALIGNMENT);
    let own = UNIT_POS_Y as usize;
    let start = own * size;
    let first_row = left.begin + own / tile.planes[1] * comptime!(tile.fragments[0] * rows);
    let first_column = right.begin + own % tile.planes[1] * comptime!(tile.fragments[1] * columns);

    #[unroll]
    for i in 0..comptime!(tile.fragments[0]) {
        #[unroll]
        for j in 0..comptime!(tile.fragments[1]) {
            let sum = sums.index(comptime!(i * tile.fragments[1] + j));
            let mut slice = staging.slice_mut(start, start + size);
            cmma::store(&mut slice, sum, columns as u32, cmma::MatrixLayout::RowMajor);
            sync_plane();
            for part in range_stepped(UNIT_POS_X as usize, comptime!(size / n), plane) {
                let row = first_row + comptime!(i * rows) + part * n / columns;
                let column = first_column + comptime!(j * columns) + part * n % columns;
                let mut value = Vector::<F, N>::new(F::new(0.0));
                #[unroll]
                for c in 0..n {
                    value[c] = F::cast_from(staging[start + part * n + c]);
                }
                if row < left.end && column < right.end {
                    output[(base + row * right.end + column) / n] = value;
                }
            }
            sync_plane();
        }
    }
}

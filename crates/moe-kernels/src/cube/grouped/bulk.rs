//! Tiles brought by bulk copies (TMA), multiplied by the plain `mma` instruction: f16 and bf16 with sums in f32, on Hopper and later.
//!
//! One unit of a cube asks for whole tiles, several steps ahead, and a barrier a stage says when they are there; a second one says
//! that every plane has read them. Planes load fragments with `ldmatrix`, transposed where a line of the operand does not go
//! along `k`. A copy shuffles the vectors of a line by the number of the line, which keeps those loads free of bank conflicts.

use burn_cubecl::cubecl::prelude::barrier::Barrier;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, cubecl};

use super::bulk_tile::{BLOCK, SPAN};
use super::raster::tile_position;
use super::tile_map::tile_map;
use super::{BulkTile, GroupedError, Limits, Operands, Problem, Product};
use crate::cube::launch::{address_type, cube_count, storage};

/// Elements a unit of `mma` holds side by side.
const PAIR: usize = 2;

/// Elements of one vector of a line, the unit of the shuffle.
const VECTOR: usize = 8;

/// Bytes after which the shuffle of a copy repeats.
const ALIGNMENT: usize = 1024;

/// Rows and columns of a matrix that `ldmatrix` loads.
const MATRIX: usize = 8;

/// Where the tile of one operand lies. `x` is the row of the product for the left operand and the column for the right one.
#[derive(CubeType, Clone)]
struct Tile {
    /// The matrix, where there are several.
    matrix: usize,
    /// First `x`.
    begin: usize,
    /// Whether there are several matrices.
    #[cube(comptime)]
    stacked: bool,
    /// Whether a line goes along `k`, and not along `x`.
    #[cube(comptime)]
    along_k: bool,
    /// How many `x`.
    #[cube(comptime)]
    extent: usize,
}

pub(super) fn launch<R: CubeRuntime>(
    operands: Operands<R>,
    output: &CubeTensor<R>,
    tile: BulkTile,
) -> Result<(), GroupedError> {
    if !is_aligned(&operands.lhs) || !is_aligned(&operands.rhs) {
        return Err(GroupedError::Launch("a bulk copy of rows that do not begin at multiples of 16 bytes".into()));
    }
    let p = operands.problem();
    let Operands { product, lhs, rhs, offsets, .. } = operands;
    let (client, plane) = (&output.client, Limits::of(&output.client, p.dtype).plane);
    let dim = CubeDim::new_2d(plane as u32, tile.planes() as u32);
    let address = address_type(&[&lhs, &rhs, output]);
    let columns = p.width.div_ceil(tile.n());
    let target = output.clone().into_tensor_arg();
    let left = tensor_map(lhs, &p, product != Product::Outer, tile.m());
    let right = tensor_map(rhs, &p, product == Product::Transposed, tile.n());
    // SAFETY: copies fill what lies beyond an operand with zeros; writes are compared with the bounds of the output; cubes
    // beyond the last tile end at once.
    unsafe {
        if product == Product::Outer {
            let count = cube_count(client, p.lhs_width.div_ceil(tile.m()) * columns * p.experts);
            let types = [storage(p.dtype), storage(offsets.dtype)];
            let offsets = offsets.into_tensor_arg();
            outer_kernel::launch_unchecked(
                client, count, dim, address, PAIR, left, right, offsets, target, tile, types,
            );
        } else {
            let map = tile_map(&offsets, p.rows, tile.m());
            let count = cube_count(client, map.meta.shape()[0] * columns);
            let (map, transposed) = (map.into_tensor_arg(), product == Product::Transposed);
            rows_kernel::launch_unchecked(
                client,
                count,
                dim,
                address,
                PAIR,
                left,
                right,
                map,
                target,
                p.lhs_width,
                tile,
                transposed,
                storage(p.dtype),
            );
        }
    }
    Ok(())
}

/// Whether every row begins at a multiple of 16 bytes.
fn is_aligned<R: CubeRuntime>(operand: &CubeTensor<R>) -> bool {
    let (strides, bytes) = (operand.meta.strides(), operand.dtype.size());
    let steps = strides.iter().take(operand.meta.rank() - 1);
    operand.handle.offset_start.unwrap_or(0).is_multiple_of(16)
        && steps.map(|step| step * bytes).all(|step| step.is_multiple_of(16))
}

/// How copies find their way in an operand: `extent` lines of [`SPAN`] elements at once, or [`SPAN`] lines.
fn tensor_map<R: CubeRuntime>(
    operand: CubeTensor<R>,
    problem: &Problem,
    along_k: bool,
    extent: usize,
) -> TensorMapArg<R, Tiled> {
    let lines = if along_k { extent } else { SPAN };
    let mut sizes = vec![1; operand.meta.rank() - 2];
    sizes.extend([lines, SPAN]);
    let args = TiledArgs { tile_size: sizes.into() };
    TensorMapArg::new(args, operand.into_tensor_arg(), storage(problem.dtype)).with_swizzle(TensorMapSwizzle::B128)
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn rows_kernel<F: Float, N: Size>(
    lhs: &TensorMap<F, Tiled>,
    weight: &TensorMap<F, Tiled>,
    map: &Tensor<u32>,
    output: &mut Tensor<Vector<F, N>>,
    lhs_width: usize,
    #[comptime] tile: BulkTile,
    #[comptime] transposed: bool,
    #[define(F)] _type: StorageType,
) {
    let columns = output.shape(1).div_ceil(tile.n());
    if CUBE_POS >= map.shape(0) * columns {
        terminate!();
    }
    let (index, column) = tile_position(CUBE_POS, map.shape(0), columns);
    let expert = map[index * 3] as usize;
    let (begin, end) = (map[index * 3 + 1] as usize, map[index * 3 + 2] as usize);
    if begin >= end {
        terminate!();
    }
    let left = Tile { matrix: 0usize, begin, stacked: false, along_k: true, extent: comptime!(tile.m()) };
    let right = Tile {
        matrix: expert,
        begin: column * tile.n(),
        stacked: true,
        along_k: transposed,
        extent: comptime!(tile.n()),
    };
    let sums = multiply::<F, N>(lhs, &left, weight, &right, 0usize, lhs_width, tile);
    store::<F, N>(&sums, output, 0usize, begin, end, right.begin, output.shape(1), tile);
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn outer_kernel<F: Float, I: Int, N: Size>(
    lhs: &TensorMap<F, Tiled>,
    rhs: &TensorMap<F, Tiled>,
    offsets: &Tensor<I>,
    output: &mut Tensor<Vector<F, N>>,
    #[comptime] tile: BulkTile,
    #[define(F, I)] _types: [StorageType; 2],
) {
    let (d_in, d_out) = (output.shape(1), output.shape(2));
    let (lines, columns) = (d_in.div_ceil(tile.m()), d_out.div_ceil(tile.n()));
    let expert = CUBE_POS / (lines * columns);
    if expert >= output.shape(0) {
        terminate!();
    }
    let (line, column) = tile_position(CUBE_POS % (lines * columns), lines, columns);
    let left =
        Tile { matrix: 0usize, begin: line * tile.m(), stacked: false, along_k: false, extent: comptime!(tile.m()) };
    let right =
        Tile { matrix: 0usize, begin: column * tile.n(), stacked: false, along_k: false, extent: comptime!(tile.n()) };
    let (begin, end) = (usize::cast_from(offsets[expert]), usize::cast_from(offsets[expert + 1]));
    let sums = multiply::<F, N>(lhs, &left, rhs, &right, begin, end, tile);
    store::<F, N>(&sums, output, expert * d_in * d_out, left.begin, d_in, right.begin, d_out, tile);
}

/// A plane's sums of products over `k_begin..k_end`: for each of its blocks of 16 x 16 the left and the right half.
#[cube]
fn multiply<F: Float, N: Size>(
    lhs: &TensorMap<F, Tiled>,
    left: &Tile,
    rhs: &TensorMap<F, Tiled>,
    right: &Tile,
    k_begin: usize,
    k_end: usize,
    #[comptime] tile: BulkTile,
) -> Sequence<Array<Vector<f32, N>>> {
    let (lhs_size, rhs_size) = comptime!((left.extent * SPAN, right.extent * SPAN));
    let stages = comptime!(tile.stages);
    let mut lhs_tile = SharedMemory::<F>::new_aligned(comptime!(stages * lhs_size), ALIGNMENT);
    let mut rhs_tile = SharedMemory::<F>::new_aligned(comptime!(stages * rhs_size), ALIGNMENT);

    let mut full = Sequence::<Shared<Barrier>>::new();
    let mut free = Sequence::<Shared<Barrier>>::new();
    #[unroll]
    for _ in 0..stages {
        full.push(Barrier::shared_uninit());
        free.push(Barrier::shared_uninit());
    }
    if UNIT_POS == 0 {
        #[unroll]
        for stage in 0..stages {
            full.index(stage).init_manual(1u32);
            free.index(stage).init_manual(comptime!(tile.planes() as u32));
        }
        sync_async_proxy_shared();
    }
    sync_cube();

    let mut sums = Sequence::<Array<Vector<f32, N>>>::new();
    #[unroll]
    for _ in 0..comptime!(2 * tile.blocks[0] * tile.blocks[1]) {
        let mut sum = Array::<Vector<f32, N>>::new(2usize);
        sum[0] = Vector::new(0.0);
        sum[1] = Vector::new(0.0);
        sums.push(sum);
    }

    let steps = (k_end - k_begin).div_ceil(SPAN);
    if UNIT_POS == 0 {
        #[unroll]
        for stage in 0..stages {
            if stage < steps {
                let k = k_begin + comptime!(stage * SPAN);
                copy::<F>(lhs, left, k, &mut lhs_tile, comptime!(stage * lhs_size), full.index(stage));
                copy::<F>(rhs, right, k, &mut rhs_tile, comptime!(stage * rhs_size), full.index(stage));
                full.index(stage).arrive_and_expect_tx(1u32, comptime!(bytes(lhs_size + rhs_size)));
            }
        }
    }
    let mut phase = 0u32.runtime();
    for first in range_stepped(0usize, steps, stages) {
        #[unroll]
        for stage in 0..stages {
            let step = first + stage;
            if step < steps {
                full.index(stage).wait_parity(phase);
                let (lhs_start, rhs_start) = comptime!((stage * lhs_size, stage * rhs_size));
                if comptime!(!left.along_k && !right.along_k) {
                    // Rows of the next expert are not a part of this sum.
                    let here = k_end - k_begin - step * SPAN;
                    if here < SPAN {
                        clear::<F>(&mut lhs_tile, lhs_start, here, lhs_size, tile);
                        clear::<F>(&mut rhs_tile, rhs_start, here, rhs_size, tile);
                        sync_cube();
                    }
                }
                accumulate::<F, N>(
                    &lhs_tile,
                    lhs_start,
                    left.along_k,
                    &rhs_tile,
                    rhs_start,
                    right.along_k,
                    &mut sums,
                    tile,
                );
                sync_plane();
                if UNIT_POS_X == 0 {
                    free.index(stage).arrive();
                }
                // The stage before this one, which the other planes have had a step's time to leave.
                let before = comptime!((stage + stages - 1) % stages);
                if UNIT_POS == 0 && step > 0 && step - 1 + stages < steps {
                    let previous_phase = if comptime!(stage == 0) { 1 - phase } else { phase };
                    free.index(before).wait_parity(previous_phase);
                    let k = k_begin + (step - 1 + stages) * SPAN;
                    copy::<F>(lhs, left, k, &mut lhs_tile, comptime!(before * lhs_size), full.index(before));
                    copy::<F>(rhs, right, k, &mut rhs_tile, comptime!(before * rhs_size), full.index(before));
                    full.index(before).arrive_and_expect_tx(1u32, comptime!(bytes(lhs_size + rhs_size)));
                }
            }
        }
        phase = 1 - phase;
    }
    sums
}

/// Bytes of so many elements of two bytes.
fn bytes(elements: usize) -> u32 {
    2 * elements as u32
}

/// Asks for the tile at `k`. What lies beyond the operand arrives as zeros.
#[cube]
fn copy<F: Float>(
    source: &TensorMap<F, Tiled>,
    tile: &Tile,
    k: usize,
    target: &mut SharedMemory<F>,
    #[comptime] start: usize,
    full: &Shared<Barrier>,
) {
    if comptime!(tile.along_k) {
        let mut lines = target.slice_mut(start, comptime!(start + tile.extent * SPAN));
        copy_lines::<F>(source, tile, tile.begin, k, &mut lines, full);
    } else {
        #[unroll]
        for part in 0..comptime!(tile.extent / SPAN) {
            let here = comptime!(start + part * SPAN * SPAN);
            let mut lines = target.slice_mut(here, comptime!(here + SPAN * SPAN));
            copy_lines::<F>(source, tile, k, tile.begin + comptime!(part * SPAN), &mut lines, full);
        }
    }
}

#[cube]
fn copy_lines<F: Float>(
    source: &TensorMap<F, Tiled>,
    tile: &Tile,
    line: usize,
    position: usize,
    target: &mut SliceMut<F>,
    full: &Shared<Barrier>,
) {
    if comptime!(tile.stacked) {
        full.tma_load_3d(source, target, tile.matrix as i32, line as i32, position as i32);
    } else {
        full.tma_load_2d(source, target, line as i32, position as i32);
    }
}

/// Zeros in all lines from `first` on, of a tile whose lines do not go along `k`.
#[cube]
fn clear<F: Float>(
    target: &mut SharedMemory<F>,
    #[comptime] start: usize,
    first: usize,
    #[comptime] size: usize,
    #[comptime] tile: BulkTile,
) {
    for index in range_stepped(UNIT_POS as usize, size, comptime!(tile.planes() * 32)) {
        if index / SPAN % SPAN >= first {
            target[start + index] = F::new(0.0);
        }
    }
}

/// Adds the products of one stage.
#[cube]
fn accumulate<F: Float, N: Size>(
    lhs_tile: &SharedMemory<F>,
    #[comptime] lhs_start: usize,
    #[comptime] lhs_along_k: bool,
    rhs_tile: &SharedMemory<F>,
    #[comptime] rhs_start: usize,
    #[comptime] rhs_along_k: bool,
    sums: &mut Sequence<Array<Vector<f32, N>>>,
    #[comptime] tile: BulkTile,
) {
    let [down, across] = comptime!(tile.blocks);
    let plane = UNIT_POS_Y as usize;
    let row = plane / tile.planes[1] * comptime!(down * BLOCK);
    let column = plane % tile.planes[1] * comptime!(across * BLOCK);
    // Which of the four matrices of a load this unit addresses a line of, and which line.
    let (matrix, line) = (UNIT_POS_X as usize / MATRIX, UNIT_POS_X as usize % MATRIX);
    let (lhs_x, lhs_k) = (row + matrix % 2 * MATRIX, matrix / 2);
    let (rhs_x, rhs_k) = (column + matrix / 2 * MATRIX, matrix % 2);
    let mma = cmma::MmaDefinition::<F, F, f32>::new(16usize, 8usize, 16usize);

    #[unroll]
    for step in 0..comptime!(SPAN / BLOCK) {
        let mut left = Sequence::<Array<Vector<F, N>>>::new();
        #[unroll]
        for i in 0..down {
            let start = position(lhs_start, lhs_x + comptime!(i * BLOCK), step, lhs_k, line, lhs_along_k);
            let vector = lhs_tile.slice(start, start + VECTOR);
            left.push(mma.load_matrix::<F, N>(&vector, cmma::MatrixIdent::A, 4usize, comptime!(!lhs_along_k)));
        }
        #[unroll]
        for j in 0..across {
            let start = position(rhs_start, rhs_x + comptime!(j * BLOCK), step, rhs_k, line, rhs_along_k);
            let vector = rhs_tile.slice(start, start + VECTOR);
            let both = mma.load_matrix::<F, N>(&vector, cmma::MatrixIdent::B, 4usize, comptime!(!rhs_along_k));
            #[unroll]
            for half in 0..2usize {
                let mut right = Array::<Vector<F, N>>::new(2usize);
                right[0] = both[comptime!(2 * half)];
                right[1] = both[comptime!(2 * half + 1)];
                #[unroll]
                for i in 0..down {
                    let sum = sums.index_mut(comptime!((i * across + j) * 2 + half));
                    mma.execute_inplace(left.index(i), &right, sum);
                }
            }
        }
    }
}

/// Where in shared memory the vector lies that begins line `line` of a matrix of 8 x 8, for the blocks at `x` and `step`.
#[cube]
fn position(
    #[comptime] start: usize,
    x: usize,
    #[comptime] step: usize,
    k_half: usize,
    line: usize,
    #[comptime] along_k: bool,
) -> usize {
    if comptime!(along_k) {
        // Vectors of a line are shuffled by its number, of which `x` is a multiple of eight.
        start + (x + line) * SPAN + ((comptime!(step * 2) + k_half) ^ line) * VECTOR
    } else {
        let lines = comptime!(step * BLOCK) + k_half * MATRIX + line;
        start + x / SPAN * comptime!(SPAN * SPAN) + lines * SPAN + ((x % SPAN / VECTOR) ^ line) * VECTOR
    }
}

/// Writes a plane's sums into the matrix that begins at scalar `base` of the output.
#[cube]
fn store<F: Float, N: Size>(
    sums: &Sequence<Array<Vector<f32, N>>>,
    output: &mut Tensor<Vector<F, N>>,
    base: usize,
    row_begin: usize,
    row_end: usize,
    column_begin: usize,
    width: usize,
    #[comptime] tile: BulkTile,
) {
    let [down, across] = comptime!(tile.blocks);
    let (plane, unit) = (UNIT_POS_Y as usize, UNIT_POS_X as usize);
    let first_row = row_begin + plane / tile.planes[1] * comptime!(down * BLOCK) + unit / 4;
    let first_column = column_begin + plane % tile.planes[1] * comptime!(across * BLOCK) + unit % 4 * PAIR;
    #[unroll]
    for i in 0..down {
        #[unroll]
        for lower in 0..2usize {
            let row = first_row + comptime!(i * BLOCK + lower * MATRIX);
            if row < row_end {
                #[unroll]
                for j in 0..comptime!(2 * across) {
                    let column = first_column + comptime!(j * MATRIX);
                    if column < width {
                        let sum = sums.index(comptime!(i * 2 * across + j));
                        output[(base + row * width + column) / PAIR] = Vector::cast_from(sum[lower]);
                    }
                }
            }
        }
    }
}

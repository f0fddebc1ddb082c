//! Top-K: a few units share a row and find its best column `K` times, each time below the last one found.

use burn::tensor::DType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, cubecl};

use super::launch::{UNITS, address_type, cube_count, dims2, empty, rows_in_order, storage};

/// Units that share a row: eight read 32 bytes of f32 side by side, one transaction of a GPU.
const LANES: usize = 8;
const ROWS: usize = UNITS / LANES;

/// Columns `[T, K]` of type `indices` of the `k` largest of each row of `scores` `[T, E]`, best first.
///
/// The lower column wins a tie, a NaN ranks below every number. Scores are ranked as f32.
pub fn top_k_indices<R: CubeRuntime>(scores: CubeTensor<R>, k: usize, indices: DType) -> CubeTensor<R> {
    let [num_tokens, _] = dims2(&scores);
    let output = empty(&scores, [num_tokens, k], indices);
    if num_tokens == 0 {
        return output;
    }
    let scores = rows_in_order(scores);
    // SAFETY: rows beyond the last are neither read nor written, columns stay below the width.
    unsafe {
        top_k_kernel::launch_unchecked(
            &output.client,
            cube_count(&output.client, num_tokens.div_ceil(ROWS)),
            CubeDim::new_1d(UNITS as u32),
            address_type(&[&scores, &output]),
            scores.clone().into_tensor_arg(),
            output.clone().into_tensor_arg(),
            k,
            [storage(scores.dtype), storage(indices)],
        );
    }
    output
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn top_k_kernel<F: Float, I: Int>(
    scores: &Tensor<F>,
    output: &mut Tensor<I>,
    top_k: usize,
    #[define(F, I)] _types: [StorageType; 2],
) {
    let mut ranks = SharedMemory::<u32>::new(UNITS);
    let mut columns = SharedMemory::<u32>::new(UNITS);

    let unit = UNIT_POS as usize;
    let (lane, first) = (unit % LANES, unit / LANES * LANES);
    let row = CUBE_POS * ROWS + unit / LANES;
    let inside = row < output.shape(0);
    let (width, start) = (scores.shape(1), row * scores.stride(0));

    // Above every rank, so that the first pass may take any column.
    let mut last_rank = 0xffff_ffffu32.runtime();
    let mut last_column = 0u32.runtime();

    for k in 0..top_k {
        let mut best_rank = 0u32.runtime();
        let mut best_column = 0u32.runtime();
        if inside {
            for column in range_stepped(lane, width, LANES) {
                let rank = rank_of(f32::cast_from(scores[start + column]));
                let column = column as u32;
                let left = rank < last_rank || (rank == last_rank && column > last_column);
                if left && rank > best_rank {
                    best_rank = rank;
                    best_column = column;
                }
            }
        }
        ranks[unit] = best_rank;
        columns[unit] = best_column;
        sync_cube();

        last_rank = ranks[first];
        last_column = columns[first];
        #[unroll]
        for other in 1..LANES {
            let (rank, column) = (ranks[first + other], columns[first + other]);
            if rank > last_rank || (rank == last_rank && column < last_column) {
                last_rank = rank;
                last_column = column;
            }
        }
        if inside && lane == 0 {
            output[row * top_k + k] = I::cast_from(last_column);
        }
        sync_cube();
    }
}

/// An integer that orders as the numbers do: both zeros equal, NaN (1) below all numbers, nothing at 0.
///
/// On bits, since shader languages promise nothing about NaN in comparisons.
#[cube]
fn rank_of(value: f32) -> u32 {
    let bits = u32::reinterpret(value);
    let magnitude = bits & 0x7fff_ffff;
    let mut rank = 0x8000_0000u32 + magnitude;
    if bits != magnitude {
        rank = 0x8000_0000u32 - magnitude;
    }
    if magnitude > 0x7f80_0000 {
        rank = 1u32.runtime();
    }
    rank
}

//! The plan: a stable counting sort of the slots by expert that never leaves the device.
//!
//! Four launches. Slots are cut into blocks of [`UNITS`]; a matrix `[E, blocks]` counts each expert in each block; a
//! scan along the blocks and one along the experts say where the slots of an expert in a block begin; a slot's place
//! among those is the number of equal experts before it in its block. Nothing is added in an order that scheduling
//! decides, so the result is a function of the input.

use burn::tensor::{DType, Shape};
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::ops::reshape;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, cubecl};

use super::launch::{UNITS, address_type, cube_count, dims2, empty, flat, storage, zeros};
use crate::host_plan::check_slots;

/// The tensors of an [`ExpertPlan`](crate::ExpertPlan).
#[derive(Debug, Clone)]
pub struct PlanTensors<R: CubeRuntime> {
    /// First row of each expert and, last, `R`: `[E + 1]`.
    pub offsets: CubeTensor<R>,
    /// Slot `t * K + k` of each row: `[R]`.
    pub slot_of_row: CubeTensor<R>,
    /// Row of each slot: `[R]`.
    pub row_of_slot: CubeTensor<R>,
    /// Token of each row: `[R]`.
    pub token_of_row: CubeTensor<R>,
}

/// Sorts the slots of `experts` `[T, K]` by expert, within an expert by slot; the tensors are of type `indices`.
///
/// An index that is not below `num_experts` counts as the last expert, since a kernel cannot panic.
///
/// # Panics
///
/// Panics when `T * K`, or `E` times one more than the number of blocks, is not below `2^31`.
pub fn plan<R: CubeRuntime>(experts: CubeTensor<R>, num_experts: usize, indices: DType) -> PlanTensors<R> {
    let [num_tokens, top_k] = dims2(&experts);
    let slots = num_tokens * top_k;
    check_slots(slots);
    if slots == 0 {
        let [slot_of_row, row_of_slot, token_of_row] = [(); 3].map(|()| empty(&experts, [0], indices));
        let offsets = zeros(&experts, [num_experts + 1], indices);
        return PlanTensors { offsets, slot_of_row, row_of_slot, token_of_row };
    }
    let experts = flat(experts);
    let blocks = slots.div_ceil(UNITS);
    assert!(num_experts * (blocks + 1) < 1 << 31, "E = {num_experts} experts times {blocks} blocks are 2^31 or more");

    let counts = count_blocks(&experts, num_experts, blocks);
    let before = scan(&counts, [num_experts, blocks], Step { row: blocks, item: 1, first: 0 }, DType::U32);
    let totals = Step { row: 0, item: blocks + 1, first: blocks };
    let offsets = scan(&before, [1, num_experts], totals, indices);
    place(&experts, before, offsets, blocks, top_k)
}

/// How a scan walks over its input: element `j` of row `i` is at `first + i * row + j * item`.
struct Step {
    row: usize,
    item: usize,
    first: usize,
}

fn count_blocks<R: CubeRuntime>(experts: &CubeTensor<R>, num_experts: usize, blocks: usize) -> CubeTensor<R> {
    let counts = empty(experts, [num_experts, blocks], DType::U32);
    // SAFETY: cubes beyond the last block end at once, slots beyond the last are not read.
    unsafe {
        count_kernel::launch_unchecked(
            &counts.client,
            cube_count(&counts.client, blocks),
            CubeDim::new_1d(UNITS as u32),
            address_type(&[experts, &counts]),
            experts.clone().into_tensor_arg(),
            counts.clone().into_tensor_arg(),
            num_experts as u32,
            storage(experts.dtype),
        );
    }
    counts
}

/// Sums of the elements before each one of a row, and the row's sum as one more: `[rows, items]` to `[rows, items + 1]`.
fn scan<R: CubeRuntime>(input: &CubeTensor<R>, [rows, items]: [usize; 2], step: Step, dtype: DType) -> CubeTensor<R> {
    let output = empty(input, [rows, items + 1], dtype);
    // SAFETY: cubes beyond the last row end at once, units stay inside their row.
    unsafe {
        scan_kernel::launch_unchecked(
            &output.client,
            cube_count(&output.client, rows),
            CubeDim::new_1d(UNITS as u32),
            address_type(&[input, &output]),
            input.clone().into_tensor_arg(),
            output.clone().into_tensor_arg(),
            items,
            step.row,
            step.item,
            step.first,
            storage(dtype),
        );
    }
    output
}

fn place<R: CubeRuntime>(
    experts: &CubeTensor<R>,
    before: CubeTensor<R>,
    offsets: CubeTensor<R>,
    blocks: usize,
    top_k: usize,
) -> PlanTensors<R> {
    let (slots, dtype) = (experts.meta.num_elements(), offsets.dtype);
    let [slot_of_row, row_of_slot, token_of_row] = [(); 3].map(|()| empty(experts, [slots], dtype));
    // SAFETY: cubes beyond the last block end at once; rows are a permutation of the slots, so both stay in range.
    unsafe {
        place_kernel::launch_unchecked(
            &experts.client,
            cube_count(&experts.client, blocks),
            CubeDim::new_1d(UNITS as u32),
            address_type(&[experts, &before]),
            experts.clone().into_tensor_arg(),
            before.into_tensor_arg(),
            offsets.clone().into_tensor_arg(),
            slot_of_row.clone().into_tensor_arg(),
            row_of_slot.clone().into_tensor_arg(),
            token_of_row.clone().into_tensor_arg(),
            blocks,
            top_k as u32,
            [storage(experts.dtype), storage(dtype)],
        );
    }
    let [_, length] = dims2(&offsets);
    PlanTensors { offsets: reshape(offsets, Shape::new([length])), slot_of_row, row_of_slot, token_of_row }
}

/// Expert of a slot, in range whatever the input says.
#[cube]
fn expert_of<I: Int>(experts: &Tensor<I>, slot: usize, num_experts: u32) -> u32 {
    let expert = u32::cast_from(experts[slot]);
    select(expert < num_experts, expert, num_experts - 1)
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn count_kernel<I: Int>(
    experts: &Tensor<I>,
    counts: &mut Tensor<u32>,
    num_experts: u32,
    #[define(I)] _type: StorageType,
) {
    let blocks = counts.shape(1);
    if CUBE_POS >= blocks {
        terminate!();
    }
    let mut block = SharedMemory::<u32>::new(UNITS);
    let unit = UNIT_POS as usize;
    let slot = CUBE_POS * UNITS + unit;
    // A place after the last slot holds no expert.
    let mut mine = num_experts;
    if slot < experts.shape(0) * experts.shape(1) {
        mine = expert_of::<I>(experts, slot, num_experts);
    }
    block[unit] = mine;
    sync_cube();

    for expert in range_stepped(UNIT_POS, num_experts, UNITS as u32) {
        let mut count = 0u32.runtime();
        for i in 0..UNITS {
            count += u32::cast_from(block[i] == expert);
        }
        counts[expert as usize * blocks + CUBE_POS] = count;
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn scan_kernel<O: Int>(
    input: &Tensor<u32>,
    output: &mut Tensor<O>,
    items: usize,
    row_step: usize,
    item_step: usize,
    first: usize,
    #[define(O)] _type: StorageType,
) {
    let row = CUBE_POS;
    if row >= output.shape(0) {
        terminate!();
    }
    let mut sums = SharedMemory::<u32>::new(UNITS);
    let unit = UNIT_POS as usize;
    let share = items.div_ceil(UNITS);
    let begin = clamp_max(unit * share, items);
    let end = clamp_max(begin + share, items);
    let (source, target) = (first + row * row_step, row * (items + 1));

    let mut sum = 0u32.runtime();
    for i in begin..end {
        sum += input[source + i * item_step];
    }
    sums[unit] = sum;
    sync_cube();

    let mut running = 0u32.runtime();
    for i in 0..unit {
        running += sums[i];
    }
    for i in begin..end {
        output[target + i] = O::cast_from(running);
        running += input[source + i * item_step];
    }
    if unit == UNITS - 1 {
        output[target + items] = O::cast_from(running);
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn place_kernel<I: Int, O: Int>(
    experts: &Tensor<I>,
    before: &Tensor<u32>,
    offsets: &Tensor<O>,
    slot_of_row: &mut Tensor<O>,
    row_of_slot: &mut Tensor<O>,
    token_of_row: &mut Tensor<O>,
    blocks: usize,
    top_k: u32,
    #[define(I, O)] _types: [StorageType; 2],
) {
    if CUBE_POS >= blocks {
        terminate!();
    }
    let mut block = SharedMemory::<u32>::new(UNITS);
    let unit = UNIT_POS as usize;
    let slot = CUBE_POS * UNITS + unit;
    let inside = slot < row_of_slot.shape(0);
    let num_experts = before.shape(0) as u32;

    let mut expert = num_experts;
    if inside {
        expert = expert_of::<I>(experts, slot, num_experts);
    }
    block[unit] = expert;
    sync_cube();

    if inside {
        let mut rank = 0u32.runtime();
        for i in 0..unit {
            rank += u32::cast_from(block[i] == expert);
        }
        let expert = expert as usize;
        let row = u32::cast_from(offsets[expert]) + before[expert * (blocks + 1) + CUBE_POS] + rank;
        row_of_slot[slot] = O::cast_from(row);
        slot_of_row[row as usize] = O::cast_from(slot);
        token_of_row[row as usize] = O::cast_from(slot as u32 / top_k);
    }
}

#[cube]
fn clamp_max(value: usize, max: usize) -> usize {
    select(value < max, value, max)
}

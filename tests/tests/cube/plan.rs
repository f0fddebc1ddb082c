//! The counting sort at a size where every unit of a scan has more than one block to add up.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use moe_kernels::cube::plan;
use moe_kernels::reference;
use moe_tests::on_unfused_cube;

use crate::support::{host_ints, ints};

on_unfused_cube!(a_plan_of_many_blocks_is_a_stable_sort, an_expert_out_of_range_counts_as_the_last);

fn a_plan_of_many_blocks_is_a_stable_sort<R: CubeRuntime>(device: &R::Device) {
    const SLOTS: usize = 70_000; // more than 256 blocks of 256
    let chosen: Vec<usize> = (0..SLOTS).map(|slot| slot * slot % 31 % 11).collect();
    let plan = plan(ints::<R>(&chosen, &[SLOTS / 2, 2], device), 11, DType::I32);

    let slots = reference::sorted_slots(&chosen);
    assert_eq!(host_ints(plan.token_of_row), slots.iter().map(|slot| slot / 2).collect::<Vec<_>>());
    let rows = host_ints(plan.row_of_slot);
    assert!(slots.iter().enumerate().all(|(row, &slot)| rows[slot] == row));
    assert_eq!(host_ints(plan.slot_of_row), slots);
    let before = |e: usize| chosen.iter().filter(|&&c| c < e).count();
    assert_eq!(host_ints(plan.offsets), (0..=11).map(before).collect::<Vec<_>>());
}

/// Not an error, since a kernel cannot panic, but nothing out of bounds either.
fn an_expert_out_of_range_counts_as_the_last<R: CubeRuntime>(device: &R::Device) {
    let plan = plan(ints::<R>(&[0, 7, usize::MAX, 1], &[2, 2], device), 3, DType::I32);
    assert_eq!(host_ints(plan.offsets), [0, 1, 2, 4]);
    assert_eq!(host_ints(plan.slot_of_row), [0, 3, 1, 2]);
}

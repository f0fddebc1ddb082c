//! The counting sort at a size where every unit of a scan has more than one block to add up.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::ops::IntTensorOps;
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeRuntime;
use moe_kernels::cube::plan;
use moe_kernels::reference;
use moe_tests::on_unfused_cube;

use crate::support::{Plain, host_ints, ints};

on_unfused_cube!(
    a_plan_of_many_blocks_is_a_stable_sort,
    an_expert_out_of_range_counts_as_the_last,
    more_slots_than_an_index_holds_panic,
    more_counts_than_an_index_holds_panic,
);

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

fn message(action: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(action)).expect_err("it is too large");
    panic.downcast_ref::<String>().expect("a panic with a message").clone()
}

/// One number, seen `2^31` times.
fn more_slots_than_an_index_holds_panic<R: CubeRuntime>(device: &R::Device) {
    let experts = Plain::<R>::int_expand(ints::<R>(&[0], &[1, 1], device), Shape::new([1 << 30, 2]));
    let found = message(|| drop(plan(experts, 3, DType::I32)));
    assert_eq!(found, "T * K = 2147483648 slots are more than the 2147483647 that an index holds");
}

fn more_counts_than_an_index_holds_panic<R: CubeRuntime>(device: &R::Device) {
    let found = message(|| drop(plan(ints::<R>(&[0], &[1, 1], device), 1 << 30, DType::I32)));
    assert_eq!(found, "E = 1073741824 experts times 1 blocks are 2^31 or more");
}

//! The counting sort at a size where every unit of a scan has more than one block to add up.

use burn::tensor::ops::IntTensorOps;
use burn::tensor::{DType, TensorData};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, CubeRuntime, ops::into_data_sync};
use moe_kernels::cube::plan;
use moe_kernels::reference;
use moe_tests::on_unfused_cube;

type Plain<R> = CubeBackend<R, f32, i32, u32>;

on_unfused_cube!(a_plan_of_many_blocks_is_a_stable_sort, an_expert_out_of_range_counts_as_the_last);

fn ints<R: CubeRuntime>(tensor: CubeTensor<R>) -> Vec<usize> {
    into_data_sync(tensor).iter::<i64>().map(|i| i as usize).collect()
}

fn experts<R: CubeRuntime>(experts: Vec<i32>, top_k: usize, device: &R::Device) -> CubeTensor<R> {
    let shape = [experts.len() / top_k, top_k];
    Plain::<R>::int_from_data(TensorData::new(experts, shape), device)
}

fn a_plan_of_many_blocks_is_a_stable_sort<R: CubeRuntime>(device: &R::Device) {
    const SLOTS: usize = 70_000; // more than 256 blocks of 256
    let chosen: Vec<usize> = (0..SLOTS).map(|slot| slot * slot % 31 % 11).collect();
    let on_device = experts::<R>(chosen.iter().map(|&e| e as i32).collect(), 2, device);
    let plan = plan(on_device, 11, DType::I32);

    let slots = reference::sorted_slots(&chosen);
    assert_eq!(ints(plan.token_of_row), slots.iter().map(|slot| slot / 2).collect::<Vec<_>>());
    let rows = ints(plan.row_of_slot);
    assert!(slots.iter().enumerate().all(|(row, &slot)| rows[slot] == row));
    assert_eq!(ints(plan.slot_of_row), slots);
    let before = |e: usize| chosen.iter().filter(|&&c| c < e).count();
    assert_eq!(ints(plan.offsets), (0..=11).map(before).collect::<Vec<_>>());
}

/// Not an error, since a kernel cannot panic, but nothing out of bounds either.
fn an_expert_out_of_range_counts_as_the_last<R: CubeRuntime>(device: &R::Device) {
    let plan = plan(experts::<R>(vec![0, 7, -1, 1], 2, device), 3, DType::I32);
    assert_eq!(ints(plan.offsets), [0, 1, 2, 4]);
    assert_eq!(ints(plan.slot_of_row), [0, 3, 1, 2]);
}

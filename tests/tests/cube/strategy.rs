//! Which kernel is chosen, without any device.

use burn::tensor::DType;
use moe_kernels::cube::grouped::{
    Fragment, GroupedError, Kernel, Limits, MatrixTile, Problem, Product, TileShape, candidates, check, refusals,
};

/// A data centre GPU.
fn large_device() -> Limits {
    Limits { units: 1024, shared_memory: 48 * 1024, plane: 32, fragments: vec![Fragment::SQUARE], bulk_copies: false }
}

/// What WebGPU promises.
fn small_device() -> Limits {
    Limits { units: 256, shared_memory: 16 * 1024, plane: 0, fragments: Vec::new(), bulk_copies: false }
}

fn problem(rows: usize, experts: usize) -> Problem {
    Problem { product: Product::Plain, rows, experts, lhs_width: 512, width: 1024, dtype: DType::F16 }
}

#[test]
fn matrix_units_come_first_and_the_naive_kernel_last() {
    let kernels = candidates(&problem(8192, 8), &large_device());
    assert_eq!(kernels[0], Kernel::Cmma(MatrixTile::BROAD));
    assert!(kernels.contains(&Kernel::Tiled(TileShape::LARGE)));
    assert_eq!(kernels.last(), Some(&Kernel::Naive));
}

#[test]
fn without_matrix_units_for_the_type_tiles_come_first() {
    assert_eq!(candidates(&problem(8192, 8), &small_device())[0], Kernel::Tiled(TileShape::LARGE));
}

#[test]
fn little_load_gets_small_tiles() {
    assert_eq!(candidates(&problem(512, 64), &large_device())[0], Kernel::Cmma(MatrixTile::SMALL));
    assert_eq!(candidates(&problem(512, 64), &small_device())[0], Kernel::Tiled(TileShape::SMALL));
}

#[test]
fn the_load_of_an_expert_does_not_shrink_the_tiles_of_an_outer_product() {
    let outer = Problem { product: Product::Outer, ..problem(512, 64) };
    assert_eq!(candidates(&outer, &large_device())[0], Kernel::Cmma(MatrixTile::BROAD));
}

#[test]
fn a_small_product_is_left_to_the_naive_kernel() {
    let small = Problem { lhs_width: 8, width: 8, ..problem(16, 4) };
    assert_eq!(candidates(&small, &large_device()), [Kernel::Naive]);
}

#[test]
fn every_candidate_passes_the_check() {
    for limits in [large_device(), small_device(), Limits { shared_memory: 0, ..large_device() }] {
        for kernel in candidates(&problem(8192, 8), &limits) {
            assert_eq!(check(&kernel, &problem(8192, 8), &limits), Ok(()));
        }
    }
}

#[test]
fn a_device_without_matrix_units_says_so() {
    let error = check(&Kernel::Cmma(MatrixTile::LARGE), &problem(8192, 8), &small_device()).unwrap_err();
    assert!(matches!(&error, GroupedError::Unavailable(_)), "{error}");
    assert!(error.to_string().contains("the device has no matrix unit"), "{error}");
}

#[test]
fn a_tile_of_broken_blocks_is_invalid() {
    let tile = TileShape { unit_m: 3, ..TileShape::SMALL };
    let error = check(&Kernel::Tiled(tile), &problem(8192, 8), &large_device()).unwrap_err();
    assert!(matches!(error, GroupedError::Invalid(_)), "{error}");
}

#[test]
fn a_tile_beyond_the_device_names_the_limit() {
    let limits = Limits { units: 128, ..large_device() };
    let error = check(&Kernel::Tiled(TileShape::LARGE), &problem(8192, 8), &limits).unwrap_err();
    assert_eq!(error, GroupedError::Launch("256 units in a cube, 128 allowed".into()));
}

#[test]
fn what_the_sizes_ask_for_and_the_device_lacks_is_named() {
    assert_eq!(refusals(&problem(8192, 8), &large_device()), []);
    let reasons = refusals(&problem(8192, 8), &small_device());
    assert_eq!(reasons.len(), MatrixTile::ALL.len());
    assert!(reasons.iter().all(|reason| reason.to_string().contains("no matrix unit")), "{reasons:?}");

    let without_memory = Limits { shared_memory: 0, ..large_device() };
    let reasons = refusals(&problem(8192, 8), &without_memory);
    assert_eq!(candidates(&problem(8192, 8), &without_memory), [Kernel::Naive]);
    assert!(
        reasons.len() == MatrixTile::ALL.len() + TileShape::ALL.len()
            && reasons.iter().all(|reason| reason.to_string().contains("shared memory"))
    );
}

#[test]
fn nothing_is_missed_that_the_type_or_the_size_does_not_ask_for() {
    let single = Problem { dtype: DType::F32, ..problem(8192, 8) };
    let small = Problem { lhs_width: 8, width: 8, ..problem(16, 4) };
    assert_eq!(refusals(&single, &small_device()), []);
    assert_eq!(refusals(&small, &small_device()), []);
}

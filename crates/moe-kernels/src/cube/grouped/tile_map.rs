//! Which rows each tile of a product computes, found on the device.
//!
//! The host knows `R` and `E` but not the offsets: `ceil(R / tile) + E` tiles are enough for every load, since each
//! expert leaves at most one tile partly empty. Tiles nobody needs are empty and end at once.

use burn::tensor::DType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, cubecl};

use crate::cube::launch::{address_type, empty, one_unit_each, storage};

/// Tiles of `tile` rows that are enough for `rows` rows of `experts` experts.
pub(super) fn most_tiles(rows: usize, experts: usize, tile: usize) -> usize {
    rows.div_ceil(tile) + experts
}

/// Expert, first row and end of its expert's rows for each tile: `[most_tiles, 3]`, in the order of the rows.
pub(super) fn tile_map<R: CubeRuntime>(offsets: &CubeTensor<R>, rows: usize, tile: usize) -> CubeTensor<R> {
    let experts = offsets.meta.num_elements() - 1;
    let tiles = most_tiles(rows, experts, tile);
    let map = empty(offsets, [tiles, 3], DType::U32);
    let (count, dim) = one_unit_each(&map.client, tiles);
    // SAFETY: units beyond the last tile end at once.
    unsafe {
        tile_map_kernel::launch_unchecked(
            &map.client,
            count,
            dim,
            address_type(&[offsets, &map]),
            offsets.clone().into_tensor_arg(),
            map.clone().into_tensor_arg(),
            experts,
            tile as u32,
            storage(offsets.dtype),
        );
    }
    map
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn tile_map_kernel<I: Int>(
    offsets: &Tensor<I>,
    map: &mut Tensor<u32>,
    experts: usize,
    tile: u32,
    #[define(I)] _type: StorageType,
) {
    if ABSOLUTE_POS >= map.shape(0) {
        terminate!();
    }
    let index = ABSOLUTE_POS as u32;
    let mut first_tile = 0u32.runtime();
    let mut owner = 0u32.runtime();
    let mut begin = 0u32.runtime();
    let mut end = 0u32.runtime();
    for expert in 0..experts {
        let (start, stop) = (u32::cast_from(offsets[expert]), u32::cast_from(offsets[expert + 1]));
        let next_tile = first_tile + (stop - start).div_ceil(tile);
        if index >= first_tile && index < next_tile {
            owner = expert as u32;
            begin = start + (index - first_tile) * tile;
            end = stop;
        }
        first_tile = next_tile;
    }
    map[ABSOLUTE_POS * 3] = owner;
    map[ABSOLUTE_POS * 3 + 1] = begin;
    map[ABSOLUTE_POS * 3 + 2] = end;
}

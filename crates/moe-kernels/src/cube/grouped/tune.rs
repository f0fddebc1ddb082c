//! The tile shape by measurement.
//!
//! Only shapes of one family compete, and a family gives the same bits with each of its shapes on the same
//! instructions: what wins changes the time and not the result. A choice is made once for sizes of the same order of
//! magnitude, on the operands at hand, and kept in CubeCL's cache for the device.

use burn_cubecl::cubecl::ir::StorageType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::cubecl::tune::{LocalTuner, Tunable, TunableSet, TuneGroup, local_tuner};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, CubeTuneId, cubecl};
use serde::{Deserialize, Serialize};

use super::{BulkTile, Kernel, Limits, MatrixTile, Operands, Product, TileShape, launch};
use crate::cube::launch::storage;

/// What two products must share to share a tile shape.
#[derive(Hash, Eq, PartialEq, Debug, Clone, Serialize, Deserialize, AutotuneKey)]
struct GroupedAutotuneKey {
    product: Product,
    #[autotune(anchor)]
    rows: usize,
    #[autotune(anchor)]
    experts: usize,
    #[autotune(anchor)]
    lhs_width: usize,
    #[autotune(anchor)]
    width: usize,
    element: StorageType,
    matrix_units: bool,
    bulk_copies: bool,
}

/// Computes the product with the tile shape that is fastest for its sizes.
///
/// The first product of its sizes runs every shape of the best family the device has. Falls back from matrix units to
/// tiles where no shape can be set up; the smallest of these fits every device. The naive kernel does not compete.
pub fn tuned<R: CubeRuntime>(operands: Operands<R>) -> CubeTensor<R> {
    static TUNER: LocalTuner<GroupedAutotuneKey, CubeTuneId> = local_tuner!();

    let client = operands.lhs.client.clone();
    let id = CubeTuneId::new(&client, &operands.lhs.device);
    TUNER.execute(&id, &client, TUNER.init(shapes::<R>), operands)
}

fn shapes<R: CubeRuntime>() -> TunableSet<GroupedAutotuneKey, Operands<R>, CubeTensor<R>> {
    // A group of higher priority that succeeds leaves the others out; a negative one never runs.
    let bulk = TuneGroup::new("bulk", |key: &GroupedAutotuneKey| if key.bulk_copies { 2 } else { -1 });
    let matrix = TuneGroup::new("matrix", |key: &GroupedAutotuneKey| if key.matrix_units { 1 } else { -1 });
    let tiled = TuneGroup::new("tiled", |_: &GroupedAutotuneKey| 0);
    let candidate = |name: &str, kernel: Kernel, group| {
        let run = move |operands| launch(operands, &kernel).map_err(|error| error.to_string());
        Tunable::new(name, run).group(group, |_| 0)
    };
    let mut set = TunableSet::new_cloning_inputs(key::<R>);
    for (name, tile) in TileShape::ALL {
        set = set.with(candidate(&format!("tiled_{name}"), Kernel::Tiled(tile), &tiled));
    }
    for (name, tile) in MatrixTile::ALL {
        set = set.with(candidate(&format!("matrix_{name}"), Kernel::Cmma(tile), &matrix));
    }
    for (name, tile) in BulkTile::ALL {
        set = set.with(candidate(&format!("bulk_{name}"), Kernel::Bulk(tile), &bulk));
    }
    set
}

fn key<R: CubeRuntime>(operands: &Operands<R>) -> GroupedAutotuneKey {
    let p = operands.problem();
    let limits = Limits::of(&operands.lhs.client, p.dtype);
    let matrix_units = !limits.fragments.is_empty();
    let bulk_copies = BulkTile::MEDIUM.check(&p, &limits).is_ok();
    let (product, element) = (p.product, storage(p.dtype));
    GroupedAutotuneKey::new(product, p.rows, p.experts, p.lhs_width, p.width, element, matrix_units, bulk_copies)
}

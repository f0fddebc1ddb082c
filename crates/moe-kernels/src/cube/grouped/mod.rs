//! Grouped products: rows sorted by expert times the matrix of their expert, both transposes.
//!
//! One family of kernels, driven by offsets that stay on the device. [`product()`] chooses; [`launch`] runs the
//! kernel it is told to.

mod bulk;
mod bulk_tile;
mod cmma;
mod error;
mod fallback;
mod matrix_tile;
mod naive;
mod problem;
mod raster;
mod strategy;
mod tile_map;
mod tile_shape;
mod tiled;
mod tune;
mod window;

pub use bulk_tile::BulkTile;
pub use error::GroupedError;
pub use matrix_tile::{Fragment, MatrixTile};
pub use problem::{Operands, Problem, Product};
pub use strategy::{Kernel, Limits, candidates, check, refusals};
pub use tile_shape::TileShape;
pub use tune::tuned;

use burn_cubecl::CubeRuntime;
use burn_cubecl::ops::reshape;
use burn_cubecl::tensor::CubeTensor;

use crate::cube::launch::zeros;

/// From this many multiplications on, a product is worth trying out every tile shape once.
const WORTH_TUNING: usize = 1 << 27;

/// Computes the product with the best kernel of the device: the first of [`candidates`], or for a large product the one
/// that [`tuned`] measures.
///
/// When a kernel cannot be set up, the next candidate takes its place, which the log is told once for every reason; the
/// naive one always can.
pub fn product<R: CubeRuntime>(operands: Operands<R>) -> CubeTensor<R> {
    let problem = operands.problem();
    let limits = Limits::of(&operands.lhs.client, problem.dtype);
    refusals(&problem, &limits).iter().for_each(fallback::warn_once);
    let kernels = candidates(&problem, &limits);
    if problem.multiplications() >= WORTH_TUNING && kernels[0] != Kernel::Naive {
        return tuned(operands);
    }
    let kernels = kernels.into_iter();
    let run = |kernel| launch(operands.clone(), &kernel).inspect_err(fallback::warn_once).ok();
    let mut outputs = kernels.filter_map(run);
    outputs.next().expect("the naive kernel needs nothing of the device")
}

/// Computes the product with `kernel`.
///
/// # Errors
///
/// Says why the device cannot run the kernel; nothing was launched then.
pub fn launch<R: CubeRuntime>(operands: Operands<R>, kernel: &Kernel) -> Result<CubeTensor<R>, GroupedError> {
    let problem = operands.problem();
    check(kernel, &problem, &Limits::of(&operands.lhs.client, problem.dtype))?;
    let output = operands.output();
    if output.meta.num_elements() == 0 {
        return Ok(output);
    }
    if problem.rows == 0 || problem.lhs_width == 0 {
        return Ok(zeros(&output, output.meta.shape().clone(), output.dtype));
    }
    let operands = operands.readable();
    match *kernel {
        Kernel::Naive => naive::launch(operands, &output),
        Kernel::Tiled(tile) => tiled::launch(operands, &output, tile),
        Kernel::Cmma(tile) => cmma::launch(operands, &output, tile),
        Kernel::Bulk(tile) => bulk::launch(operands, &output, tile)?,
    }
    Ok(output)
}

/// `lhs` `[.., M, K]` times `rhs` `[.., K, N]`, where each pair of matrices is an expert of `M` rows; `offsets` says so: `0, M, 2M, ..`.
pub fn batched_product<R: CubeRuntime>(
    lhs: CubeTensor<R>,
    rhs: CubeTensor<R>,
    offsets: CubeTensor<R>,
) -> CubeTensor<R> {
    let (mut shape, inner) = (lhs.meta.shape().clone(), rhs.meta.shape().clone());
    let last = shape.num_dims() - 1;
    let (rows, experts) = (shape[..last].iter().product(), shape[..last - 1].iter().product());
    let (k, n) = (shape[last], inner[last]);
    shape[last] = n;
    let (lhs, rhs) = (reshape(lhs, [rows, k].into()), reshape(rhs, [experts, k, n].into()));
    reshape(product(Operands { product: Product::Plain, rows, partial: false, lhs, rhs, offsets }), shape)
}

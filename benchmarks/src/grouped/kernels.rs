//! The kernels on the device.

use burn::tensor::{DType, Distribution, Tensor, TensorPrimitive};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use moe_kernels::cube::grouped::{Kernel, Limits, MatrixTile, Operands, Product, TileShape, check, launch};
use moe_train::backend::Device;

use super::study::{KernelRecord, ProductRecord};
use crate::args::GroupedArgs;
use crate::clock::{Clock, Spread, timed};
use crate::data::mixed;
use crate::error::{Error, Result};
use crate::layer::Shape;
use crate::session::wait;

#[cfg(feature = "cuda")]
type Runtime = moe_tests::CudaRuntime;
#[cfg(all(feature = "wgpu", not(feature = "cuda")))]
type Runtime = moe_tests::WgpuRuntime;
type B = CubeBackend<Runtime, f32, i32, u32>;

/// Rows that are enough to tell a right product from a wrong one: the naive kernel has to compute them too.
const VERIFIED_ROWS: usize = 1024;
/// Largest difference to the naive kernel over the largest number: both round to the type, and sum in another order.
const TOLERANCE: f32 = 0.01;
/// Seed of the assignment of rows to experts.
const LOADS: u64 = 7;

/// A grouped product of the layer.
struct Task {
    name: &'static str,
    product: Product,
    /// Columns of the left rows, and of the right rows or of the output.
    widths: [usize; 2],
}

/// The six products of a layer of width `d` with SwiGLU experts of width `f`.
fn tasks(d: usize, f: usize) -> [Task; 6] {
    let task = |name, product, widths| Task { name, product, widths };
    [
        task("x W_in", Product::Plain, [d, 2 * f]),
        task("h W_out", Product::Plain, [f, d]),
        task("dy W_out^T", Product::Transposed, [d, f]),
        task("dz W_in^T", Product::Transposed, [2 * f, d]),
        task("x^T dz", Product::Outer, [d, 2 * f]),
        task("h^T dy", Product::Outer, [f, d]),
    ]
}

impl Task {
    fn operands(&self, loads: &[usize], dtype: DType, device: &Device) -> Operands<Runtime> {
        let (rows, experts, [left, right]) = (loads.iter().sum(), loads.len(), self.widths);
        let rhs = match self.product {
            Product::Plain => random([experts, left, right], dtype, device),
            Product::Transposed => random([experts, right, left], dtype, device),
            Product::Outer => random([rows, right], dtype, device),
        };
        let mut offsets = vec![0i32];
        for &load in loads {
            offsets.push(offsets[offsets.len() - 1] + load as i32);
        }
        let offsets = Tensor::<B, 1, burn::tensor::Int>::from_ints(offsets.as_slice(), device).into_primitive();
        Operands { product: self.product, rows, lhs: random([rows, left], dtype, device), rhs, offsets }
    }

    /// The dense product of the same FLOPs: all rows times one matrix.
    fn dense(&self, rows: usize, dtype: DType, device: &Device) -> [Tensor<B, 2>; 2] {
        let ([left, right], matrix) =
            (self.widths, |shape| Tensor::from_primitive(TensorPrimitive::Float(random(shape, dtype, device))));
        match self.product {
            Product::Plain => [matrix([rows, left]), matrix([left, right])],
            Product::Transposed => [matrix([rows, left]), matrix([right, left]).transpose()],
            Product::Outer => [matrix([rows, left]).transpose(), matrix([rows, right])],
        }
    }
}

fn random<const D: usize>(shape: [usize; D], dtype: DType, device: &Device) -> CubeTensor<Runtime> {
    Tensor::<B, D>::random(shape, Distribution::Uniform(-1.0, 1.0), device).cast(dtype).into_primitive().tensor()
}

/// Rows of each expert: as even as chance makes them, or `1 / (e + 1)^skew`.
fn loads(rows: usize, experts: usize, skew: f64) -> Vec<usize> {
    let shares: Vec<f64> = (0..experts).map(|e| ((e + 1) as f64).powf(-skew)).collect();
    let total: f64 = shares.iter().sum();
    let mut loads = vec![0; experts];
    for row in 0..rows {
        let mut left = f64::from(mixed(row, LOADS)) / f64::from(u32::MAX) * total;
        let chosen = shares.iter().position(|share| {
            left -= share;
            left <= 0.0
        });
        loads[chosen.unwrap_or(experts - 1)] += 1;
    }
    loads
}

/// Every kernel but the naive one, under a name.
fn kernels() -> Vec<(String, Kernel)> {
    let matrix = MatrixTile::ALL.into_iter().flat_map(|(name, tile)| {
        [1, 2].map(|stages| {
            let tile = MatrixTile { stages, ..tile };
            (format!("matrix {name} {}x{}, {stages} stages", tile.m(), tile.n()), Kernel::Cmma(tile))
        })
    });
    let tiled = TileShape::ALL
        .into_iter()
        .map(|(name, tile)| (format!("tiled {name} {}x{}", tile.m, tile.n), Kernel::Tiled(tile)));
    matrix.chain(tiled).collect()
}

/// Verifies and times all kernels the device can run, on all products of the layer.
pub(super) fn measure(shape: &Shape, args: &GroupedArgs, device: &Device) -> Result<Vec<ProductRecord>> {
    let (case, dtype) = (shape.case, DType::from(args.dtype));
    tasks(case.d_model, case.d_hidden)
        .iter()
        .map(|task| {
            let few = loads(shape.rows().min(VERIFIED_ROWS), case.experts, args.skew);
            let usable = verified(task, &task.operands(&few, dtype, device))?;
            let operands = task.operands(&loads(shape.rows(), case.experts, args.skew), dtype, device);
            let flops = 2.0 * operands.problem().multiplications() as f64;
            let [lhs, rhs] = task.dense(shape.rows(), dtype, device);
            let dense = time(args, device, || drop(lhs.clone().matmul(rhs.clone())))?;
            let record = |kernel, seconds: Spread| {
                let tflops = flops / seconds.median / 1e12;
                KernelRecord { kernel, seconds, tflops, of_dense: dense.median / seconds.median }
            };
            let mut kernels = vec![record("burn matmul, dense".into(), dense)];
            for (name, kernel) in usable {
                let seconds = time(args, device, || drop(launch(operands.clone(), &kernel)))?;
                kernels.push(record(name, seconds));
            }
            Ok(ProductRecord { product: task.name, flops, kernels })
        })
        .collect()
}

/// The kernels that can run, after each has been compared with the naive one.
fn verified(task: &Task, operands: &Operands<Runtime>) -> Result<Vec<(String, Kernel)>> {
    let (problem, limits) = (operands.problem(), Limits::of(&operands.lhs.client, operands.lhs.dtype));
    let mut usable = kernels();
    usable.retain(|(_, kernel)| check(kernel, &problem, &limits).is_ok());
    let run = |kernel: &Kernel| launch(operands.clone(), kernel).map_err(|error| Error::of(task.name, error));
    let expected = flat(run(&Kernel::Naive)?);
    let largest = expected.clone().abs().max().into_scalar();
    for (name, kernel) in &usable {
        let difference = (flat(run(kernel)?) - expected.clone()).abs().max().into_scalar();
        // A NaN is no number below the tolerance.
        if !(difference <= TOLERANCE * largest) {
            return Err(Error::new(format!("{}: {name} is off by {difference} of {largest}", task.name)));
        }
    }
    Ok(usable)
}

/// The numbers in f32.
fn flat(tensor: CubeTensor<Runtime>) -> Tensor<B, 1> {
    let count = tensor.meta.num_elements();
    let tensor = burn_cubecl::ops::reshape(tensor, [count].into());
    Tensor::<B, 1>::from_primitive(TensorPrimitive::Float(tensor)).cast(DType::F32)
}

fn time(args: &GroupedArgs, device: &Device, mut run: impl FnMut()) -> Result<Spread> {
    let mut times = Vec::new();
    for round in 0..args.common.warm_up() + args.common.rounds() {
        wait::<B>(device)?;
        let (result, time) = timed(|| {
            run();
            wait::<B>(device)
        });
        result?;
        if round >= args.common.warm_up() {
            times.push(Clock::Wall.of(&time));
        }
    }
    Ok(Spread::of(times))
}

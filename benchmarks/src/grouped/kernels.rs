//! The kernels on the device.

use std::cell::RefCell;

use burn::tensor::{DType, Distribution, Tensor, TensorPrimitive};
use burn_cubecl::CubeBackend;
use burn_cubecl::ops::into_data_sync;
use burn_cubecl::tensor::CubeTensor;
use moe_kernels::cube::grouped::{BulkTile, Kernel, Limits, MatrixTile, Operands, Product, TileShape, check, launch};
use moe_train::backend::Device;

use super::study::{KernelRecord, ProductRecord};
use super::torch_products::TorchProducts;
use crate::args::GroupedArgs;
use crate::clock::{Clock, Spread, Time, timed};
use crate::data::mixed;
use crate::error::{Error, Result};
use crate::layer::Shape;
use crate::session::wait;

#[cfg(feature = "cuda")]
type Runtime = moe_tests::CudaRuntime;
#[cfg(all(feature = "wgpu", not(feature = "cuda")))]
type Runtime = moe_tests::WgpuRuntime;
type B = CubeBackend<Runtime, f32, i32, u32>;

/// Sizes that are enough to tell a right product from a wrong one: the naive kernel has to compute it too, and the host to compare.
const VERIFIED_ROWS: usize = 1024;
const VERIFIED_EXPERTS: usize = 3;
const VERIFIED_WIDTH: usize = 4096;
/// Largest difference to the naive kernel over the largest number: both round to the type, and sum in another order.
const TOLERANCE: f32 = 0.01;
/// Products that are launched one after the other before the device is waited for: in a layer, too, nobody waits in between.
const REPEATS: usize = 8;
/// Seed of the assignment of rows to experts.
const LOADS: u64 = 7;

/// A grouped product of the layer.
#[derive(Clone, Copy)]
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

/// What the products are called.
pub(super) fn names() -> [&'static str; 6] {
    tasks(1, 1).map(|task| task.name)
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
        Operands { product: self.product, rows, partial: false, lhs: random([rows, left], dtype, device), rhs, offsets }
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

/// Those on matrix units, the usual one also without a second stage, or where there are no matrix units the tiled ones.
fn kernels(limits: &Limits, containing: &str) -> Vec<(String, Kernel)> {
    let matrix = |name: &str, tile: MatrixTile| {
        (format!("matrix {name} {}x{}, {} stages", tile.m(), tile.n(), tile.stages), Kernel::Cmma(tile))
    };
    let tiled = |(name, tile): (&str, TileShape)| (format!("tiled {name} {}x{}", tile.m, tile.n), Kernel::Tiled(tile));
    let mut kernels = Vec::new();
    if limits.fragments.is_empty() {
        kernels.extend(TileShape::ALL.map(tiled));
    } else {
        kernels.push(matrix("large", MatrixTile { stages: 1, ..MatrixTile::LARGE }));
        kernels.extend(MatrixTile::ALL.map(|(name, tile)| matrix(name, tile)));
        let bulk = |(name, tile): (&str, BulkTile)| {
            (format!("bulk {name} {}x{}, {} stages", tile.m(), tile.n(), tile.stages), Kernel::Bulk(tile))
        };
        kernels.extend(BulkTile::ALL.map(bulk));
    }
    kernels.retain(|(name, _)| name.contains(containing));
    kernels
}

/// Someone who computes a product again and again, and how long [`REPEATS`] of them took.
type Contestant<'a> = (String, Box<dyn FnMut() -> Result<Time> + 'a>);

/// Verifies and times all kernels the device can run, on all products of the layer, with PyTorch taking turns if it is there.
pub(super) fn measure(
    shape: &Shape,
    args: &GroupedArgs,
    device: &Device,
    mut torch: Option<&mut TorchProducts>,
) -> Result<Vec<ProductRecord>> {
    let (case, dtype) = (shape.case, DType::from(args.dtype));
    let chosen = tasks(case.d_model, case.d_hidden).into_iter().filter(|task| task.name.contains(&args.only));
    let mut records = Vec::new();
    for task in chosen {
        let peer = torch.as_deref_mut().map(RefCell::new);
        let usable = verified(&task, shape.rows(), args, case.experts, device)?;
        let loads = loads(shape.rows(), case.experts, args.skew);
        let operands = task.operands(&loads, dtype, device);
        let flops = 2.0 * operands.problem().multiplications() as f64;
        let [lhs, rhs] = task.dense(shape.rows(), dtype, device);
        let mut contestants: Vec<Contestant<'_>> = vec![(
            "burn matmul, dense".into(),
            Box::new(move || repeated(device, || drop(lhs.clone().matmul(rhs.clone())))),
        )];
        for (name, kernel) in usable {
            let operands = operands.clone();
            let run = move || drop(launch(operands.clone(), &kernel));
            contestants.push((name, Box::new(move || repeated(device, &run))));
        }
        if let Some(peer) = &peer {
            let product = format!("{:?}", task.product).to_lowercase();
            for name in peer.borrow_mut().set_up(&product, task.widths, &loads, args.dtype, args.common.threads)? {
                let asked = name.clone();
                contestants.push((name, Box::new(move || peer.borrow_mut().run(&asked, REPEATS))));
            }
        }
        records.push(ProductRecord { product: task.name, flops, kernels: take_turns(args, flops, &mut contestants)? });
    }
    Ok(records)
}

/// The time of [`REPEATS`] products and the wait for the last.
fn repeated(device: &Device, product: impl Fn()) -> Result<Time> {
    wait::<B>(device)?;
    let (result, time) = timed(|| {
        (0..REPEATS).for_each(|_| product());
        wait::<B>(device)
    });
    result.map(|()| time)
}

/// The kernels that can run, after each has been compared with the naive one on a few rows of a few experts.
fn verified(
    task: &Task,
    rows: usize,
    args: &GroupedArgs,
    experts: usize,
    device: &Device,
) -> Result<Vec<(String, Kernel)>> {
    let small = Task { widths: task.widths.map(|width| width.min(VERIFIED_WIDTH)), ..*task };
    let loads = loads(rows.min(VERIFIED_ROWS), experts.min(VERIFIED_EXPERTS), args.skew);
    let operands = small.operands(&loads, args.dtype.into(), device);
    let (problem, limits) = (operands.problem(), Limits::of(&operands.lhs.client, operands.lhs.dtype));
    let mut usable = kernels(&limits, &args.kernel);
    usable.retain(|(_, kernel)| check(kernel, &problem, &limits).is_ok());
    let run = |kernel: &Kernel| {
        let output = launch(operands.clone(), kernel).map_err(|error| Error::of(task.name, error))?;
        Ok::<_, Error>(into_data_sync(output).iter::<f32>().collect::<Vec<f32>>())
    };
    let expected = run(&Kernel::Naive)?;
    let largest = expected.iter().fold(0.0, |most: f32, number| most.max(number.abs()));
    for (name, kernel) in &usable {
        let found = run(kernel)?;
        // A NaN is not below the tolerance.
        let right = |(found, expected): (&f32, &f32)| (found - expected).abs() <= TOLERANCE * largest;
        if let Some(wrong) = found.iter().zip(&expected).position(|pair| !right(pair)) {
            let (found, expected) = (found[wrong], expected[wrong]);
            return Err(Error::new(format!("{}: {name} computes {found} where {expected} is right", task.name)));
        }
    }
    Ok(usable)
}

/// The times of all contestants, who take turns, round by round; the first one's rate is what theirs are compared with.
fn take_turns(args: &GroupedArgs, flops: f64, contestants: &mut [Contestant<'_>]) -> Result<Vec<KernelRecord>> {
    let mut times = vec![Vec::new(); contestants.len()];
    for round in 0..args.common.warm_up() + args.common.rounds() {
        for ((_, run), times) in contestants.iter_mut().zip(&mut times) {
            let time = run()?;
            if round >= args.common.warm_up() {
                times.push(Clock::Wall.of(&time) / REPEATS as f64);
            }
        }
    }
    let spreads: Vec<Spread> = times.into_iter().map(Spread::of).collect();
    let dense = spreads[0].median;
    let record = |((name, _), seconds): (&Contestant<'_>, Spread)| {
        let tflops = flops / seconds.median / 1e12;
        KernelRecord { kernel: name.clone(), seconds, tflops, of_dense: dense / seconds.median }
    };
    Ok(contestants.iter().zip(spreads).map(record).collect())
}

//! Which kernels may compute a product, best first: a pure function of the problem and the device.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl::client::ComputeClient;
use burn_cubecl::cubecl::ir::features::{MmaConfig, Tma};
use burn_cubecl::cubecl::ir::{ElemType, FloatKind, StorageType};

use super::{BulkTile, Fragment, GroupedError, MatrixTile, Problem, Product, TileShape};

/// How a product is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// One unit an element: the ground truth, and the last resort.
    Naive,
    /// Shared memory and registers, any float.
    Tiled(TileShape),
    /// Matrix units, f16 and bf16, sums in f32.
    Cmma(MatrixTile),
    /// Matrix units fed by bulk copies, f16 and bf16, sums in f32: Hopper and later.
    Bulk(BulkTile),
}

/// What of a device decides between kernels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Units a cube may have.
    pub units: usize,
    /// Bytes of shared memory a cube may have.
    pub shared_memory: usize,
    /// Units of a plane; 0 where planes differ in size, so that a kernel cannot count on one.
    pub plane: usize,
    /// Shapes the matrix units multiply for the type of the problem with sums in f32.
    pub fragments: Vec<Fragment>,
    /// Whether whole tiles of the type can be copied into shared memory at once, and loaded from there for the `mma` instruction.
    pub bulk_copies: bool,
}

impl Limits {
    /// Of the device behind `client`, for operands of type `dtype`.
    pub fn of<R: CubeRuntime>(client: &ComputeClient<R>, dtype: DType) -> Self {
        let (properties, input) = (client.properties(), StorageType::from(dtype));
        let sum = StorageType::from(ElemType::Float(FloatKind::F32));
        let configs = properties.features.matmul.cmma.iter();
        let usable = configs.filter(|c| c.a_type == input && c.b_type == input && c.cd_type == sum);
        let hardware = &properties.hardware;
        let matmul = &properties.features.matmul;
        let mma = |c: &&MmaConfig| {
            c.a_type == input && c.b_type == input && c.cd_type == sum && (c.m, c.n, c.k) == (16, 8, 16)
        };
        let same = hardware.plane_size_min == hardware.plane_size_max;
        Self {
            units: hardware.max_units_per_cube as usize,
            shared_memory: hardware.max_shared_memory_size,
            plane: if same { hardware.plane_size_max as usize } else { 0 },
            fragments: usable.map(|c| Fragment { m: c.m as usize, n: c.n as usize, k: c.k as usize }).collect(),
            bulk_copies: properties.features.tma.contains(Tma::Base)
                && matmul.ldmatrix.contains(&input)
                && same
                && hardware.plane_size_max == 32
                && matmul.mma.iter().any(|c| mma(&c)),
        }
    }
}

/// Below this many multiplications a product is one wave of the naive kernel on any GPU, and tiles would be mostly
/// padding.
const SMALL: usize = 1 << 14;

/// Kernels for `problem`, best first and the naive one last; all of them pass [`check`].
pub fn candidates(problem: &Problem, limits: &Limits) -> Vec<Kernel> {
    let mut kernels = on_hopper(problem);
    kernels.extend(wanted(problem));
    kernels.retain(|kernel| check(kernel, problem, limits).is_ok());
    kernels.push(Kernel::Naive);
    kernels
}

/// Why the device cannot run what would be better than the first of [`candidates`].
pub fn refusals(problem: &Problem, limits: &Limits) -> Vec<GroupedError> {
    wanted(problem).iter().map_while(|kernel| check(kernel, problem, limits).err()).collect()
}

/// What is better still where a device has bulk copies. That it has none is no fault of it.
fn on_hopper(problem: &Problem) -> Vec<Kernel> {
    let halves = matches!(problem.dtype, DType::F16 | DType::BF16);
    let worth_it = halves && problem.multiplications() > SMALL;
    if worth_it { BulkTile::for_problem(problem).map(Kernel::Bulk).into() } else { Vec::new() }
}

/// What the sizes and the type ask for of any device, best first.
fn wanted(problem: &Problem) -> Vec<Kernel> {
    let mut kernels = Vec::new();
    if problem.multiplications() > SMALL {
        if matches!(problem.dtype, DType::F16 | DType::BF16) {
            kernels.extend(MatrixTile::for_problem(problem).map(Kernel::Cmma));
        }
        kernels.extend(TileShape::for_problem(problem).map(Kernel::Tiled));
    }
    kernels
}

/// Whether the device can run `kernel` on `problem`.
///
/// # Errors
///
/// Says what the device lacks, what is wrong with the tile shape, or which limit is exceeded.
pub fn check(kernel: &Kernel, problem: &Problem, limits: &Limits) -> Result<(), GroupedError> {
    let bytes = problem.dtype.size();
    let (units, shared_memory) = match kernel {
        Kernel::Naive => return Ok(()),
        Kernel::Tiled(tile) => {
            tile.check()?;
            (tile.units(), tile.shared_bytes(bytes))
        }
        Kernel::Cmma(tile) => {
            tile.check(limits)?;
            (tile.planes() * limits.plane, tile.shared_bytes(bytes))
        }
        Kernel::Bulk(tile) => {
            tile.check(problem, limits)?;
            (tile.planes() * limits.plane, tile.shared_bytes(bytes))
        }
    };
    if units > limits.units {
        return Err(GroupedError::Launch(format!("{units} units in a cube, {} allowed", limits.units)));
    }
    if shared_memory > limits.shared_memory {
        let allowed = limits.shared_memory;
        return Err(GroupedError::Launch(format!("{shared_memory} bytes of shared memory, {allowed} allowed")));
    }
    Ok(())
}

impl Problem {
    /// Rows and columns of the product of one expert with the average load.
    pub(super) fn typical_tile(&self) -> [usize; 2] {
        let load = self.rows.div_ceil(self.experts);
        [if self.product == Product::Outer { self.lhs_width } else { load }, self.width]
    }
}

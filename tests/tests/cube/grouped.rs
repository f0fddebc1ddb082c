//! Every kernel of the grouped product, each by name, against the loop over rows.

use burn::tensor::DType;
use burn::tensor::ops::FloatTensorOps;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use moe_kernels::cube::grouped::{
    BulkTile, Kernel, Limits, MatrixTile, Operands, Product, TileShape, check, launch, tuned,
};
use moe_kernels::reference;
use moe_tests::{assert_close, on_unfused_cube};

use crate::support::{Plain, assert_within, data, floats, host, ints, rounding, types};

/// Rows of each expert and the sizes of its matrix.
struct Load {
    name: &'static str,
    rows: &'static [usize],
    d_in: usize,
    d_out: usize,
}

const LOADS: &[Load] = &[
    Load { name: "several tiles each", rows: &[70, 64, 33], d_in: 40, d_out: 72 },
    Load { name: "one expert owns all", rows: &[0, 150, 0], d_in: 20, d_out: 8 },
    Load { name: "skewed, odd sizes", rows: &[1, 0, 131, 2], d_in: 19, d_out: 35 },
    Load { name: "many small experts", rows: &[3; 20], d_in: 40, d_out: 33 },
    // More lines of tiles than are worked on together, and more than one column.
    Load { name: "bands of tiles", rows: &[300, 5, 290], d_in: 24, d_out: 136 },
    Load { name: "bands of tiles of a weight", rows: &[9, 4], d_in: 330, d_out: 72 },
];

const PRODUCTS: [Product; 3] = [Product::Plain, Product::Transposed, Product::Outer];

impl Load {
    fn num_rows(&self) -> usize {
        self.rows.iter().sum()
    }

    /// Shapes of both operands.
    fn shapes(&self, product: Product) -> [Vec<usize>; 2] {
        let (rows, weight) = (self.num_rows(), vec![self.rows.len(), self.d_in, self.d_out]);
        match product {
            Product::Plain => [vec![rows, self.d_in], weight],
            Product::Transposed => [vec![rows, self.d_out], weight],
            Product::Outer => [vec![rows, self.d_in], vec![rows, self.d_out]],
        }
    }

    fn operands<R: CubeRuntime>(&self, product: Product, dtype: DType, device: &R::Device) -> Operands<R> {
        let [lhs, rhs] = self.shapes(product);
        let mut offsets = vec![0];
        for &rows in self.rows {
            offsets.push(offsets[offsets.len() - 1] + rows);
        }
        Operands {
            product,
            partial: false,
            rows: self.num_rows(),
            lhs: floats::<R>(&lhs, 1, dtype, device),
            rhs: floats::<R>(&rhs, 2, dtype, device),
            offsets: ints::<R>(&offsets, &[offsets.len()], device),
        }
    }

    /// The product of the rounded operands by the loop over rows, in f64.
    fn expected(&self, product: Product, dtype: DType) -> Vec<f64> {
        let [lhs, rhs] = self.shapes(product);
        let [lhs, rhs] =
            [(lhs, 1), (rhs, 2)].map(|(shape, seed)| data(&shape, seed, dtype).iter().collect::<Vec<f64>>());
        let experts: Vec<usize> = (self.rows.iter().enumerate()).flat_map(|(e, &rows)| vec![e; rows]).collect();
        let (weights, rows) =
            (vec![0.0; self.rows.len() * self.d_in * self.d_out], vec![0.0; experts.len() * self.d_in]);
        let grads = |rows: &[f64], weight: &[f64], grad: &[f64]| {
            reference::grouped_matmul_grad(rows, weight, grad, self.d_in, self.d_out, &experts)
        };
        match product {
            Product::Plain => reference::grouped_matmul(&lhs, &rhs, self.d_in, self.d_out, &experts),
            Product::Transposed => grads(&rows, &rhs, &lhs).0,
            Product::Outer => grads(&lhs, &weights, &rhs).1,
        }
    }
}

/// Every kernel the device can run on these operands.
fn kernels<R: CubeRuntime>(operands: &Operands<R>) -> Vec<Kernel> {
    let problem = operands.problem();
    let limits = Limits::of(&operands.lhs.client, problem.dtype);
    let tiles = TileShape::ALL.map(|(_, tile)| Kernel::Tiled(tile));
    let stages = |stages| MatrixTile::ALL.map(|(_, tile)| Kernel::Cmma(MatrixTile { stages, ..tile }));
    let bulk = BulkTile::ALL.map(|(_, tile)| Kernel::Bulk(tile));
    let all = [Kernel::Naive].into_iter().chain(tiles).chain(stages(1)).chain(stages(2)).chain(bulk);
    all.filter(|kernel| check(kernel, &problem, &limits).is_ok()).collect()
}

on_unfused_cube!(
    every_kernel_matches_the_loop,
    the_tile_shape_does_not_change_a_bit,
    two_launches_give_the_same_bits,
    tuning_changes_the_time_only,
    rows_with_gaps_are_read_in_place,
);

fn every_kernel_matches_the_loop<R: CubeRuntime>(device: &R::Device) {
    for dtype in types::<R>(device) {
        for (load, product) in LOADS.iter().flat_map(|load| PRODUCTS.map(|product| (load, product))) {
            let operands = load.operands::<R>(product, dtype, device);
            let expected = load.expected(product, dtype);
            for kernel in kernels(&operands) {
                let output = host(launch(operands.clone(), &kernel).unwrap());
                let what = format!("{}, {product:?}, {dtype:?}, {kernel:?}", load.name);
                assert_within(&what, &output, &expected, rounding(dtype));
            }
        }
    }
}

fn the_tile_shape_does_not_change_a_bit<R: CubeRuntime>(device: &R::Device) {
    for (load, product) in LOADS[..3].iter().flat_map(|load| PRODUCTS.map(|product| (load, product))) {
        let operands = load.operands::<R>(product, DType::F32, device);
        let tiled = kernels(&operands).into_iter().filter(|kernel| matches!(kernel, Kernel::Tiled(_)));
        let outputs: Vec<_> = tiled.map(|kernel| host(launch(operands.clone(), &kernel).unwrap())).collect();
        assert!(outputs.len() >= 2, "the small and the medium tile fit every device");
        assert!(outputs.windows(2).all(|pair| pair[0] == pair[1]), "{}, {product:?}", load.name);
    }
}

fn two_launches_give_the_same_bits<R: CubeRuntime>(device: &R::Device) {
    for (dtype, product) in types::<R>(device).into_iter().flat_map(|dtype| PRODUCTS.map(|product| (dtype, product))) {
        // Odd sizes, and ones that every kernel takes.
        for load in [&LOADS[2], &LOADS[0]] {
            let operands = load.operands::<R>(product, dtype, device);
            for kernel in kernels(&operands) {
                let run = || host(launch(operands.clone(), &kernel).unwrap());
                assert_eq!(run(), run(), "{}, {product:?}, {dtype:?}, {kernel:?}", load.name);
            }
        }
    }
}

fn tuning_changes_the_time_only<R: CubeRuntime>(device: &R::Device) {
    for product in PRODUCTS {
        let operands = LOADS[0].operands::<R>(product, DType::F32, device);
        let expected = host(launch(operands.clone(), &Kernel::Tiled(TileShape::SMALL)).unwrap());
        assert_eq!(host(tuned(operands)), expected, "{product:?}");
    }
}

/// A weight of which every second matrix is used, and rows that are columns of a wider matrix.
fn rows_with_gaps_are_read_in_place<R: CubeRuntime>(device: &R::Device) {
    let load = &LOADS[0];
    for product in PRODUCTS {
        let dense = load.operands::<R>(product, DType::F32, device);
        let expected = host(launch(dense.clone(), &Kernel::Naive).unwrap());
        for kernel in kernels(&dense) {
            let strided =
                Operands { lhs: widened(dense.lhs.clone()), rhs: widened(dense.rhs.clone()), ..dense.clone() };
            let output = host(launch(strided, &kernel).unwrap());
            assert_close(&format!("{product:?}, {kernel:?}"), &output, &expected);
        }
    }
}

/// The same numbers with strides of a tensor twice as wide.
fn widened<R: CubeRuntime>(tensor: CubeTensor<R>) -> CubeTensor<R> {
    let (rank, shape) = (tensor.meta.rank(), tensor.meta.shape().clone());
    let twice = Plain::<R>::float_cat(vec![tensor.clone(), tensor], rank - 1);
    let ranges: Vec<_> = (0..rank).map(|dim| (0..shape[dim]).into()).collect();
    Plain::<R>::float_slice(twice, &ranges)
}

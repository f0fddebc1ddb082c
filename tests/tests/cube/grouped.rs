//! Every kernel of the grouped product against the naive one, and that one against the loop.

use burn::tensor::ops::FloatTensorOps;
use burn::tensor::{DType, Int, Tensor, TensorData};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, CubeRuntime, ops::into_data_sync};
use moe_kernels::cube::grouped::{Kernel, Limits, Operands, Product, TileShape, check, launch};
use moe_kernels::reference;
use moe_tests::{assert_close, on_unfused_cube, random};

type Plain<R> = CubeBackend<R, f32, i32, u32>;

/// Rows of each expert and the sizes of its matrix.
struct Load {
    name: &'static str,
    rows: &'static [usize],
    d_in: usize,
    d_out: usize,
}

const LOADS: &[Load] = &[
    Load { name: "several tiles each", rows: &[70, 64, 33], d_in: 36, d_out: 72 },
    Load { name: "one expert owns all", rows: &[0, 150, 0], d_in: 20, d_out: 8 },
    Load { name: "skewed, odd sizes", rows: &[1, 0, 131, 2], d_in: 19, d_out: 35 },
    Load { name: "many small experts", rows: &[3; 20], d_in: 40, d_out: 33 },
];

const PRODUCTS: [Product; 3] = [Product::Plain, Product::Transposed, Product::Outer];

const TILES: [TileShape; 3] = [TileShape::SMALL, TileShape::MEDIUM, TileShape::LARGE];

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
        let mut offsets = vec![0i32];
        for &rows in self.rows {
            offsets.push(offsets[offsets.len() - 1] + rows as i32);
        }
        let offsets = Tensor::<Plain<R>, 1, Int>::from_data(offsets.as_slice(), device);
        Operands {
            product,
            lhs: floats::<R>(&lhs, 1, dtype, device),
            rhs: floats::<R>(&rhs, 2, dtype, device),
            offsets: offsets.into_primitive(),
        }
    }

    /// The product by the loop over rows, in f64.
    fn expected(&self, product: Product) -> Vec<f64> {
        let [lhs, rhs] = self.shapes(product).map(|shape| shape.iter().product());
        let (lhs, rhs) = (random(lhs, 1), random(rhs, 2));
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

fn floats<R: CubeRuntime>(shape: &[usize], seed: u64, dtype: DType, device: &R::Device) -> CubeTensor<R> {
    let data = TensorData::new(random(shape.iter().product(), seed), shape.to_vec()).convert_dtype(dtype);
    Plain::<R>::float_from_data(data, device)
}

fn host<R: CubeRuntime>(tensor: CubeTensor<R>) -> Vec<f64> {
    into_data_sync(tensor).iter::<f64>().collect()
}

on_unfused_cube!(
    the_naive_kernel_matches_the_loop,
    every_tile_shape_gives_the_bits_of_every_other,
    tiles_match_the_naive_kernel,
);

fn the_naive_kernel_matches_the_loop<R: CubeRuntime>(device: &R::Device) {
    for load in LOADS {
        for product in PRODUCTS {
            let output = launch(load.operands::<R>(product, DType::F32, device), &Kernel::Naive).unwrap();
            assert_close(&format!("{}, {product:?}", load.name), &host(output), &load.expected(product));
        }
    }
}

fn tiles_match_the_naive_kernel<R: CubeRuntime>(device: &R::Device) {
    for load in LOADS {
        for product in PRODUCTS {
            let operands = load.operands::<R>(product, DType::F32, device);
            let expected = host(launch(operands.clone(), &Kernel::Naive).unwrap());
            let output = launch(operands, &Kernel::Tiled(TileShape::SMALL)).unwrap();
            assert_close(&format!("{}, {product:?}", load.name), &host(output), &expected);
        }
    }
}

fn every_tile_shape_gives_the_bits_of_every_other<R: CubeRuntime>(device: &R::Device) {
    for load in &LOADS[..3] {
        for product in PRODUCTS {
            let operands = load.operands::<R>(product, DType::F32, device);
            let limits = Limits::of(&operands.lhs.client, DType::F32);
            let fitting =
                TILES.map(Kernel::Tiled).into_iter().filter(|k| check(k, &operands.problem(), &limits).is_ok());
            let mut outputs = fitting.map(|kernel| host(launch(operands.clone(), &kernel).unwrap()));
            let first = outputs.next().expect("the small tile fits every device");
            assert!(outputs.all(|output| output == first), "{}, {product:?}", load.name);
        }
    }
}

//! The floor on a processor: the bare matrix products of the layer by the `gemm` crate, expert by expert, on rows that
//! are gathered already, into outputs that are allocated already.
//!
//! With `n` rows, an expert's products `[m, k] x [k, n]` are, forward, `[n, D] x [D, 2F]` and `[n, F] x [F, D]`; backward,
//! `[n, D] x [D, F]` and `[n, 2F] x [2F, D]` for the rows, `[D, n] x [n, 2F]` and `[F, n] x [n, D]` for the weights.

use rayon::prelude::*;

use super::contest::{Contestant, Pass, Side};
use super::matrix::{Matrix, Product};
use crate::clock::{Time, timed};
use crate::data::hashed;
use crate::error::{Error, Result};
use moe_kernels::with_threads_awake;
use moe_tests::Case;
use moe_train::backend::Plain;

/// How several threads share the products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// All threads work on one product after the other.
    Products,
    /// Each expert belongs to one thread.
    Experts,
}

/// The products of one expert.
struct Expert {
    forward: [Product; 2],
    backward: [Product; 4],
}

/// The floor under one way to share the work.
pub(crate) struct Floor {
    threads: usize,
    sharing: Sharing,
    experts: Vec<Expert>,
}

impl Floor {
    /// `loads` are the rows of each expert, `[E]`.
    pub(crate) fn new(case: &Case, loads: &[usize], threads: usize, sharing: Sharing) -> Self {
        let experts = loads.iter().filter(|&&rows| rows > 0).map(|&rows| Expert::new(case, rows)).collect();
        Self { threads, sharing, experts }
    }

    /// Runs everything once and compares samples of every product with sums in f64.
    pub(crate) fn verify(&mut self) -> Result<()> {
        self.compute(Pass::Training);
        let products = self.experts.iter().flat_map(Expert::products);
        match products.map(Product::worst_error).max_by(f64::total_cmp).unwrap_or(0.0) {
            worst if worst <= moe_tests::RELATIVE => Ok(()),
            worst => Err(Error::new(format!("the floor's products are wrong: relative error {worst:e}"))),
        }
    }

    fn compute(&mut self, pass: Pass) {
        match self.sharing {
            Sharing::Experts => self.experts.par_iter_mut().for_each(|expert| expert.compute(pass, 1)),
            Sharing::Products => self.experts.iter_mut().for_each(|expert| expert.compute(pass, self.threads)),
        }
    }
}

impl Contestant for Floor {
    fn name(&self) -> String {
        match self.sharing {
            _ if self.threads == 1 => "gemm".into(),
            Sharing::Products => "gemm, threads share products".into(),
            Sharing::Experts => "gemm, threads share experts".into(),
        }
    }

    fn side(&self) -> Side {
        Side::Products
    }

    fn run(&mut self, pass: Pass) -> Result<Time> {
        Ok(timed(|| with_threads_awake::<Plain, _>(|| self.compute(pass))).1)
    }
}

impl Expert {
    fn new(case: &Case, n: usize) -> Self {
        let (d, f) = (case.d_model, case.d_hidden);
        let matrix = |rows, columns, seed| Matrix::new(hashed(rows * columns, seed, 1.0), rows, columns);
        let (x, a) = (|| matrix(n, d, 1), || matrix(n, f, 2));
        let (w_in, w_out) = (|| matrix(d, 2 * f, 3), || matrix(f, d, 4));
        let (grad_output, grad_z) = (|| matrix(n, d, 5), || matrix(n, 2 * f, 6));
        Self {
            forward: [Product::new(x(), w_in()), Product::new(a(), w_out())],
            backward: [
                Product::new(grad_output(), w_out().transposed()),
                Product::new(grad_z(), w_in().transposed()),
                Product::new(x().transposed(), grad_z()),
                Product::new(a().transposed(), grad_output()),
            ],
        }
    }

    fn compute(&mut self, pass: Pass, threads: usize) {
        self.forward.iter_mut().for_each(|product| product.compute(threads));
        if pass == Pass::Training {
            self.backward.iter_mut().for_each(|product| product.compute(threads));
        }
    }

    fn products(&self) -> impl Iterator<Item = &Product> {
        self.forward.iter().chain(&self.backward)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Shape;
    use super::*;

    fn floor(shape: &str, loads: &[usize], sharing: Sharing) -> Floor {
        Floor::new(&shape.parse::<Shape>().unwrap().case, loads, 2, sharing)
    }

    #[test]
    fn the_products_have_the_flops_of_the_layer() {
        let shape: Shape = "10,7,9,3,2".parse().unwrap();
        let floor = floor("10,7,9,3,2", &[12, 0, 8], Sharing::Products);
        let flops = |products: fn(&Expert) -> &[Product]| -> u64 {
            floor.experts.iter().flat_map(products).map(Product::flops).sum()
        };
        let (forward, backward) = (flops(|expert| &expert.forward), flops(|expert| &expert.backward));
        assert_eq!((forward, forward + backward), (shape.forward_flops(), shape.training_flops()));
    }

    #[test]
    fn products_are_right_however_threads_share_them() {
        for sharing in [Sharing::Products, Sharing::Experts] {
            floor("64,40,24,3,1", &[33, 1, 30], sharing).verify().unwrap();
        }
    }

    #[test]
    fn a_wrong_product_is_found() {
        let mut floor = floor("64,40,24,2,1", &[32, 32], Sharing::Products);
        floor.verify().unwrap();
        floor.experts[1].backward[3].output.fill(0.0);
        let products = floor.experts.iter().flat_map(Expert::products);
        assert!(products.map(Product::worst_error).fold(0.0, f64::max) > 0.1);
    }
}

//! One matrix product by the `gemm` crate, with a check that does not trust it.

use gemm::{Parallelism, gemm};

/// Entries of a product that are compared with a sum in f64.
const SAMPLES: usize = 16;

/// A matrix in memory, possibly seen transposed.
pub(crate) struct Matrix {
    numbers: Vec<f32>,
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl Matrix {
    /// `numbers` row after row.
    pub(crate) fn new(numbers: Vec<f32>, rows: usize, columns: usize) -> Self {
        assert_eq!(numbers.len(), rows * columns, "a matrix [{rows}, {columns}]");
        Self { numbers, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// The same memory with rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    fn at(&self, row: usize, column: usize) -> f64 {
        f64::from(self.numbers[row * self.row_stride + column * self.column_stride])
    }
}

/// `lhs x rhs`, written to the same memory every time.
pub(crate) struct Product {
    lhs: Matrix,
    rhs: Matrix,
    pub(super) output: Vec<f32>,
}

impl Product {
    /// # Panics
    ///
    /// Panics when the inner sizes differ.
    pub(crate) fn new(lhs: Matrix, rhs: Matrix) -> Self {
        assert_eq!(lhs.columns, rhs.rows, "the inner sizes of a product");
        let output = vec![0.0; lhs.rows * rhs.columns];
        Self { lhs, rhs, output }
    }

    /// A multiplication and an addition are two.
    #[cfg(test)]
    pub(crate) fn flops(&self) -> u64 {
        2 * (self.lhs.rows * self.lhs.columns * self.rhs.columns) as u64
    }

    #[expect(unsafe_code, reason = "gemm takes pointers")]
    pub(crate) fn compute(&mut self, threads: usize) {
        let Self { lhs, rhs, output } = self;
        let parallelism = if threads == 1 { Parallelism::None } else { Parallelism::Rayon(threads) };
        // SAFETY: sizes and strides are those the three vectors were made with.
        unsafe {
            gemm(
                lhs.rows,
                rhs.columns,
                lhs.columns,
                output.as_mut_ptr(),
                1,
                rhs.columns as isize,
                false,
                lhs.numbers.as_ptr(),
                lhs.column_stride as isize,
                lhs.row_stride as isize,
                rhs.numbers.as_ptr(),
                rhs.column_stride as isize,
                rhs.row_stride as isize,
                0.0,
                1.0,
                false,
                false,
                false,
                parallelism,
            );
        }
    }

    /// Largest error of some entries, of other columns each, relative to the sum of their terms' sizes; NaN if there is one.
    pub(crate) fn worst_error(&self) -> f64 {
        let (len, step) = (self.output.len(), self.output.len() / SAMPLES + 1);
        let entries = (0..SAMPLES.min(len)).map(|sample| sample * step % len);
        entries.map(|entry| self.error(entry)).max_by(f64::total_cmp).unwrap_or(0.0)
    }

    fn error(&self, entry: usize) -> f64 {
        let (row, column) = (entry / self.rhs.columns, entry % self.rhs.columns);
        let terms = (0..self.lhs.columns).map(|inner| self.lhs.at(row, inner) * self.rhs.at(inner, column));
        let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
        (f64::from(self.output[entry]) - sum).abs() / f64::max(size, f64::MIN_POSITIVE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_by_hand() {
        // [1 2; 3 4] x [5 6; 7 8]^T
        let lhs = Matrix::new(vec![1.0, 2.0, 3.0, 4.0], 2, 2);
        let rhs = Matrix::new(vec![5.0, 6.0, 7.0, 8.0], 2, 2).transposed();
        let mut product = Product::new(lhs, rhs);
        product.compute(1);
        assert_eq!(product.output, [17.0, 23.0, 39.0, 53.0]);
        assert_eq!((product.flops(), product.worst_error()), (16, 0.0));
    }

    #[test]
    #[should_panic(expected = "inner sizes")]
    fn sizes_that_do_not_fit_panic() {
        let matrix = |rows, columns| Matrix::new(vec![0.0; rows * columns], rows, columns);
        Product::new(matrix(2, 3), matrix(2, 3));
    }
}

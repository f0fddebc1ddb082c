//! One matrix product spread over the threads.

use rayon::prelude::*;

use super::gemm::{Mat, MatMut, Onto, gemm, gemm_unset};
use super::unset::Unset;

/// Rows of a thread's share at least: a product of fewer runs at a lower rate.
const MIN_ROWS: usize = 64;

/// `lhs rhs`, row-major. Each thread computes some of the rows, so the numbers are the same on any number of threads.
pub(crate) fn product(lhs: Mat<'_>, rhs: Mat<'_>) -> Vec<f32> {
    let [rows, columns] = [lhs.shape()[0], rhs.shape()[1]];
    let height = rows_of_a_share(rows);
    let mut output = Unset::new(rows * columns);
    let shares = output.slots(rows * columns).par_chunks_mut((height * columns).max(1)).enumerate();
    shares.for_each(|(i, slots)| {
        let first = i * height;
        gemm_unset(slots, lhs.rows(first..first + slots.len() / columns), rhs);
    });
    // SAFETY: the shares are all rows, and a product was written to each.
    unsafe { output.assume_set(rows * columns) }
}

/// Adds `lhs rhs` to `base`, row-major, as [`product`] computes it.
pub(crate) fn add_product(base: &mut [f32], lhs: Mat<'_>, rhs: Mat<'_>) {
    let [rows, columns] = [lhs.shape()[0], rhs.shape()[1]];
    assert_eq!(base.len(), rows * columns, "what is added to must be of the shape of the product");
    let height = rows_of_a_share(rows);
    base.par_chunks_mut((height * columns).max(1)).enumerate().for_each(|(i, base)| {
        let (first, rows) = (i * height, base.len() / columns);
        gemm(MatMut::new(base, rows, columns), Onto::Add, lhs.rows(first..first + rows), rhs);
    });
}

fn rows_of_a_share(rows: usize) -> usize {
    rows.div_ceil(rayon::current_num_threads().min(rows / MIN_ROWS).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 37) % 19) as f32 - 9.0).collect()
    }

    /// Whole numbers, whose sums are exact.
    #[test]
    fn the_product_is_that_of_rows_and_columns_on_any_number_of_threads() {
        for [m, k, n] in [[1, 1, 1], [130, 7, 5], [257, 3, 33], [0, 4, 4], [4, 0, 4]] {
            let (a, b) = (numbers(m * k), numbers(k * n));
            let entry = |i: usize| (0..k).map(|p| a[i / n * k + p] * b[p * n + i % n]).sum::<f32>();
            let expected: Vec<f32> = (0..m * n).map(entry).collect();
            for threads in [1, 2, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads are to be had");
                pool.install(|| {
                    let (lhs, rhs) = (Mat::new(&a, m, k), Mat::new(&b, k, n));
                    assert_eq!(product(lhs, rhs), expected);
                    let mut sum: Vec<f32> = (0..m * n).map(|i| i as f32).collect();
                    add_product(&mut sum, lhs, rhs);
                    assert!(
                        sum.iter().zip(&expected).enumerate().all(|(i, (sum, product))| *sum == product + i as f32)
                    );
                });
            }
        }
    }

    #[test]
    fn a_transposed_factor_is_a_view() {
        let (a, b) = (numbers(6 * 200), numbers(6 * 4));
        let turned: Vec<f32> = (0..200 * 6).map(|i| a[i % 6 * 200 + i / 6]).collect();
        let expected = product(Mat::new(&turned, 200, 6), Mat::new(&b, 6, 4));
        assert_eq!(product(Mat::new(&a, 6, 200).t(), Mat::new(&b, 6, 4)), expected);
    }
}

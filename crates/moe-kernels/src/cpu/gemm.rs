//! Matrix products on strided slices: the one place that calls the `gemm` crate.

use std::mem::MaybeUninit;
use std::ops::Range;

use gemm::Parallelism;

use super::unset::written;

/// A matrix that is read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mat<'a> {
    data: &'a [f32],
    shape: [usize; 2],
    strides: [usize; 2],
}

/// A row-major matrix that is written.
#[derive(Debug)]
pub(crate) struct MatMut<'a> {
    data: &'a mut [f32],
    shape: [usize; 2],
    row_stride: usize,
}

impl<'a> Mat<'a> {
    /// Row after row, without gaps.
    pub(crate) fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::strided(data, rows, columns, columns)
    }

    /// Row `i` starts at `i * row_stride`.
    pub(crate) fn strided(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert_fits(data.len(), [rows, columns], [row_stride, 1]);
        Self { data, shape: [rows, columns], strides: [row_stride, 1] }
    }

    /// Rows and columns.
    pub(crate) fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Some of the rows, a view.
    pub(crate) fn rows(self, range: Range<usize>) -> Self {
        assert!(range.end <= self.shape[0], "rows {range:?} of a matrix {:?}", self.shape);
        let start = (range.start * self.strides[0]).min(self.data.len());
        Self { data: &self.data[start..], shape: [range.len(), self.shape[1]], strides: self.strides }
    }

    /// The transpose, a view.
    pub(crate) fn t(self) -> Self {
        let ([rows, columns], [down, right]) = (self.shape, self.strides);
        Self { data: self.data, shape: [columns, rows], strides: [right, down] }
    }
}

impl<'a> MatMut<'a> {
    /// Row after row, without gaps.
    pub(crate) fn new(data: &'a mut [f32], rows: usize, columns: usize) -> Self {
        Self::strided(data, rows, columns, columns)
    }

    /// Row `i` starts at `i * row_stride`, which is at least the number of columns.
    pub(crate) fn strided(data: &'a mut [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(row_stride >= columns, "rows of a matrix that is written must not overlap");
        assert_fits(data.len(), [rows, columns], [row_stride, 1]);
        Self { data, shape: [rows, columns], row_stride }
    }
}

fn assert_fits(len: usize, shape: [usize; 2], strides: [usize; 2]) {
    let last = shape.iter().zip(strides).map(|(size, stride)| size.saturating_sub(1) * stride).sum::<usize>();
    assert!(shape.contains(&0) || last < len, "a matrix {shape:?} with strides {strides:?} does not fit {len} numbers");
}

/// What happens to the numbers that are in the destination already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Onto {
    /// They are not read.
    Overwrite,
    /// The product is added to them.
    Add,
}

/// `dst = lhs rhs` or `dst += lhs rhs`, on the calling thread.
pub(crate) fn gemm(dst: MatMut<'_>, onto: Onto, lhs: Mat<'_>, rhs: Mat<'_>) {
    // SAFETY: the destination is borrowed mutably and holds numbers; `MatMut` has checked that they are there.
    unsafe { product(dst.data.as_mut_ptr(), dst.shape, dst.row_stride, onto, lhs, rhs) }
}

/// `lhs rhs` row after row in memory that holds nothing yet.
pub(crate) fn gemm_unset<'a>(slots: &'a mut [MaybeUninit<f32>], lhs: Mat<'_>, rhs: Mat<'_>) -> &'a mut [f32] {
    let [rows, columns] = [lhs.shape[0], rhs.shape[1]];
    assert_eq!(slots.len(), rows * columns, "the slots must be those of the product");
    // SAFETY: there is a slot for each number of the product, which overwrites all of them without reading.
    unsafe {
        product(slots.as_mut_ptr().cast(), [rows, columns], columns, Onto::Overwrite, lhs, rhs);
        written(slots)
    }
}

/// # Safety
///
/// `dst` must point to a matrix of this shape whose rows do not overlap, writable, and readable if `onto` is `Add`.
unsafe fn product(dst: *mut f32, shape: [usize; 2], row_stride: usize, onto: Onto, lhs: Mat<'_>, rhs: Mat<'_>) {
    let ([m, n], [_, k]) = (shape, lhs.shape);
    assert_eq!((lhs.shape, rhs.shape), ([m, k], [k, n]), "the shapes of a matrix product must fit each other");
    let stride = |s: usize| isize::try_from(s).expect("strides of slices fit isize");
    let add = onto == Onto::Add;
    // SAFETY: `assert_fits` held when the factors were made, so every address `i * row stride + j * column stride` with i
    // and j below their shape lies in their slice; the caller answers for the destination.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst,
            1,
            stride(row_stride),
            add,
            lhs.data.as_ptr(),
            stride(lhs.strides[1]),
            stride(lhs.strides[0]),
            rhs.data.as_ptr(),
            stride(rhs.strides[1]),
            stride(rhs.strides[0]),
            if add { 1.0 } else { 0.0 },
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_of_views_matches_by_hand() {
        let (lhs, rhs) = ([1.0, 2.0, 9.0, 3.0, 4.0, 9.0], [5.0, 7.0, 6.0, 8.0]);
        let mut out = [1.0, 1.0, -1.0, 1.0, 1.0];
        gemm(MatMut::strided(&mut out, 2, 2, 3), Onto::Add, Mat::strided(&lhs, 2, 2, 3), Mat::new(&rhs, 2, 2).t());
        assert_eq!(out, [20.0, 23.0, -1.0, 44.0, 51.0]);
    }

    #[test]
    fn an_inner_dimension_of_zero_overwrites_with_zeros() {
        let mut out = [f32::NAN; 4];
        gemm(MatMut::new(&mut out, 2, 2), Onto::Overwrite, Mat::new(&[], 2, 0), Mat::new(&[], 0, 2));
        assert_eq!(out, [0.0; 4]);
        let mut slots = [MaybeUninit::new(f32::NAN); 4];
        assert_eq!(gemm_unset(&mut slots, Mat::new(&[], 2, 0), Mat::new(&[], 0, 2)), [0.0; 4]);
    }

    #[test]
    #[should_panic(expected = "does not fit 5 numbers")]
    fn a_matrix_beyond_its_slice_panics() {
        Mat::new(&[0.0; 5], 2, 3);
    }
}

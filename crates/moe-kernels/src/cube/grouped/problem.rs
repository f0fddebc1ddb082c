//! A grouped product and its operands.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use serde::{Deserialize, Serialize};

use crate::cube::launch::{dims2, empty, flat, rows_in_order, zeros};

/// Which of the three grouped products, for a weight `[E, I, O]` and rows sorted by expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Product {
    /// Rows `[R, I]` times the matrix of their expert: `[R, O]`.
    Plain,
    /// Rows `[R, O]` times the transposed matrix of their expert: `[R, I]`.
    Transposed,
    /// Rows `[R, I]` transposed times rows `[R, O]`, expert by expert: `[E, I, O]`.
    Outer,
}

/// The sizes that decide how a product is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Problem {
    /// Which product.
    pub product: Product,
    /// Rows of all experts, `R`.
    pub rows: usize,
    /// Experts, `E`.
    pub experts: usize,
    /// Columns of the left operand: `I`, or `O` when [transposed](Product::Transposed).
    pub lhs_width: usize,
    /// Columns of the output.
    pub width: usize,
    /// Type of both operands and of the output.
    pub dtype: DType,
}

impl Problem {
    /// Multiply-add operations, whichever the product: `R * I * O`.
    pub fn multiplications(&self) -> usize {
        self.rows.saturating_mul(self.lhs_width).saturating_mul(self.width)
    }
}

/// What a grouped product reads. The sizes must fit each other; nothing here is checked again.
#[derive(Debug, Clone)]
pub struct Operands<R: CubeRuntime> {
    /// Which product.
    pub product: Product,
    /// Rows of all experts, `R`. Where it is 0 the operands of rows are not looked at.
    pub rows: usize,
    /// Whether rows may come after those of the last expert: the output has zeros there.
    pub partial: bool,
    /// The left rows: `[R, I]` or, [transposed](Product::Transposed), `[R, O]`.
    pub lhs: CubeTensor<R>,
    /// The weight `[E, I, O]`, or the right rows `[R, O]` of an [outer](Product::Outer) product.
    pub rhs: CubeTensor<R>,
    /// First row of each expert and, last, the end of the last one's: `[E + 1]`, on the device.
    pub offsets: CubeTensor<R>,
}

impl<R: CubeRuntime> Operands<R> {
    /// The sizes of this product.
    pub fn problem(&self) -> Problem {
        let ([_, lhs_width], rhs) = (dims2(&self.lhs), self.rhs.meta.shape());
        let width = match self.product {
            Product::Plain => rhs[2],
            Product::Transposed => rhs[1],
            Product::Outer => rhs[1],
        };
        let experts = self.offsets.meta.num_elements() - 1;
        Problem { product: self.product, rows: self.rows, experts, lhs_width, width, dtype: self.lhs.dtype }
    }

    /// Output that is uninitialised where a kernel writes, and zero elsewhere.
    pub(super) fn output(&self) -> CubeTensor<R> {
        let p = self.problem();
        match self.product {
            Product::Outer => empty(&self.lhs, [p.experts, p.lhs_width, p.width], p.dtype),
            _ if self.partial => zeros(&self.lhs, [p.rows, p.width], p.dtype),
            _ => empty(&self.lhs, [p.rows, p.width], p.dtype),
        }
    }

    /// The same operands in layouts that kernels read.
    pub(super) fn readable(self) -> Self {
        let Self { product, rows, partial, lhs, rhs, offsets } = self;
        Self { product, rows, partial, lhs: rows_in_order(lhs), rhs: rows_in_order(rhs), offsets: flat(offsets) }
    }
}

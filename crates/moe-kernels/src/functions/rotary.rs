//! Rotary positions.

use burn::tensor::Tensor;

use super::{primitive, tensor};
use crate::MoeBackend;

/// Turns channels `i` and `i + A / 2` of every head at position `s` by an angle
/// ([Su et al., 2021](https://arxiv.org/abs/2104.09864), with the pairs of the Llama family):
/// `a' = a cos - b sin`, `b' = b cos + a sin`.
///
/// Its gradient is the rotation back; nothing is saved but the tables, which get no gradient themselves.
///
/// # Shapes
///
/// - x: `[B, S, H, A]`
/// - cos, sin: `[S, A / 2]`, f32
/// - output: `[B, S, H, A]`, dtype of `x`
///
/// # Panics
///
/// Panics when `A` is odd or 0, or a table has another shape.
pub fn rotary<B: MoeBackend>(x: Tensor<B, 4>, cos: Tensor<B, 2>, sin: Tensor<B, 2>) -> Tensor<B, 4> {
    let [_, len, _, width] = x.dims();
    assert!(width.is_multiple_of(2), "rotary: heads have an odd width, {width}");
    assert!(width > 0, "rotary: heads must have a width");
    for table in [&cos, &sin] {
        assert_eq!(table.dims(), [len, width / 2], "rotary: a table must be [S, A / 2]");
    }
    tensor(B::moe_rotary(primitive(x), primitive(cos), primitive(sin), false))
}

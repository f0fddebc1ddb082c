//! Rotation of pairs of channels.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;

use super::{accumulator, unwrap, wrap};

pub(crate) fn rotary<B: Backend>(
    x: FloatTensor<B>,
    cos: FloatTensor<B>,
    sin: FloatTensor<B>,
    inverse: bool,
) -> FloatTensor<B> {
    let x = wrap::<B, 4>(x);
    let (dtype, computed) = (x.dtype(), accumulator(x.dtype()));
    let [_, len, _, width] = x.dims();
    let angles = |table: FloatTensor<B>| wrap::<B, 2>(table).cast(computed).reshape([1, len, 1, width / 2]);
    let (cos, sin) = (angles(cos), angles(sin));
    let sin = if inverse { sin.neg() } else { sin };

    let x = x.cast(computed);
    let (a, b) = (x.clone().narrow(3, 0, width / 2), x.narrow(3, width / 2, width / 2));
    let turned = [a.clone() * cos.clone() - b.clone() * sin.clone(), b * cos + a * sin];
    unwrap(Tensor::cat(turned.to_vec(), 3).cast(dtype))
}

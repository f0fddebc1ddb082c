//! Rotary positions ([Su et al., 2021](https://arxiv.org/abs/2104.09864)).
//!
//! Channel `i` of a head is paired with channel `i + A/2` (the layout of the published checkpoints of Llama's
//! family; burn's `RotaryEncoding` pairs neighbours), and pair `i` at position `p` turns by `p * theta^(-2i/A)`:
//! `x * cos + (x R) * sin` with `R` the signed permutation that swaps the halves. As a matrix product, `x R` needs
//! neither slices nor a concatenation, whose gradients would each fill and add whole tensors, and it is exact.

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};

/// Cosines and sines of every position, computed once.
#[derive(Module, Debug)]
pub struct Rotary<B: Backend> {
    /// `[max_seq_len, A]`.
    cos: Tensor<B, 2>,
    /// `[max_seq_len, A]`.
    sin: Tensor<B, 2>,
    /// `R`, `[A, A]`.
    swap_halves: Tensor<B, 2>,
}

/// The part of a [`Rotary`] that one forward pass needs, laid out like the rows it multiplies.
///
/// With the heads repeated, a table is one contiguous row for a whole sequence: burn's CPU backends broadcast that
/// without an index per element.
#[derive(Debug, Clone)]
pub(crate) struct RotaryTable<B: Backend> {
    /// `[1, S * H * A]`.
    cos: Tensor<B, 2>,
    /// `[1, S * H * A]`.
    sin: Tensor<B, 2>,
    swap_halves: Tensor<B, 2>,
}

impl<B: Backend> Rotary<B> {
    /// Tables for `max_seq_len` positions and heads of width `head_dim`, which is even.
    pub(crate) fn new(max_seq_len: usize, head_dim: usize, theta: f64, device: &B::Device) -> Self {
        let table = |f: fn(f64) -> f64| {
            let angles = (0..max_seq_len).flat_map(|position| angles(position, head_dim, theta));
            let values: Vec<f32> = angles.map(|angle| f(angle) as f32).collect();
            Tensor::from_data(TensorData::new(values, [max_seq_len, head_dim]), (device, DType::F32))
        };
        Self { cos: table(f64::cos), sin: table(f64::sin), swap_halves: swap_halves(head_dim, device) }
    }

    pub(crate) fn device(&self) -> B::Device {
        self.cos.device()
    }

    /// The table for `len` positions from `start` on and `heads` heads, every entry times `scale`.
    pub(crate) fn table(&self, start: usize, len: usize, heads: usize, scale: f64) -> RotaryTable<B> {
        let [_, head_dim] = self.cos.dims();
        let lay_out = |table: &Tensor<B, 2>| {
            let rows: Tensor<B, 3> = table.clone().slice(start..start + len).unsqueeze_dim(1);
            let rows = rows.mul_scalar(scale).repeat_dim(1, heads);
            rows.reshape([1, len * heads * head_dim])
        };
        RotaryTable { cos: lay_out(&self.cos), sin: lay_out(&self.sin), swap_halves: self.swap_halves.clone() }
    }
}

impl<B: Backend> RotaryTable<B> {
    /// Rotates every head of every token, in f32, then casts back.
    ///
    /// # Shapes
    ///
    /// - x: `[B * S, H * A]`
    /// - output: the same
    pub(crate) fn apply(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let (shape, dtype) = (x.dims(), x.dtype());
        let [head_dim, _] = self.swap_halves.dims();
        let [_, row] = self.cos.dims();
        let heads = shape[0] * shape[1] / head_dim;
        let rows = |x: Tensor<B, 2>| x.cast(DType::F32).reshape([shape[0] * shape[1] / row, row]);

        let swapped = x.clone().reshape([heads, head_dim]).matmul(self.swap_halves.clone().cast(dtype));
        let rotated = rows(x) * self.cos.clone() + rows(swapped) * self.sin.clone();
        rotated.reshape(shape).cast(dtype)
    }
}

/// The angle of each of the `head_dim` channels at `position`, in radians.
fn angles(position: usize, head_dim: usize, theta: f64) -> impl Iterator<Item = f64> {
    let half = head_dim / 2;
    (0..head_dim).map(move |i| position as f64 * theta.powf(-((i % half) as f64) / half as f64))
}

/// `[a, b] R = [-b, a]`.
fn swap_halves<B: Backend>(head_dim: usize, device: &B::Device) -> Tensor<B, 2> {
    let half = head_dim / 2;
    let mut values = vec![0f32; head_dim * head_dim];
    for i in 0..half {
        values[(i + half) * head_dim + i] = -1.0;
        values[i * head_dim + i + half] = 1.0;
    }
    Tensor::from_data(TensorData::new(values, [head_dim, head_dim]), (device, DType::F32))
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::{Distribution, Tolerance};

    use super::*;

    const REL: f32 = 1e-5;
    const ABS: f32 = 1e-6;
    const HEAD_DIM: usize = 6;
    const THETA: f64 = 100.0;

    fn rotary() -> Rotary<Flex> {
        Rotary::new(32, HEAD_DIM, THETA, &Default::default())
    }

    fn random(rows: usize, columns: usize) -> Tensor<Flex, 2> {
        Tensor::random([rows, columns], Distribution::Normal(0.0, 1.0), &Default::default())
    }

    /// One head of one token at `position`.
    fn rotate(x: &Tensor<Flex, 2>, position: usize) -> Tensor<Flex, 2> {
        rotary().table(position, 1, 1, 1.0).apply(x.clone())
    }

    fn dot(a: Tensor<Flex, 2>, b: Tensor<Flex, 2>) -> f32 {
        (a * b).sum().into_scalar()
    }

    #[test]
    fn scores_depend_on_the_distance_only() {
        let (query, key) = (random(1, HEAD_DIM), random(1, HEAD_DIM));
        let near = dot(rotate(&query, 5), rotate(&key, 2));
        let far = dot(rotate(&query, 29), rotate(&key, 26));
        assert!((near - far).abs() <= 1e-5 * (1.0 + near.abs()), "{near} against {far}");
        let other_distance = dot(rotate(&query, 5), rotate(&key, 3));
        assert!((near - other_distance).abs() > 1e-3);
    }

    #[test]
    fn position_zero_is_the_identity() {
        let x = random(1, HEAD_DIM);
        assert_eq!(rotate(&x, 0).into_data(), x.into_data());
    }

    #[test]
    fn matches_the_rotation_of_every_pair() {
        let (batch, len, heads, start, scale) = (2, 3, 2, 4, 0.5);
        let x = random(batch * len, heads * HEAD_DIM);
        let output = rotary().table(start, len, heads, scale).apply(x.clone());
        let values: Vec<f32> = x.into_data().to_vec().expect("f32");
        let position = |row: usize| start + (row / heads) % len;
        let rows = values.chunks(HEAD_DIM).enumerate();
        let expected: Vec<f32> = rows.flat_map(|(row, head)| turn(head, position(row), scale)).collect();
        let expected = TensorData::new(expected, [batch * len, heads * HEAD_DIM]);
        output.into_data().assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(REL, ABS));
    }

    /// One head at one position, pair by pair.
    fn turn(head: &[f32], position: usize, scale: f64) -> Vec<f32> {
        let half = HEAD_DIM / 2;
        let mut out = vec![0.0; HEAD_DIM];
        for i in 0..half {
            let angle = position as f64 * THETA.powf(-2.0 * i as f64 / HEAD_DIM as f64);
            let (a, b) = (f64::from(head[i]), f64::from(head[i + half]));
            out[i] = (scale * (a * angle.cos() - b * angle.sin())) as f32;
            out[i + half] = (scale * (b * angle.cos() + a * angle.sin())) as f32;
        }
        out
    }
}

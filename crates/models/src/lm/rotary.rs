//! Rotary positions ([Su et al., 2021](https://arxiv.org/abs/2104.09864)).
//!
//! Channel `i` of a head is paired with channel `i + A/2` (the layout of the published checkpoints of Llama's
//! family; burn's `RotaryEncoding` pairs neighbours), and pair `i` at position `p` turns by `p * theta^(-2i/A)`, unless a
//! [`RopeScaling`](super::RopeScaling) says otherwise. The angle is the product of position and frequency in f32, as in
//! `transformers`, and has the error of that: published weights were trained with it.

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};
use moe_kernels::{MoeBackend, rotary};

use super::LmConfig;

/// Cosines and sines of every position, computed once.
#[derive(Module, Debug)]
pub struct Rotary<B: Backend> {
    /// `[max_seq_len, A / 2]`.
    cos: Tensor<B, 2>,
    /// `[max_seq_len, A / 2]`.
    sin: Tensor<B, 2>,
}

/// The part of a [`Rotary`] that one forward pass needs.
#[derive(Debug, Clone)]
pub(crate) struct RotaryTable<B: Backend> {
    /// `[S, A / 2]`.
    cos: Tensor<B, 2>,
    /// `[S, A / 2]`.
    sin: Tensor<B, 2>,
}

impl<B: Backend> Rotary<B> {
    /// Tables for the positions and the heads of `config`, which is valid.
    pub(crate) fn new(config: &LmConfig, device: &B::Device) -> Self {
        let (frequencies, amplitude) = (config.rotary_frequencies(), config.rotary_amplitude());
        let table = |f: fn(f64) -> f64| {
            let positions = 0..config.max_seq_len;
            let angles = positions.flat_map(|position| frequencies.iter().map(move |w| position as f32 * w));
            let values: Vec<f32> = angles.map(|angle| f(f64::from(angle)) as f32 * amplitude as f32).collect();
            let shape = [config.max_seq_len, frequencies.len()];
            Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
        };
        Self { cos: table(f64::cos), sin: table(f64::sin) }
    }

    /// The table for `len` positions from `start` on.
    pub(crate) fn table(&self, start: usize, len: usize) -> RotaryTable<B> {
        let rows = |table: &Tensor<B, 2>| table.clone().slice(start..start + len);
        RotaryTable { cos: rows(&self.cos), sin: rows(&self.sin) }
    }
}

impl<B: MoeBackend> RotaryTable<B> {
    /// Rotates every head of every token, in f32, then casts back.
    ///
    /// # Shapes
    ///
    /// - x: `[B, S, H, A]`
    /// - output: the same
    pub(crate) fn apply(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        rotary(x, self.cos.clone(), self.sin.clone())
    }
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
    const LAST_BIT: f32 = 6e-8;
    /// Position 4095, base 500, heads of 8 channels.
    const COS_OF_TORCH: [f32; 4] = [-0.065_975_99, 0.460_202_66, 0.604_547_8, 0.515_669_8];

    fn tables() -> Rotary<Flex> {
        let config = LmConfig::new(1, HEAD_DIM, 1, 1, 1, 32).with_rope_theta(THETA);
        Rotary::new(&config, &Default::default())
    }

    fn random(rows: usize, columns: usize) -> Tensor<Flex, 2> {
        Tensor::random([rows, columns], Distribution::Normal(0.0, 1.0), &Default::default())
    }

    /// One head of one token at `position`.
    fn rotate(x: &Tensor<Flex, 2>, position: usize) -> Tensor<Flex, 2> {
        tables().table(position, 1).apply(x.clone().reshape([1, 1, 1, HEAD_DIM])).reshape([1, HEAD_DIM])
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

    /// Numbers of PyTorch's, in f32; those of exact angles are up to 6e-5 away.
    #[test]
    fn angles_have_the_rounding_of_f32() {
        let config = LmConfig::new(1, 8, 1, 1, 1, 4096).with_rope_theta(500.0);
        let cos = Rotary::<Flex>::new(&config, &Default::default()).table(4095, 1).cos.into_data();
        let expected = TensorData::new(COS_OF_TORCH.to_vec(), [1, 4]);
        cos.assert_approx_eq::<f32>(&expected, Tolerance::absolute(LAST_BIT));
    }

    #[test]
    fn position_zero_is_the_identity() {
        let x = random(1, HEAD_DIM);
        assert_eq!(rotate(&x, 0).into_data(), x.into_data());
    }

    #[test]
    fn matches_the_rotation_of_every_pair() {
        let (batch, len, heads, start) = (2, 3, 2, 4);
        let x = random(batch * len, heads * HEAD_DIM);
        let output = tables().table(start, len).apply(x.clone().reshape([batch, len, heads, HEAD_DIM]));
        let values: Vec<f32> = x.into_data().to_vec().expect("f32");
        let position = |row: usize| start + (row / heads) % len;
        let rows = values.chunks(HEAD_DIM).enumerate();
        let expected: Vec<f32> = rows.flat_map(|(row, head)| turn(head, position(row))).collect();
        let expected = TensorData::new(expected, [batch, len, heads, HEAD_DIM]);
        output.into_data().assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(REL, ABS));
    }

    /// One head at one position, pair by pair.
    fn turn(head: &[f32], position: usize) -> Vec<f32> {
        let half = HEAD_DIM / 2;
        let mut out = vec![0.0; HEAD_DIM];
        for i in 0..half {
            let angle = position as f64 * THETA.powf(-2.0 * i as f64 / HEAD_DIM as f64);
            let (a, b) = (f64::from(head[i]), f64::from(head[i + half]));
            out[i] = (a * angle.cos() - b * angle.sin()) as f32;
            out[i + half] = (b * angle.cos() + a * angle.sin()) as f32;
        }
        out
    }
}

//! The data: points on the arms of a spiral, each a function of its index.

use std::f32::consts::TAU;

use burn::data::dataloader::batcher::Batcher;
use burn::data::dataset::Dataset;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Number of arms, the classes; who guesses is right once in so many.
pub(crate) const ARMS: usize = 4;
/// Turns of an arm from the centre to its end.
const TURNS: f32 = 1.5;
/// Largest distance of a point from its arm, in either direction.
const NOISE: f32 = 0.06;

/// A point and the arm it is on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Point {
    pub(crate) place: [f32; 2],
    pub(crate) arm: usize,
}

/// `len` points of the spiral, the same ones for the same seed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spiral {
    pub(crate) len: usize,
    pub(crate) seed: u64,
}

impl Dataset<Point> for Spiral {
    fn get(&self, index: usize) -> Option<Point> {
        (index < self.len).then(|| self.point(index))
    }

    fn len(&self) -> usize {
        self.len
    }
}

impl Spiral {
    fn point(&self, index: usize) -> Point {
        let mut rng = StdRng::seed_from_u64(self.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(index as u64));
        let (arm, radius) = (index % ARMS, rng.random_range(0.1..1.0f32));
        let angle = TAU * (arm as f32 / ARMS as f32 + TURNS * radius);
        let mut noise = || rng.random_range(-NOISE..NOISE);
        Point { place: [radius * angle.cos() + noise(), radius * angle.sin() + noise()], arm }
    }
}

/// Points on a device.
#[derive(Clone, Debug)]
pub(crate) struct PointBatch<B: Backend> {
    /// `[N, 2]`
    pub(crate) places: Tensor<B, 2>,
    /// `[N]`, in `0..ARMS`
    pub(crate) arms: Tensor<B, 1, Int>,
}

/// Puts points together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PointBatcher;

impl<B: Backend> Batcher<B, Point, PointBatch<B>> for PointBatcher {
    fn batch(&self, points: Vec<Point>, device: &B::Device) -> PointBatch<B> {
        let places: Vec<f32> = points.iter().flat_map(|point| point.place).collect();
        let arms: Vec<i32> = points.iter().map(|point| point.arm as i32).collect();
        PointBatch {
            places: Tensor::from_data(TensorData::new(places, [points.len(), 2]), device),
            arms: Tensor::from_data(TensorData::new(arms, [points.len()]), device),
        }
    }
}

//! What default vectors look like in numbers.

use burn::tensor::Tensor;
use moe_kernels::{MoeBackend, sum_dim};
use serde::{Deserialize, Serialize};

use crate::{DefaultUpdate, DefaultVectors};

/// Statistics of the default vectors of one layer over one training step, on the host. `E` experts.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct DefaultVectorStats {
    /// Length of each vector after the step, `[E]`. That of an expert which is never chosen stays what it was.
    pub norms: Vec<f64>,
    /// How far the step moved a vector: length of the difference, mean over the experts.
    pub moved: f64,
    /// Length of what the step moved a vector towards, `m_e`, mean over the experts that served a token; 0 without any. That is the
    /// length of a mean output, not the mean length of outputs, which is larger as they point in different directions. Vectors
    /// much longer than that are remains of another time.
    pub target_norm: f64,
    /// `|fill| / (|fill| + |experts|)` in `[0, 1]`: share of the routed output that comes from the vectors, by the lengths of
    /// the two parts over the batch; what shared experts add is in neither. 0 where the vectors are not in the output.
    pub share: f64,
}

impl DefaultVectorStats {
    /// Reads the statistics of a step from the device: `update` is what it absorbs, `energy` what its passes measured
    /// ([`DefaultMoeOutput::energy`](crate::DefaultMoeOutput::energy)), summed, if they did.
    pub fn of_step<B: MoeBackend>(
        before: &DefaultVectors<B>,
        update: &DefaultUpdate<B>,
        energy: Option<Tensor<B, 1>>,
    ) -> Self {
        let after = before.updated(update);
        let moved = lengths(after.clone() - before.constant());
        let targets = lengths(update.means());
        let energy = energy.map_or_else(|| targets.zeros_like().slice(0..1).expand([2]), |e| e.cast(targets.dtype()));
        let num_experts = targets.dims()[0];

        let parts = vec![lengths(after), moved, targets.cast(energy.dtype()), update.weights.clone(), energy];
        let data = Tensor::cat(parts, 0).into_data();
        let values: Vec<f64> = data.iter::<f64>().collect();
        let column = |i: usize| &values[i * num_experts..(i + 1) * num_experts];
        let busy = column(3).iter().filter(|&&weight| weight > 0.0).count();
        let [fill, experts] = [values[4 * num_experts], values[4 * num_experts + 1]].map(f64::sqrt);
        Self {
            norms: column(0).to_vec(),
            moved: column(1).iter().sum::<f64>() / num_experts as f64,
            target_norm: ratio(column(2).iter().sum(), busy as f64),
            share: ratio(fill, fill + experts),
        }
    }

    /// Mean length of the vectors.
    pub fn norm(&self) -> f64 {
        ratio(self.norms.iter().sum(), self.norms.len() as f64)
    }
}

/// 0 when there is nothing to divide by.
fn ratio(part: f64, whole: f64) -> f64 {
    if whole == 0.0 { 0.0 } else { part / whole }
}

/// Of each row, `[E]`.
fn lengths<B: MoeBackend>(rows: Tensor<B, 2>) -> Tensor<B, 1> {
    sum_dim(rows.powi_scalar(2), 1).sqrt().squeeze_dim(1)
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;

    use super::*;
    use crate::DefaultOptions;

    /// Relative, f32.
    const TOLERANCE: f64 = 1e-6;

    #[test]
    fn a_step_matches_a_computation_by_hand() {
        let device = Default::default();
        let mut vectors = DefaultOptions::new().with_beta(0.5).init::<Flex>(2, 2, &device);
        vectors.values = vectors.values.map(|_| Tensor::from_data([[3.0, 4.0], [0.0, 2.0]], &device));
        let update = DefaultUpdate {
            sums: Tensor::from_data([[6.0, 8.0], [0.0, 0.0]], &device),
            weights: Tensor::from_data([1.0, 0.0], &device),
        };
        let stats = DefaultVectorStats::of_step(&vectors, &update, Some(Tensor::from_data([1.0, 9.0], &device)));
        // (3, 4) moves half way to (6, 8); the idle expert stays.
        for (found, expected) in stats.norms.iter().zip([7.5, 2.0]) {
            assert!((found - expected).abs() < TOLERANCE * expected);
        }
        assert!((stats.norm() - 4.75).abs() < TOLERANCE * 4.75);
        assert!((stats.moved - 1.25).abs() < TOLERANCE);
        assert!((stats.target_norm - 10.0).abs() < TOLERANCE * 10.0);
        assert!((stats.share - 0.25).abs() < TOLERANCE);
    }

    #[test]
    fn nothing_measured_and_nobody_busy_give_zeros_not_nan() {
        let device = Default::default();
        let vectors = DefaultOptions::new().init::<Flex>(2, 3, &device);
        let update = DefaultUpdate::empty([2, 3], burn::tensor::DType::F32, &device);
        let stats = DefaultVectorStats::of_step(&vectors, &update, None);
        assert_eq!(stats, DefaultVectorStats { norms: vec![0.0; 2], moved: 0.0, target_norm: 0.0, share: 0.0 });
    }
}

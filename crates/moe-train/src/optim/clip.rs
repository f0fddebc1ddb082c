//! Clipping by the norm of all gradients together ([Pascanu et al., 2013](https://arxiv.org/abs/1211.5063), algorithm 1).
//!
//! burn's own `GradientClipping` sees one parameter at a time. That changes the direction of the update; the norm over
//! all parameters (experts and embeddings included) only changes its length.

use burn::module::{AutodiffModule, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{ElementConversion, Tensor};
use moe_kernels::{AutodiffMoeBackend, sum_of_squares};

/// Scales `grads` so that their global norm is at most `max_norm`; returns them with the norm they had before.
///
/// The norm is read from the device once. A norm within the limit leaves every gradient untouched, bit for bit, and so
/// does `max_norm == 0`, which turns clipping off. A norm that is not finite is returned with the gradients untouched:
/// no factor can repair them, and the caller must not apply them.
pub fn clip_global_norm<B: AutodiffMoeBackend, M: AutodiffModule<B>>(
    model: &M,
    grads: GradientsParams,
    max_norm: f64,
) -> (GradientsParams, f64) {
    let norm = match global_norm(model, &grads) {
        Some(norm) => norm.into_scalar().elem::<f64>(),
        None => 0.0,
    };
    (clip_to(model, grads, norm, max_norm), norm)
}

/// Scales `grads`, whose global norm is known to be `norm`, to at most `max_norm` (0 = never); see [`clip_global_norm`].
pub(crate) fn clip_to<B: AutodiffBackend, M: AutodiffModule<B>>(
    model: &M,
    grads: GradientsParams,
    norm: f64,
    max_norm: f64,
) -> GradientsParams {
    if max_norm > 0.0 && norm.is_finite() && norm > max_norm {
        scale_gradients(model, grads, max_norm / norm)
    } else {
        grads
    }
}

/// Euclidean norm of all gradients of `model`, shape `[1]`, on the model's device and not yet read; `None` without any.
///
/// Squares are summed in the gradients' own dtype, f32 for every model of this workspace: a norm above about `1e19`
/// comes out infinite.
pub fn global_norm<B: AutodiffMoeBackend, M: AutodiffModule<B>>(
    model: &M,
    grads: &GradientsParams,
) -> Option<Tensor<B::InnerBackend, 1>> {
    let mut squares = SumOfSquares::<B> { grads, sums: Vec::new() };
    model.visit(&mut squares);
    (!squares.sums.is_empty()).then(|| Tensor::cat(squares.sums, 0).sum().sqrt())
}

/// Every gradient of `model` times `factor`, in place where nobody else holds the gradient.
pub fn scale_gradients<B: AutodiffBackend, M: AutodiffModule<B>>(
    model: &M,
    mut grads: GradientsParams,
    factor: f64,
) -> GradientsParams {
    model.visit(&mut Scale { grads: &mut grads, factor });
    grads
}

struct SumOfSquares<'a, B: AutodiffBackend> {
    grads: &'a GradientsParams,
    sums: Vec<Tensor<B::InnerBackend, 1>>,
}

impl<B: AutodiffMoeBackend> ModuleVisitor<B> for SumOfSquares<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(grad) = self.grads.get::<B::InnerBackend, D>(param.id) {
            self.sums.push(sum_of_squares(grad));
        }
    }
}

struct Scale<'a> {
    grads: &'a mut GradientsParams,
    factor: f64,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Scale<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(grad) = self.grads.remove::<B::InnerBackend, D>(param.id) {
            let scaled = grad.mul_scalar(self.factor);
            self.grads.register::<B::InnerBackend, D>(param.id, scaled);
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::module::Module;

    use super::*;
    use crate::optim::groups::testing::{AD, Probe, gradients};

    /// Relative, f32.
    const TOLERANCE: f64 = 1e-5;

    fn values(probe: &Probe<AD>, grads: &GradientsParams) -> Vec<f32> {
        struct Collect<'a>(&'a GradientsParams, Vec<f32>);
        impl ModuleVisitor<AD> for Collect<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<AD, D>>) {
                if let Some(grad) = self.0.get::<<AD as AutodiffBackend>::InnerBackend, D>(param.id) {
                    self.1.extend(grad.into_data().to_vec::<f32>().expect("gradients are f32"));
                }
            }
        }
        let mut collect = Collect(grads, Vec::new());
        probe.visit(&mut collect);
        collect.1
    }

    fn naive_norm(values: &[f32]) -> f64 {
        values.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
    }

    #[test]
    fn the_norm_is_that_of_all_gradients_in_one_vector() {
        let probe = Probe::<AD>::new();
        let grads = gradients(&probe, 3.0);
        let expected = naive_norm(&values(&probe, &grads));
        let (_, norm) = clip_global_norm(&probe, grads, 0.0);
        assert!((norm - expected).abs() <= TOLERANCE * expected, "{norm} != {expected}");
    }

    #[test]
    fn clipped_gradients_keep_their_direction_and_get_the_largest_norm() {
        let probe = Probe::<AD>::new();
        let grads = gradients(&probe, 3.0);
        let before = values(&probe, &grads);
        let (grads, norm) = clip_global_norm(&probe, grads, 0.5);
        let after = values(&probe, &grads);
        assert!(norm > 0.5);
        assert!((naive_norm(&after) - 0.5).abs() <= TOLERANCE);
        for (before, after) in before.iter().zip(&after) {
            let expected = f64::from(*before) * 0.5 / norm;
            assert!((f64::from(*after) - expected).abs() <= TOLERANCE, "{after} != {expected}");
        }
    }

    #[test]
    fn a_norm_within_the_limit_leaves_gradients_bit_equal() {
        let probe = Probe::<AD>::new();
        let grads = gradients(&probe, 3.0);
        let before = values(&probe, &grads);
        let norm = naive_norm(&before);
        for max_norm in [norm * 1.001, f64::MAX, 0.0] {
            let (grads, _) = clip_global_norm(&probe, gradients(&probe, 3.0), max_norm);
            assert_eq!(values(&probe, &grads), before);
        }
    }

    #[test]
    fn a_norm_that_is_not_finite_is_reported_and_nothing_is_scaled() {
        let probe = Probe::<AD>::new();
        let (grads, norm) = clip_global_norm(&probe, gradients(&probe, f64::NAN), 1.0);
        assert!(norm.is_nan());
        assert!(values(&probe, &grads).iter().any(|value| value.is_nan()));
        let (_, norm) = clip_global_norm(&probe, gradients(&probe, f64::INFINITY), 1.0);
        assert!(!norm.is_finite());
    }

    #[test]
    fn without_gradients_the_norm_is_zero() {
        let probe = Probe::<AD>::new();
        let (grads, norm) = clip_global_norm(&probe, GradientsParams::new(), 1.0);
        assert!(grads.is_empty());
        assert_eq!(norm, 0.0);
    }
}

//! What a forward pass returns, and the training loss.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use default_moe::DefaultUpdate;
use moe_kernels::{MoeBackend, cross_entropy_rows};
use moe_layers::{BalanceConvention, MoeLosses, Routing, load_balance_loss_pooled};

use super::LmMoeConfig;

/// Result of [`Lm::forward`](super::Lm::forward).
#[derive(Debug, Clone)]
pub struct LmOutput<B: MoeBackend> {
    /// Unnormalised log-probabilities of the next token, `[B, S, V]`, f32.
    pub logits: Tensor<B, 3>,
    /// One entry for every layer with experts, in order.
    pub layers: Vec<MoeLayerOutput<B>>,
}

/// What the router of one layer did.
#[derive(Debug, Clone)]
pub struct MoeLayerOutput<B: MoeBackend> {
    /// The layer's index in the model, counted from 0.
    pub layer: usize,
    /// The decision for every token of the batch.
    pub routing: Routing<B>,
    /// The layer's own auxiliary losses.
    pub losses: MoeLosses<B>,
    /// With default vectors and gradients: what the pass found out, for
    /// [`absorb_updates`](default_moe::optimizer::HasDefaultVectors::absorb_updates).
    pub default_update: Option<DefaultUpdate<B>>,
    /// With default vectors in the output, when [measured](default_moe::optimizer::HasDefaultVectors::set_measuring): see
    /// [`DefaultMoeOutput::energy`](default_moe::DefaultMoeOutput::energy).
    pub default_energy: Option<Tensor<B, 1>>,
}

/// Result of [`Lm::loss`](super::Lm::loss); every tensor is `[1]`, f32.
#[derive(Debug, Clone)]
pub struct LmLoss<B: MoeBackend> {
    /// What to minimise: `cross_entropy + balance_coef * balance + z_coef * z`, and [the layers' other
    /// losses](MoeLosses::other).
    pub total: Tensor<B, 1>,
    /// Mean over the tokens, in nats.
    pub cross_entropy: Tensor<B, 1>,
    /// Load balance loss without its coefficient: summed over layers, or pooled over them in the Hugging Face
    /// convention. 0 in a dense model.
    pub balance: Tensor<B, 1>,
    /// Router z-loss without its coefficient, summed over layers. 0 in a dense model.
    pub z: Tensor<B, 1>,
    /// One entry for every layer with experts, in order.
    pub layers: Vec<MoeLayerOutput<B>>,
}

impl<B: MoeBackend> LmLoss<B> {
    /// Adds the auxiliary losses of `layers` to the cross entropy.
    pub(crate) fn new(cross_entropy: Tensor<B, 1>, layers: Vec<MoeLayerOutput<B>>, moe: &LmMoeConfig) -> Self {
        if layers.is_empty() {
            let zero = cross_entropy.zeros_like();
            return Self { total: cross_entropy.clone(), cross_entropy, balance: zero.clone(), z: zero, layers };
        }
        let balance = balance_loss(&layers, moe.balance);
        let z = sum(layers.iter().map(|layer| layer.losses.z.clone()));
        let total =
            cross_entropy.clone() + balance.clone().mul_scalar(moe.balance_coef) + z.clone().mul_scalar(moe.z_coef);
        let others = layers.iter().filter_map(|layer| layer.losses.other.clone());
        let total = others.fold(total, |total, other| total + other);
        Self { total, cross_entropy, balance, z, layers }
    }
}

fn balance_loss<B: MoeBackend>(layers: &[MoeLayerOutput<B>], convention: BalanceConvention) -> Tensor<B, 1> {
    match convention {
        BalanceConvention::HuggingFace => {
            let routings: Vec<_> = layers.iter().map(|layer| layer.routing.clone()).collect();
            load_balance_loss_pooled(&routings)
        }
        BalanceConvention::Switch | BalanceConvention::GShard | BalanceConvention::Sequence => {
            sum(layers.iter().map(|layer| layer.losses.balance.clone()))
        }
    }
}

fn sum<B: Backend>(values: impl Iterator<Item = Tensor<B, 1>>) -> Tensor<B, 1> {
    values.reduce(|a, b| a + b).expect("a model with experts has a layer with them")
}

/// Mean cross entropy in nats, `[1]`; its gradient is one pass over the logits.
///
/// # Shapes
///
/// - logits: `[T, V]`, f32
/// - targets: `[T]`, values in `0..V`
///
/// # Panics
///
/// As [`cross_entropy_rows`].
pub fn cross_entropy<B: MoeBackend>(logits: Tensor<B, 2>, targets: Tensor<B, 1, Int>) -> Tensor<B, 1> {
    cross_entropy_rows(logits, targets).mean()
}

#[cfg(test)]
mod tests {
    use burn::backend::{Autodiff, Flex};
    use burn::nn::loss::CrossEntropyLossConfig;
    use burn::tensor::{Distribution, Tolerance};

    use super::*;

    type AD = Autodiff<Flex>;

    const REL: f32 = 1e-5;
    const ABS: f32 = 1e-6;

    #[test]
    fn cross_entropy_and_its_gradient_match_burn() {
        let device = Default::default();
        let logits = || Tensor::<AD, 2>::random([6, 9], Distribution::Normal(0.0, 3.0), &device);
        let ours = logits().require_grad();
        let theirs = Tensor::from_data(ours.to_data(), &device).require_grad();
        let targets = Tensor::<AD, 1, Int>::from_ints([0, 8, 3, 3, 5, 1], &device);
        let loss = cross_entropy(ours.clone(), targets.clone());
        let expected = CrossEntropyLossConfig::new().init(&device).forward(theirs.clone(), targets);
        let tolerance = Tolerance::rel_abs(REL, ABS);
        loss.to_data().assert_approx_eq::<f32>(&expected.to_data(), tolerance);
        let grad = |x: Tensor<AD, 2>, loss: Tensor<AD, 1>| x.grad(&loss.backward()).expect("tracked").into_data();
        grad(ours, loss).assert_approx_eq::<f32>(&grad(theirs, expected), tolerance);
    }

    #[test]
    fn huge_logits_do_not_overflow() {
        let device = Default::default();
        let logits = Tensor::<Flex, 2>::from_floats([[3e4, -3e4, 0.0]], &device);
        let loss = cross_entropy(logits, Tensor::from_ints([1], &device));
        assert_eq!(loss.into_scalar(), 6e4);
    }

    #[test]
    #[should_panic(expected = "cross_entropy_rows: logits [T, V] and targets [T] disagree on T")]
    fn another_number_of_targets_panics() {
        let device = Default::default();
        cross_entropy(Tensor::<Flex, 2>::ones([3, 4], &device), Tensor::zeros([2], &device));
    }
}

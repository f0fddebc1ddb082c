//! Which router, as plain data.

use burn::config::Config;
use burn::module::{Initializer, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use serde::{Deserialize, Serialize};

use super::scores::check_top_k;
use super::{
    ExpertChoiceRouter, HashOptions, NoisyTopKOptions, ReluOptions, Router, SigmoidOptions, SinkhornOptions,
    TopKRouterConfig,
};

/// Who chooses, with the options that only this rule has. The [table](super) says which to use.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum RouterRule {
    /// Softmax over all experts, then the `K` largest.
    #[default]
    TopK,
    /// The same with noise on the logits in training passes.
    NoisyTopK(NoisyTopKOptions),
    /// Sigmoids with a selection bias, within groups.
    Sigmoid(SigmoidOptions),
    /// A balanced assignment in training passes.
    Sinkhorn(SinkhornOptions),
    /// Every expert with a positive score.
    Relu(ReluOptions),
    /// Each expert takes its best tokens.
    ExpertChoice,
    /// The id of the token decides.
    Hash(HashOptions),
}

impl RouterRule {
    /// Why default vectors have no meaning under this rule; `None` where they have one.
    pub fn default_vectors_error(&self) -> Option<&'static str> {
        match self {
            Self::TopK | Self::NoisyTopK(_) | Self::Sigmoid(_) | Self::Sinkhorn(_) => None,
            Self::Relu(_) => {
                Some("default vectors have no meaning with a ReLU router: an expert that is not chosen has gate zero")
            }
            Self::ExpertChoice => Some(
                "default vectors have no meaning with expert choice: a token does not choose, and has no experts that it \
                 did not choose",
            ),
            Self::Hash(_) => Some(
                "default vectors have no meaning with a hash router: there is no router that could learn from them",
            ),
        }
    }

    /// Why the ranks of a data-parallel run would not decide as one device does about all their tokens; `None` where they do.
    pub fn ranks_error(&self) -> Option<&'static str> {
        match self {
            Self::TopK | Self::Sigmoid(_) | Self::Relu(_) | Self::Hash(_) => None,
            Self::NoisyTopK(_) => Some(
                "a noisy router cannot run on several ranks: they draw from one generator, in the order in which they come",
            ),
            Self::Sinkhorn(_) => Some(
                "a Sinkhorn router cannot run on several ranks: it balances the tokens of a batch, of which a rank sees a part",
            ),
            Self::ExpertChoice => Some(
                "expert choice cannot run on several ranks: it compares the tokens of a batch, of which a rank sees a part",
            ),
        }
    }

    /// Whether every token has `K` experts.
    pub fn chooses_k(&self) -> bool {
        !matches!(self, Self::Relu(_) | Self::ExpertChoice)
    }

    /// Whether what a token is given depends on tokens after it, which a causal model must not see.
    pub fn looks_ahead(&self) -> bool {
        matches!(self, Self::ExpertChoice)
    }
}

/// Configuration to create a [`Router`] using the [init function](RouterConfig::init).
#[derive(Config, Debug)]
pub struct RouterConfig {
    /// Width of a token, `D`.
    pub d_model: usize,
    /// Number of experts, `E`.
    pub num_experts: usize,
    /// Experts per token, `K`; for [`Relu`](RouterRule::Relu) and [`ExpertChoice`](RouterRule::ExpertChoice) on average.
    pub top_k: usize,
    /// Divide the gates of a token by their sum, under rules by which a token chooses `K`. Default: false
    #[config(default = false)]
    pub normalize_gates: bool,
    /// Who chooses. Default: softmax top-K
    #[config(default = "RouterRule::TopK")]
    pub rule: RouterRule,
    /// How the weight `[D, E]` starts. Default: uniform in `+-1 / sqrt(D)`, as burn's `Linear`
    #[config(default = "crate::experts::default_initializer()")]
    pub initializer: Initializer,
}

impl RouterConfig {
    /// Creates the router on `device`.
    ///
    /// # Panics
    ///
    /// Panics unless `1 <= top_k <= num_experts`, and when an option of the rule is out of its range.
    pub fn init<B: Backend>(&self, device: &B::Device) -> Router<B> {
        check_top_k("RouterConfig", self.top_k, self.num_experts);
        match &self.rule {
            RouterRule::TopK => Router::TopK(self.top_k().init(device)),
            RouterRule::NoisyTopK(options) => Router::NoisyTopK(options.init(self, device)),
            RouterRule::Sigmoid(options) => Router::Sigmoid(options.init(self, device)),
            RouterRule::Sinkhorn(options) => Router::Sinkhorn(options.init(self, device)),
            RouterRule::Relu(options) => Router::Relu(options.init(self, device)),
            RouterRule::ExpertChoice => Router::ExpertChoice(ExpertChoiceRouter::new(self, device)),
            RouterRule::Hash(options) => Router::Hash(options.init(self, device)),
        }
    }

    fn top_k(&self) -> TopKRouterConfig {
        TopKRouterConfig::new(self.d_model, self.num_experts, self.top_k)
            .with_normalize_gates(self.normalize_gates)
            .with_initializer(self.initializer.clone())
    }

    pub(super) fn init_weight<B: Backend>(&self, device: &B::Device) -> Param<Tensor<B, 2>> {
        let (d, e) = (self.d_model, self.num_experts);
        self.initializer.init_with([d, e], Some(d), Some(e), device)
    }
}

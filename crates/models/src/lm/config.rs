//! What a language model looks like, as plain data.

use burn::config::Config;
use burn::module::Initializer;
use default_moe::DefaultOptions;
use moe_layers::dispatch::{Capacity, DropPolicy};
use moe_layers::router::{HashOptions, NoisyTopKOptions, ReluOptions, SigmoidOptions, SinkhornOptions};
use moe_layers::{Activation, BalanceConvention, MoeConfig, RouterRule};
use serde::{Deserialize, Serialize};

use super::feed_forward::FeedForwardSpec;
use super::{MoeLayers, RopeScaling};

/// Configuration to create an [`Lm`](super::Lm) using the [init function](LmConfig::init).
///
/// Symbols in shapes: `B` batch, `S` sequence, `T = B * S` tokens, `V` vocabulary, `D` d_model, `H` heads, `C`
/// key/value heads, `A` head width, `F` feed-forward width, `E` experts, `K` experts per token.
#[derive(Config, Debug, PartialEq)]
pub struct LmConfig {
    /// Number of different tokens, `V`.
    pub vocab_size: usize,
    /// Width of the residual stream, `D`.
    pub d_model: usize,
    /// Number of transformer blocks.
    pub num_layers: usize,
    /// Number of query heads, `H`.
    pub num_heads: usize,
    /// Width `F` of a dense feed-forward block.
    pub d_hidden: usize,
    /// Longest sequence the model sees at once, in tokens.
    pub max_seq_len: usize,
    /// Number of key/value heads, `C`, a divisor of `num_heads`. `None`: as many as query heads.
    pub num_kv_heads: Option<usize>,
    /// Width of a head, `A`, an even number. `None`: `d_model / num_heads`.
    pub head_dim: Option<usize>,
    /// Activation of the dense feed-forward blocks.
    #[config(default = "Activation::SwiGlu")]
    pub activation: Activation,
    /// Normalisation before attention, before the feed-forward block and before the vocabulary.
    #[config(default = "NormKind::Rms")]
    pub norm: NormKind,
    /// Added to the mean square (or variance) inside every normalisation.
    #[config(default = 1e-5)]
    pub norm_eps: f64,
    /// Base of the rotary wavelengths.
    #[config(default = 10000.0)]
    pub rope_theta: f64,
    /// How the rotary frequencies are changed for long sequences. `None`: not at all.
    pub rope_scaling: Option<RopeScaling>,
    /// Normalisation of queries and keys.
    #[config(default = "QkNorm::None")]
    pub qk_norm: QkNorm,
    /// Whether the output matrix is the embedding.
    #[config(default = true)]
    pub tie_embeddings: bool,
    /// The token whose row of the embedding learns nothing from where the token is an input; it is embedded like any
    /// other, and predicting it still moves a tied row. `None`: there is none.
    pub padding_id: Option<usize>,
    /// Which layers have experts.
    #[config(default = "MoeLayers::AllButFirst")]
    pub moe_layers: MoeLayers,
    /// The feed-forward block of those layers: by default 8 experts, top 2, each half as wide as a dense block.
    #[config(default = "LmMoeConfig::new(8, 2, d_hidden / 2)")]
    pub moe: LmMoeConfig,
    /// Standard deviation of the initial matrices; those that write into the residual stream have it divided by
    /// `sqrt(2 * num_layers)` (Radford et al., 2019, section 2.3).
    #[config(default = 0.02)]
    pub init_std: f64,
}

/// The Mixture-of-Experts feed-forward block of a language model.
#[derive(Config, Debug, PartialEq)]
pub struct LmMoeConfig {
    /// Number of experts, `E`.
    pub num_experts: usize,
    /// Experts per token, `K`.
    pub top_k: usize,
    /// Width of one expert, `F`.
    pub d_hidden: usize,
    /// The routing algorithm.
    #[config(default = "RouterKind::TopK")]
    pub router: RouterKind,
    /// Default vectors also where the router is not [`RouterKind::Default`], if they have a meaning there.
    #[config(default = false)]
    pub default_vectors: bool,
    /// How default vectors are updated and used, where there are any.
    #[config(default = "DefaultOptions::new()")]
    pub default: DefaultOptions,
    /// Used where the router is [`RouterKind::NoisyTopK`].
    #[config(default = "NoisyTopKOptions::new()")]
    pub noisy: NoisyTopKOptions,
    /// Used where the router is [`RouterKind::Sigmoid`].
    #[config(default = "SigmoidOptions::new()")]
    pub sigmoid: SigmoidOptions,
    /// Used where the router is [`RouterKind::Sinkhorn`].
    #[config(default = "SinkhornOptions::new()")]
    pub sinkhorn: SinkhornOptions,
    /// Used where the router is [`RouterKind::Relu`].
    #[config(default = "ReluOptions::new()")]
    pub relu: ReluOptions,
    /// Decides the table of a [`RouterKind::Hash`] router.
    #[config(default = 0)]
    pub hash_seed: u64,
    /// An expert serves at most this many times its even share of the slots. 0: any number, nothing is dropped.
    #[config(default = 0.0)]
    pub capacity_factor: f64,
    /// Who is dropped where an expert is full.
    #[config(default = "DropPolicy::Position")]
    pub drop_policy: DropPolicy,
    /// Activation of the experts, shared ones too.
    #[config(default = "Activation::SwiGlu")]
    pub activation: Activation,
    /// Whether the routed experts' matrices have biases.
    #[config(default = false)]
    pub bias: bool,
    /// Width of the shared experts together, which every token passes through. 0: there are none.
    #[config(default = 0)]
    pub shared_d_hidden: usize,
    /// Whether a token weighs its shared experts by a sigmoid of its own.
    #[config(default = false)]
    pub shared_gate: bool,
    /// Whether the `K` gates of a token are scaled to sum to 1.
    #[config(default = false)]
    pub normalize_gates: bool,
    /// Which definition the load balance loss follows.
    #[config(default = "BalanceConvention::Switch")]
    pub balance: BalanceConvention,
    /// Weight of the load balance loss.
    #[config(default = 0.01)]
    pub balance_coef: f64,
    /// Weight of the router z-loss.
    #[config(default = 0.0)]
    pub z_coef: f64,
    /// Weight of the importance loss.
    #[config(default = 0.0)]
    pub importance_coef: f64,
    /// Weight of the load loss of a noisy router.
    #[config(default = 0.0)]
    pub load_coef: f64,
}

/// Kind of normalisation; in text `"rms"` or `"layer"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NormKind {
    /// Root mean square, with a gain ([Zhang and Sennrich, 2019](https://arxiv.org/abs/1910.07467)).
    #[default]
    Rms,
    /// Mean and variance, with a gain and a shift ([Ba et al., 2016](https://arxiv.org/abs/1607.06450)).
    Layer,
}

/// Root-mean-square normalisation of queries and keys before the rotation; in text `"none"`, `"per-head"`, `"full"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QkNorm {
    /// No normalisation.
    #[default]
    None,
    /// Every head by itself, one gain of width `A` for all heads (Qwen3).
    PerHead,
    /// All heads together, a gain of width `H * A` or `C * A` (OLMoE).
    Full,
}

/// The algorithm that chooses experts: [`moe_layers::router`] has a table of them. In text `"top-k"`, `"default"`,
/// `"noisy-top-k"`, `"sigmoid"`, `"sinkhorn"`, `"relu"`, `"expert-choice"`, `"hash"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouterKind {
    /// Softmax over all experts, then the `K` largest.
    #[default]
    TopK,
    /// The same choice, with default vectors in the place of the experts that were not chosen: Default MoE
    /// ([Panda et al., 2025](https://arxiv.org/abs/2504.12463)), the crate [`default_moe`].
    Default,
    /// Softmax over noisy logits in training.
    NoisyTopK,
    /// Sigmoids with a selection bias, within groups: DeepSeek-V3.
    Sigmoid,
    /// A balanced assignment of the batch in training.
    Sinkhorn,
    /// Every expert with a positive score, `top_k` on average: ReMoE.
    Relu,
    /// Each expert takes its best tokens. Looks at the tokens to come: see [`LmConfig::warnings`].
    ExpertChoice,
    /// The id of the token decides, nothing is learned.
    Hash,
}

impl LmConfig {
    /// Width of a head, `A`.
    pub fn head_width(&self) -> usize {
        self.head_dim.unwrap_or_else(|| self.d_model / self.num_heads.max(1))
    }

    /// Number of key/value heads, `C`.
    pub fn kv_heads(&self) -> usize {
        self.num_kv_heads.unwrap_or(self.num_heads)
    }

    /// Whether layer `layer`, counted from 0, has experts.
    pub fn is_moe_layer(&self, layer: usize) -> bool {
        self.moe_layers.includes(layer, self.num_layers)
    }

    /// Number of layers with experts.
    pub fn num_moe_layers(&self) -> usize {
        (0..self.num_layers).filter(|&layer| self.is_moe_layer(layer)).count()
    }

    /// Configuration of the layers with experts.
    pub(crate) fn moe_layer(&self) -> MoeConfig {
        self.moe.layer(self.vocab_size, self.d_model, self.init_std)
    }

    /// What the feed-forward half of layer `layer` is made from.
    pub(crate) fn feed_forward(&self, layer: usize) -> FeedForwardSpec<'_> {
        FeedForwardSpec {
            d_model: self.d_model,
            d_hidden: self.d_hidden,
            activation: self.activation,
            std: self.init_std,
            residual_std: self.residual_std(),
            moe: self.is_moe_layer(layer).then(|| (self.moe_layer(), self.moe.default_options())),
        }
    }

    /// Standard deviation of the matrices whose product is added to the residual stream.
    pub(crate) fn residual_std(&self) -> f64 {
        self.init_std / (2.0 * self.num_layers as f64).sqrt()
    }
}

impl LmMoeConfig {
    /// Whether layers have default vectors.
    pub fn has_default_vectors(&self) -> bool {
        self.router == RouterKind::Default || self.default_vectors
    }

    /// Default vectors, where layers have them.
    pub(crate) fn default_options(&self) -> Option<&DefaultOptions> {
        self.has_default_vectors().then_some(&self.default)
    }

    /// Whether a setting is not its default that only routed experts have.
    pub(crate) fn is_routed(&self) -> bool {
        let shared = self.shared_d_hidden > 0 || self.capacity_factor > 0.0;
        self.router != RouterKind::TopK || self.has_default_vectors() || shared
    }

    /// The router's rule, with its options; `vocab_size` is for a look-up by id.
    pub fn rule(&self, vocab_size: usize) -> RouterRule {
        match self.router {
            RouterKind::TopK | RouterKind::Default => RouterRule::TopK,
            RouterKind::NoisyTopK => RouterRule::NoisyTopK(self.noisy.clone()),
            RouterKind::Sigmoid => RouterRule::Sigmoid(self.sigmoid.clone()),
            RouterKind::Sinkhorn => RouterRule::Sinkhorn(self.sinkhorn.clone()),
            RouterKind::Relu => RouterRule::Relu(self.relu.clone()),
            RouterKind::ExpertChoice => RouterRule::ExpertChoice,
            RouterKind::Hash => RouterRule::Hash(HashOptions { vocab_size, seed: self.hash_seed }),
        }
    }

    /// The layer's own configuration, matrices drawn with standard deviation `std`.
    pub(crate) fn layer(&self, vocab_size: usize, d_model: usize, std: f64) -> MoeConfig {
        let capacity = Capacity { factor: self.capacity_factor, policy: self.drop_policy };
        MoeConfig::new(d_model, self.d_hidden, self.num_experts, self.top_k)
            .with_normalize_gates(self.normalize_gates)
            .with_router(self.rule(vocab_size))
            .with_capacity((self.capacity_factor != 0.0).then_some(capacity))
            .with_importance_coef(self.importance_coef)
            .with_load_coef(self.load_coef)
            .with_activation(self.activation)
            .with_bias(self.bias)
            .with_shared_d_hidden(self.shared_d_hidden)
            .with_shared_gate(self.shared_gate)
            .with_balance(self.balance)
            .with_balance_coef(self.balance_coef)
            .with_z_coef(self.z_coef)
            .with_initializer(Initializer::Normal { mean: 0.0, std })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_round_trips_and_uses_kebab_case() {
        let config = LmConfig::tiny()
            .with_moe_layers(MoeLayers::Every(2))
            .with_qk_norm(QkNorm::PerHead)
            .with_num_kv_heads(Some(2));
        let json = burn::config::config_to_json(&config);
        for text in ["\"every-2\"", "\"per-head\"", "\"rms\"", "\"top-k\"", "\"swiglu\"", "\"switch\"", "\"frozen\""] {
            assert!(json.contains(text), "{text} is not in {json}");
        }
        assert_eq!(LmConfig::load_binary(json.as_bytes()).expect("it was just written"), config);
    }

    #[test]
    fn a_config_from_before_scaled_positions_and_padding_is_one_without_them() {
        let json = burn::config::config_to_json(&LmConfig::tiny());
        let mut tree: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        for field in ["rope_scaling", "padding_id"] {
            tree.as_object_mut().expect("a table").remove(field).expect("it was written");
        }
        assert_eq!(serde_json::from_value::<LmConfig>(tree).expect("the fields are optional"), LmConfig::tiny());
    }

    #[test]
    fn default_experts_have_the_active_width_of_a_dense_block() {
        let config = LmConfig::new(256, 64, 2, 4, 96, 32);
        assert_eq!(config.moe.top_k * config.moe.d_hidden, config.d_hidden);
    }
}

//! Parameters, active parameters and floating point operations of a configuration, without building the model.
//!
//! Conventions:
//! - *Total*: every trainable number. A tied embedding counts once; what no gradient trains does not count: default vectors, a
//!   router's selection bias, the weight of its L1 loss.
//! - *Active*: what a token passes through, i.e. the total less the experts it does not choose. The embedding table and
//!   the output matrix count in full, the convention behind OLMoE's 1.3 B and Mixtral's 12.9 B.
//! - *FLOPs*: a multiplication and an addition are two; backward is twice forward.

use moe_layers::Activation;

use super::{LmConfig, LmMoeConfig, NormKind, QkNorm, RouterKind};

/// Forward and backward of one weight on one token: 2 + 4 operations.
const TRAIN_FLOPS_PER_WEIGHT: u64 = 6;

impl LmConfig {
    /// Number of trainable parameters.
    pub fn num_params(&self) -> u64 {
        self.params_with(self.moe.num_experts)
    }

    /// Number of parameters that one token passes through, vocabulary matrices included in full.
    pub fn num_active_params(&self) -> u64 {
        self.params_with(self.moe.top_k)
    }

    /// Floating point operations to train on one token of a full sequence, forward and backward.
    ///
    /// 6 for every active weight of a matrix product (so not for the embedding look-up; nor for default vectors, whose
    /// product adds `4 E D` a layer), and
    /// `12 * num_layers * num_heads * head_dim * max_seq_len` for attention, counted as if it were not causal
    /// ([Chowdhery et al., 2022](https://arxiv.org/abs/2204.02311), appendix B).
    pub fn train_flops_per_token(&self) -> u64 {
        let moe_layers = self.num_moe_layers() as u64;
        let dense_layers = self.num_layers as u64 - moe_layers;
        let weights = self.num_layers as u64 * self.attention_matrices()
            + dense_layers * ffn_matrices(self.activation, self.d_model, self.d_hidden)
            + moe_layers * self.moe.active_matrices(self.d_model)
            + self.vocab_matrix();
        let width = self.num_heads * self.head_width();
        let attention = 12 * (self.num_layers * width * self.max_seq_len) as u64;
        TRAIN_FLOPS_PER_WEIGHT * weights + attention
    }

    /// Parameters with `experts` experts per MoE layer in use; the router is always whole.
    fn params_with(&self, experts: usize) -> u64 {
        let vocab_matrices = if self.tie_embeddings { 1 } else { 2 };
        let layers: u64 = (0..self.num_layers).map(|layer| self.layer_params(layer, experts)).sum();
        vocab_matrices * self.vocab_matrix() + layers + self.norm_params()
    }

    fn layer_params(&self, layer: usize, experts: usize) -> u64 {
        let feed_forward = if self.is_moe_layer(layer) {
            self.moe.layer_params(self.d_model, experts)
        } else {
            ffn_matrices(self.activation, self.d_model, self.d_hidden)
        };
        self.attention_matrices() + self.qk_norm_params() + 2 * self.norm_params() + feed_forward
    }

    fn vocab_matrix(&self) -> u64 {
        product(self.vocab_size, self.d_model)
    }

    fn attention_matrices(&self) -> u64 {
        let heads = 2 * (self.num_heads + self.kv_heads());
        product(self.d_model, heads * self.head_width())
    }

    fn qk_norm_params(&self) -> u64 {
        let width = self.head_width();
        let gains = match self.qk_norm {
            QkNorm::None => 0,
            QkNorm::PerHead => 2 * width,
            QkNorm::Full => (self.num_heads + self.kv_heads()) * width,
        };
        gains as u64
    }

    fn norm_params(&self) -> u64 {
        let vectors = match self.norm {
            NormKind::Rms => 1,
            NormKind::Layer => 2,
        };
        product(vectors, self.d_model)
    }
}

impl LmMoeConfig {
    fn layer_params(&self, d_model: usize, experts: usize) -> u64 {
        let expert = ffn_matrices(self.activation, d_model, self.d_hidden) + self.bias_params(d_model);
        self.router_matrix(d_model) + experts as u64 * expert + self.shared_matrices(d_model)
    }

    fn active_matrices(&self, d_model: usize) -> u64 {
        let expert = ffn_matrices(self.activation, d_model, self.d_hidden);
        self.router_matrix(d_model) + self.top_k as u64 * expert + self.shared_matrices(d_model)
    }

    fn shared_matrices(&self, d_model: usize) -> u64 {
        let gate = if self.shared_gate { d_model as u64 } else { 0 };
        ffn_matrices(self.activation, d_model, self.shared_d_hidden) + gate
    }

    /// A noisy router may learn its noise; a hash router learns nothing.
    fn router_matrix(&self, d_model: usize) -> u64 {
        let matrices = match self.router {
            RouterKind::Hash => 0,
            RouterKind::NoisyTopK if self.noisy.noise_std.is_none() => 2,
            _ => 1,
        };
        matrices * product(d_model, self.num_experts)
    }

    fn bias_params(&self, d_model: usize) -> u64 {
        if self.bias { (self.activation.columns(self.d_hidden) + d_model) as u64 } else { 0 }
    }
}

fn ffn_matrices(activation: Activation, d_model: usize, d_hidden: usize) -> u64 {
    product(d_model, activation.columns(d_hidden) + d_hidden)
}

fn product(a: usize, b: usize) -> u64 {
    a as u64 * b as u64
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::module::Module;

    use super::*;
    use crate::lm::{MoeLayers, RouterKind};

    fn billions(count: u64, digits: i32) -> f64 {
        let scale = 10f64.powi(digits);
        (count as f64 / 1e9 * scale).round() / scale
    }

    #[test]
    fn mixtral_8x7b_has_the_published_counts() {
        let config = LmConfig::mixtral_8x7b();
        assert_eq!(config.num_params(), 46_702_792_704);
        assert_eq!(config.num_active_params(), 12_879_925_248);
        assert_eq!((billions(config.num_params(), 1), billions(config.num_active_params(), 1)), (46.7, 12.9));
    }

    #[test]
    fn olmoe_1b_7b_has_the_published_counts() {
        let config = LmConfig::olmoe_1b_7b();
        assert_eq!(config.num_params(), 6_919_161_856);
        assert_eq!(config.num_active_params(), 1_282_017_280);
        assert_eq!((billions(config.num_params(), 1), billions(config.num_active_params(), 1)), (6.9, 1.3));
    }

    #[test]
    fn the_default_moe_models_have_the_published_total() {
        assert_eq!(billions(LmConfig::default_moe_8c1().num_params(), 2), 1.96);
        assert_eq!(billions(LmConfig::default_moe_32c4().num_params(), 2), 1.96);
    }

    #[test]
    fn a_dense_model_is_active_as_a_whole() {
        let config = LmConfig::tiny().with_moe_layers(MoeLayers::None);
        assert_eq!(config.num_params(), config.num_active_params());
    }

    #[test]
    fn flops_of_a_hand_counted_model() {
        // D 4, one dense ReLU layer of width 8, one head, V 10, S 3: attention 4 * 16, feed-forward 2 * 32, output 40.
        let config =
            LmConfig::new(10, 4, 1, 1, 8, 3).with_activation(Activation::Relu).with_moe_layers(MoeLayers::None);
        assert_eq!(config.train_flops_per_token(), 6 * (64 + 64 + 40) + 12 * 4 * 3);
        // Experts: layer of 3, top 2, width 5, with a router of 4 * 3.
        let moe = LmMoeConfig::new(3, 2, 5).with_activation(Activation::Relu);
        let config = config.with_moe_layers(MoeLayers::All).with_moe(moe);
        assert_eq!(config.train_flops_per_token(), 6 * (64 + 12 + 2 * 40 + 40) + 12 * 4 * 3);
        // Shared experts of width 7 and their gate.
        let mut shared = config;
        (shared.moe.shared_d_hidden, shared.moe.shared_gate) = (7, true);
        assert_eq!(shared.train_flops_per_token(), 6 * (64 + 12 + 2 * 40 + 56 + 4 + 40) + 12 * 4 * 3);
    }

    fn every_option() -> Vec<LmConfig> {
        let base = || LmConfig::new(11, 8, 3, 4, 6, 5).with_moe(LmMoeConfig::new(3, 2, 5));
        let moe = |moe: LmMoeConfig| base().with_moe(moe);
        let mut configs = vec![
            base(),
            base().with_tie_embeddings(false),
            base().with_norm(NormKind::Layer),
            base().with_qk_norm(QkNorm::PerHead),
            base().with_qk_norm(QkNorm::Full).with_num_kv_heads(Some(1)),
            base().with_num_kv_heads(Some(2)),
            base().with_head_dim(Some(6)),
            base().with_activation(Activation::Gelu),
            base().with_activation(Activation::Relu),
            moe(LmMoeConfig::new(3, 2, 5).with_bias(true)),
            moe(LmMoeConfig::new(3, 2, 5).with_bias(true).with_activation(Activation::Gelu)),
            moe(LmMoeConfig::new(3, 3, 5).with_activation(Activation::Relu)),
            moe(LmMoeConfig::new(3, 2, 5).with_shared_d_hidden(7)),
            moe(LmMoeConfig::new(3, 2, 5).with_shared_d_hidden(7).with_shared_gate(true).with_bias(true)),
        ];
        configs.extend(
            [MoeLayers::None, MoeLayers::All, MoeLayers::Every(2), MoeLayers::Every(3)]
                .map(|layers| base().with_moe_layers(layers)),
        );
        configs
    }

    #[test]
    fn default_vectors_are_one_per_expert_and_do_not_count() {
        let config = LmConfig::new(11, 8, 3, 4, 6, 5).with_moe(LmMoeConfig::new(3, 2, 5));
        let mut with = config.clone();
        with.moe.router = RouterKind::Default;
        assert_eq!(with.num_params(), config.num_params());
        let floats = with.init::<Flex>(&Default::default()).num_params() as u64;
        assert_eq!(floats, config.num_params() + 2 * 3 * 8);
    }

    #[test]
    fn the_formula_counts_what_the_module_has() {
        for config in every_option() {
            let model = config.init::<Flex>(&Default::default());
            assert_eq!(config.num_params(), model.num_params() as u64, "{config}");
        }
    }
}

//! The sizes of a model, and what follows from them alone: parameters and floating point operations.

/// Forward and backward of one weight on one token: 2 + 4 operations.
const TRAIN_FLOPS_PER_WEIGHT: f64 = 6.0;

/// A decoder-only transformer of which some layers have experts.
///
/// Its counts are those of `moe_models::lm::LmConfig`, to the last parameter; a test compares them.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// What it is called.
    pub name: String,
    /// Entries of the vocabulary, `V`.
    pub vocab_size: u64,
    /// Width of a token, `D`.
    pub d_model: u64,
    /// Number of layers, `L`.
    pub num_layers: u64,
    /// Heads of queries, `H`.
    pub num_heads: u64,
    /// Heads of keys and values, `C`.
    pub num_kv_heads: u64,
    /// Width of a head, `A`.
    pub head_dim: u64,
    /// Longest sequence, in tokens.
    pub max_seq_len: u64,
    /// Whether one matrix embeds tokens and gives logits.
    pub tied: bool,
    /// Vectors of a normalisation: 1 (gain) or 2 (gain and shift).
    pub norm_vectors: u64,
    /// Gains of the normalisation of queries and keys, in all of a layer; 0 without one.
    pub qk_gains: u64,
    /// The feed-forward block of a layer without experts.
    pub dense: FeedForward,
    /// Layers with experts.
    pub num_moe_layers: u64,
    /// What those have.
    pub moe: Moe,
}

/// Two matrices around an activation, `[D, C]` and `[F, D]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedForward {
    /// Width inside, `F`.
    pub d_hidden: u64,
    /// Whether the activation is SwiGLU, whose first matrix has `2F` columns.
    pub gated: bool,
}

/// The feed-forward half of a layer with experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moe {
    /// Number of experts, `E`.
    pub num_experts: u64,
    /// Experts per token, `K`.
    pub top_k: u64,
    /// One of them.
    pub expert: FeedForward,
    /// Whether both matrices of an expert have biases.
    pub bias: bool,
    /// Width of all shared experts together; 0 without any.
    pub shared_d_hidden: u64,
    /// Whether those have a gate.
    pub shared_gate: bool,
    /// Matrices `[D, E]` of the router: 1, 2 with learned noise, 0 if nothing is learned.
    pub router_matrices: u64,
}

impl FeedForward {
    /// Columns of the first matrix, `C`.
    pub fn columns(&self) -> u64 {
        self.d_hidden * if self.gated { 2 } else { 1 }
    }

    /// Numbers in both matrices.
    fn weights(&self, d_model: u64) -> u64 {
        d_model * (self.columns() + self.d_hidden)
    }
}

impl Model {
    /// Every trainable number.
    pub fn num_params(&self) -> u64 {
        self.dense_params() + self.num_moe_layers * self.moe.num_experts * self.expert_params()
    }

    /// Those that a token passes through, both vocabulary matrices in full.
    pub fn num_active_params(&self) -> u64 {
        self.dense_params() + self.num_moe_layers * self.moe.top_k * self.expert_params()
    }

    /// Those outside the routed experts, which every device has: routers and shared experts are among them.
    pub fn dense_params(&self) -> u64 {
        let vocabulary = if self.tied { 1 } else { 2 } * self.vocab_size * self.d_model;
        let norm = self.norm_vectors * self.d_model;
        let layer = self.attention_weights() + self.qk_gains + 2 * norm;
        vocabulary
            + norm
            + self.num_layers * layer
            + (self.num_layers - self.num_moe_layers) * self.dense.weights(self.d_model)
            + self.num_moe_layers * (self.router_weights() + self.shared_weights())
    }

    /// Those of one expert.
    pub fn expert_params(&self) -> u64 {
        let bias = if self.moe.bias { self.moe.expert.columns() + self.d_model } else { 0 };
        self.moe.expert.weights(self.d_model) + bias
    }

    /// FLOPs to train on one token, forward and backward, but for the routed experts: 6 for every weight of a product, and
    /// `12 L H A S` for attention in sequences of `S`, as if it were not causal.
    pub fn dense_flops_per_token(&self, seq_len: u64) -> f64 {
        let weights = self.num_layers * self.attention_weights()
            + (self.num_layers - self.num_moe_layers) * self.dense.weights(self.d_model)
            + self.num_moe_layers * (self.router_weights() + self.shared_weights())
            + self.vocab_size * self.d_model;
        let attention = 12.0 * (self.num_layers * self.num_heads * self.head_dim) as f64 * seq_len as f64;
        TRAIN_FLOPS_PER_WEIGHT * weights as f64 + attention
    }

    /// FLOPs to train on one token in the routed experts of all layers: 6 for every weight of a product, so `18 K D F` a layer
    /// with SwiGLU.
    pub fn expert_flops_per_token(&self) -> f64 {
        let weights = self.num_moe_layers * self.moe.top_k * self.moe.expert.weights(self.d_model);
        TRAIN_FLOPS_PER_WEIGHT * weights as f64
    }

    fn attention_weights(&self) -> u64 {
        2 * self.d_model * (self.num_heads + self.num_kv_heads) * self.head_dim
    }

    fn router_weights(&self) -> u64 {
        self.moe.router_matrices * self.d_model * self.moe.num_experts
    }

    fn shared_weights(&self) -> u64 {
        let shared = FeedForward { d_hidden: self.moe.shared_d_hidden, ..self.moe.expert };
        shared.weights(self.d_model) + if self.moe.shared_gate { self.d_model } else { 0 }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// V 10, D 4, two layers of which one has experts, 2 heads of 2, 1 of keys; dense F 6, 3 experts of F 5 with K 2, SwiGLU.
    pub(crate) fn by_hand() -> Model {
        Model {
            name: "by hand".into(),
            vocab_size: 10,
            d_model: 4,
            num_layers: 2,
            num_heads: 2,
            num_kv_heads: 1,
            head_dim: 2,
            max_seq_len: 8,
            tied: false,
            norm_vectors: 1,
            qk_gains: 0,
            dense: FeedForward { d_hidden: 6, gated: true },
            num_moe_layers: 1,
            moe: Moe {
                num_experts: 3,
                top_k: 2,
                expert: FeedForward { d_hidden: 5, gated: true },
                bias: false,
                shared_d_hidden: 0,
                shared_gate: false,
                router_matrices: 1,
            },
        }
    }

    #[test]
    fn parameters_of_a_model_counted_by_hand() {
        let model = by_hand();
        // Attention: queries and output 4 x 4 each, keys and values 4 x 2 each. A dense block: 4 x 12 and 6 x 4.
        let (attention, dense, expert, router) = (16 + 16 + 8 + 8, 48 + 24, 40 + 20, 12);
        let rest = 2 * 40 + 4 + 2 * (attention + 8) + dense + router;
        assert_eq!((model.expert_params(), model.dense_params()), (expert, rest));
        assert_eq!((model.num_params(), model.num_active_params()), (rest + 3 * expert, rest + 2 * expert));
    }

    #[test]
    fn options_of_a_model_counted_by_hand() {
        let base = by_hand();
        let grown = |change: fn(&mut Model)| {
            let mut model = base.clone();
            change(&mut model);
            model.num_params() as i64 - base.num_params() as i64
        };
        assert_eq!(grown(|model| model.tied = true), -40);
        assert_eq!(grown(|model| model.norm_vectors = 2), 5 * 4);
        assert_eq!(grown(|model| model.qk_gains = 3), 2 * 3);
        assert_eq!(grown(|model| model.moe.bias = true), 3 * (10 + 4));
        assert_eq!(grown(|model| (model.moe.shared_d_hidden, model.moe.shared_gate) = (7, true)), 4 * 14 + 7 * 4 + 4);
        assert_eq!(grown(|model| model.moe.router_matrices = 2), 12);
        assert_eq!(grown(|model| model.dense.gated = false), -24);
    }

    #[test]
    fn flops_of_a_model_counted_by_hand() {
        let model = by_hand();
        assert_eq!(model.expert_flops_per_token(), 6.0 * 2.0 * 60.0);
        let weights = 2.0 * 48.0 + 72.0 + 12.0 + 40.0;
        assert_eq!(model.dense_flops_per_token(8), 6.0 * weights + 12.0 * 2.0 * 4.0 * 8.0);
    }
}

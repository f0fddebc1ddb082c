//! The check that a configuration is a model.

use moe_layers::dispatch::DropPolicy;
use thiserror::Error;

use super::{LmConfig, LmMoeConfig, MoeLayers, RopeScaling, RouterKind, limits};

/// Why an [`LmConfig`] is not a model.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum LmConfigError {
    /// A size is 0.
    #[error("{field} is 0; set it to at least 1")]
    Zero {
        /// Path of the field.
        field: &'static str,
    },
    /// A size that no machine has room for.
    #[error("{field} is {value}; it can be {most} at most")]
    TooLarge {
        /// Path of the field, or what the fields make together.
        field: &'static str,
        /// What it is.
        value: f64,
        /// What it may be.
        most: f64,
    },
    /// A real number is out of range.
    #[error("{field} is {value}; it must be {expected}")]
    Range {
        /// Path of the field.
        field: &'static str,
        /// What it is.
        value: f64,
        /// What it may be.
        expected: &'static str,
    },
    /// `d_model / num_heads` is not an integer and no `head_dim` is given.
    #[error("d_model = {d_model} does not divide into num_heads = {num_heads}; change one of them or set head_dim")]
    HeadsDoNotDivide {
        /// Width of the model.
        d_model: usize,
        /// Number of query heads.
        num_heads: usize,
    },
    /// A key/value head would serve a fractional number of query heads.
    #[error("num_kv_heads = {num_kv_heads} does not divide num_heads = {num_heads}; choose a divisor of {num_heads}")]
    KvHeadsDoNotDivide {
        /// Number of key/value heads.
        num_kv_heads: usize,
        /// Number of query heads.
        num_heads: usize,
    },
    /// A padding token that is no token.
    #[error("padding_id = {padding_id} is not below vocab_size = {vocab_size}; choose a token, or leave it out")]
    NoSuchPadding {
        /// The padding token.
        padding_id: usize,
        /// Number of tokens.
        vocab_size: usize,
    },
    /// Rotary positions rotate pairs.
    #[error("head_dim = {head_dim} is odd, but rotary positions rotate pairs; choose an even head_dim")]
    OddHeadDim {
        /// Width of a head.
        head_dim: usize,
    },
    /// A token would have to choose one expert twice.
    #[error(
        "moe.top_k = {top_k} is more than moe.num_experts = {num_experts}; lower top_k to at most {num_experts} or \
         add experts"
    )]
    TopKTooLarge {
        /// Experts per token.
        top_k: usize,
        /// Experts.
        num_experts: usize,
    },
    /// A gate of nothing.
    #[error(
        "moe.shared_gate is true, but moe.shared_d_hidden = 0: there are no shared experts; set moe.shared_d_hidden to \
         their width, or moe.shared_gate to false"
    )]
    SharedGateWithoutExperts,
    /// What a layer with experts cannot be.
    #[error("the moe table contradicts itself: {0}")]
    Moe(String),
    /// A placement names a layer that is not there.
    #[error(
        "moe_layers = \"{moe_layers}\" names a layer that is not there: num_layers = {num_layers}, counted from 0; leave \
         it out or add layers"
    )]
    NoSuchLayer {
        /// The placement.
        moe_layers: MoeLayers,
        /// Number of blocks.
        num_layers: usize,
    },
    /// A placement of experts that selects nothing.
    #[error(
        "moe_layers = \"{moe_layers}\" selects none of num_layers = {num_layers} layers; write \"none\" for a dense \
         model, or choose \"all\" or a smaller N in \"every-N\""
    )]
    NoMoeLayer {
        /// The placement.
        moe_layers: MoeLayers,
        /// Number of blocks.
        num_layers: usize,
    },
}

/// [`LmConfig::warnings`] of a ReLU router.
const TWO_BALANCES: &str =
    "moe.router = \"relu\" has a balance loss of its own, and moe.balance_coef is not 0: both are in the loss";

/// [`LmConfig::warnings`] of a capacity.
const DROPS_AHEAD: &str = "moe.capacity_factor in a causal model: which slots are dropped depends on the tokens after them too, unless \
    moe.drop_policy = \"position\" and moe.top_k = 1";

/// [`LmConfig::warnings`] of expert choice.
const LOOKS_AHEAD: &str = "moe.router = \"expert-choice\" in a causal model: which experts serve a token depends on the tokens after it, so \
    the losses are those of a model that sees ahead, and a text generated token by token comes from another one";

impl LmConfig {
    /// # Errors
    ///
    /// Returns the first contradiction found: a size of 0, a padding token beyond the vocabulary, heads that do not divide, an odd head width, more experts
    /// per token than experts, a gate of no shared experts, a placement of experts without a layer, a number out of its
    /// range. The `moe` table is
    /// not looked at when `moe_layers` is `"none"`.
    pub fn validate(&self) -> Result<(), LmConfigError> {
        self.validate_sizes()?;
        self.validate_padding()?;
        self.validate_heads()?;
        self.validate_numbers()?;
        if self.moe_layers == MoeLayers::None {
            return Ok(());
        }
        let (moe_layers, num_layers) = (self.moe_layers.clone(), self.num_layers);
        if moe_layers.last_named().is_some_and(|layer| layer >= num_layers) {
            return Err(LmConfigError::NoSuchLayer { moe_layers, num_layers });
        }
        if self.num_moe_layers() == 0 {
            return Err(LmConfigError::NoMoeLayer { moe_layers, num_layers });
        }
        self.moe.validate()?;
        self.moe_layer().validate().map_err(LmConfigError::Moe)
    }

    /// What is a model, but hardly what was wanted.
    pub fn warnings(&self) -> Vec<String> {
        if self.num_moe_layers() == 0 {
            return Vec::new();
        }
        let moe = &self.moe;
        let drops_ahead = moe.capacity_factor > 0.0 && (moe.drop_policy != DropPolicy::Position || moe.top_k > 1);
        let warnings = [
            (moe.rule(self.vocab_size).looks_ahead(), LOOKS_AHEAD),
            (drops_ahead, DROPS_AHEAD),
            (moe.router == RouterKind::Relu && moe.balance_coef != 0.0, TWO_BALANCES),
        ];
        warnings.into_iter().filter(|(applies, _)| *applies).map(|(_, warning)| warning.to_string()).collect()
    }

    fn validate_sizes(&self) -> Result<(), LmConfigError> {
        non_zero("vocab_size", self.vocab_size)?;
        non_zero("d_model", self.d_model)?;
        non_zero("num_layers", self.num_layers)?;
        non_zero("num_heads", self.num_heads)?;
        non_zero("d_hidden", self.d_hidden)?;
        non_zero("max_seq_len", self.max_seq_len)?;
        non_zero("num_kv_heads", self.num_kv_heads.unwrap_or(1))?;
        non_zero("head_dim", self.head_dim.unwrap_or(1))?;
        self.validate_limits()
    }

    fn validate_limits(&self) -> Result<(), LmConfigError> {
        let moe = &self.moe;
        let sizes = [
            ("num_layers", self.num_layers, limits::LAYERS),
            ("max_seq_len", self.max_seq_len, limits::POSITIONS),
            ("vocab_size", self.vocab_size, limits::SIZE),
            ("d_model", self.d_model, limits::SIZE),
            ("num_heads", self.num_heads, limits::SIZE),
            ("num_kv_heads", self.num_kv_heads.unwrap_or(1), limits::SIZE),
            ("head_dim", self.head_dim.unwrap_or(1), limits::SIZE),
            ("d_hidden", self.d_hidden, limits::SIZE),
            ("moe.num_experts", moe.num_experts, limits::SIZE),
            ("moe.d_hidden", moe.d_hidden, limits::SIZE),
            ("moe.shared_d_hidden", moe.shared_d_hidden, limits::SIZE),
        ];
        if let Some((field, value, most)) = limits::first_beyond(&sizes) {
            return Err(LmConfigError::TooLarge { field, value, most });
        }
        let [d, heads, hidden, experts, expert, shared, vocab, layers] = [
            self.d_model,
            self.num_heads * self.head_dim.unwrap_or(self.d_model.div_ceil(self.num_heads)),
            self.d_hidden,
            moe.num_experts,
            moe.d_hidden,
            moe.shared_d_hidden,
            self.vocab_size,
            self.num_layers,
        ]
        .map(|size| size as f64);
        let value = layers * d * (4.0 * heads + 3.0 * (hidden + experts * expert + shared)) + 2.0 * vocab * d;
        let field = "the number of parameters";
        if value > limits::PARAMETERS {
            return Err(LmConfigError::TooLarge { field, value, most: limits::PARAMETERS });
        }
        Ok(())
    }

    fn validate_padding(&self) -> Result<(), LmConfigError> {
        let vocab_size = self.vocab_size;
        match self.padding_id {
            Some(padding_id) if padding_id >= vocab_size => {
                Err(LmConfigError::NoSuchPadding { padding_id, vocab_size })
            }
            _ => Ok(()),
        }
    }

    fn validate_heads(&self) -> Result<(), LmConfigError> {
        let (d_model, num_heads) = (self.d_model, self.num_heads);
        if self.head_dim.is_none() && !d_model.is_multiple_of(num_heads) {
            return Err(LmConfigError::HeadsDoNotDivide { d_model, num_heads });
        }
        let num_kv_heads = self.kv_heads();
        if !num_heads.is_multiple_of(num_kv_heads) {
            return Err(LmConfigError::KvHeadsDoNotDivide { num_kv_heads, num_heads });
        }
        let head_dim = self.head_width();
        if !head_dim.is_multiple_of(2) {
            return Err(LmConfigError::OddHeadDim { head_dim });
        }
        Ok(())
    }

    fn validate_numbers(&self) -> Result<(), LmConfigError> {
        positive("norm_eps", self.norm_eps)?;
        positive("rope_theta", self.rope_theta)?;
        self.rope_scaling.iter().try_for_each(RopeScaling::validate)?;
        not_negative("init_std", self.init_std)
    }
}

impl LmMoeConfig {
    /// Of the table alone.
    pub(crate) fn validate(&self) -> Result<(), LmConfigError> {
        non_zero("moe.num_experts", self.num_experts)?;
        non_zero("moe.top_k", self.top_k)?;
        non_zero("moe.d_hidden", self.d_hidden)?;
        not_negative("moe.balance_coef", self.balance_coef)?;
        not_negative("moe.z_coef", self.z_coef)?;
        not_negative("moe.importance_coef", self.importance_coef)?;
        not_negative("moe.load_coef", self.load_coef)?;
        not_negative("moe.capacity_factor", self.capacity_factor)?;
        not_negative("moe.noisy.noise_std", self.noisy.noise_std.unwrap_or(0.0))?;
        non_zero("moe.sinkhorn.iterations", self.sinkhorn.iterations)?;
        if let Some(error) = self.rule(0).default_vectors_error().filter(|_| self.has_default_vectors()) {
            return Err(LmConfigError::Moe(error.into()));
        }
        let beta = self.default.beta;
        in_range("moe.default.beta", beta, (0.0..1.0).contains(&beta), "0 or above, and below 1")?;
        if self.top_k > self.num_experts {
            return Err(LmConfigError::TopKTooLarge { top_k: self.top_k, num_experts: self.num_experts });
        }
        if self.shared_gate && self.shared_d_hidden == 0 {
            return Err(LmConfigError::SharedGateWithoutExperts);
        }
        Ok(())
    }
}

fn non_zero(field: &'static str, value: usize) -> Result<(), LmConfigError> {
    if value == 0 { Err(LmConfigError::Zero { field }) } else { Ok(()) }
}

pub(super) fn at_least_one(field: &'static str, value: f64) -> Result<(), LmConfigError> {
    in_range(field, value, value >= 1.0, "a finite number, 1 or above")
}

pub(super) fn positive(field: &'static str, value: f64) -> Result<(), LmConfigError> {
    in_range(field, value, value > 0.0, "a finite number above 0")
}

fn not_negative(field: &'static str, value: f64) -> Result<(), LmConfigError> {
    in_range(field, value, value >= 0.0, "a finite number, 0 or above")
}

fn in_range(field: &'static str, value: f64, inside: bool, expected: &'static str) -> Result<(), LmConfigError> {
    if inside && value.is_finite() { Ok(()) } else { Err(LmConfigError::Range { field, value, expected }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(change: impl FnOnce(&mut LmConfig)) -> LmConfigError {
        let mut config = LmConfig::tiny();
        change(&mut config);
        config.validate().expect_err("the change contradicts itself")
    }

    #[test]
    fn a_capacity_that_looks_ahead_and_a_second_balance_loss_are_warned_of() {
        let warnings = |change: fn(&mut LmMoeConfig)| {
            let mut config = LmConfig::tiny();
            change(&mut config.moe);
            let with_experts = config.warnings();
            assert!(config.with_moe_layers(MoeLayers::None).warnings().is_empty());
            with_experts
        };
        assert!(warnings(|_| ()).is_empty());
        assert_eq!(warnings(|moe| (moe.capacity_factor, moe.top_k) = (1.0, 2)), [DROPS_AHEAD]);
        let by_probability = |moe: &mut LmMoeConfig| {
            (moe.capacity_factor, moe.top_k, moe.drop_policy) = (1.0, 1, DropPolicy::Probability);
        };
        assert_eq!(warnings(by_probability), [DROPS_AHEAD]);
        assert!(warnings(|moe| (moe.capacity_factor, moe.top_k) = (1.0, 1)).is_empty());
        assert_eq!(warnings(|moe| moe.router = RouterKind::Relu), [TWO_BALANCES]);
        assert!(warnings(|moe| (moe.router, moe.balance_coef) = (RouterKind::Relu, 0.0)).is_empty());
    }

    #[test]
    fn a_size_of_zero_is_named() {
        let zero = |field| LmConfigError::Zero { field };
        assert_eq!(error(|c| c.vocab_size = 0), zero("vocab_size"));
        assert_eq!(error(|c| c.d_model = 0), zero("d_model"));
        assert_eq!(error(|c| c.num_layers = 0), zero("num_layers"));
        assert_eq!(error(|c| c.num_heads = 0), zero("num_heads"));
        assert_eq!(error(|c| c.d_hidden = 0), zero("d_hidden"));
        assert_eq!(error(|c| c.max_seq_len = 0), zero("max_seq_len"));
        assert_eq!(error(|c| c.num_kv_heads = Some(0)), zero("num_kv_heads"));
        assert_eq!(error(|c| c.head_dim = Some(0)), zero("head_dim"));
        assert_eq!(error(|c| c.moe.num_experts = 0), zero("moe.num_experts"));
        assert_eq!(error(|c| c.moe.top_k = 0), zero("moe.top_k"));
        assert_eq!(error(|c| c.moe.d_hidden = 0), zero("moe.d_hidden"));
    }

    #[test]
    fn a_size_beyond_every_machine_is_named() {
        let named = |change: fn(&mut LmConfig)| match error(change) {
            LmConfigError::TooLarge { field, .. } => field,
            other => panic!("another error: {other}"),
        };
        assert_eq!(named(|c| c.num_layers = usize::MAX), "num_layers");
        assert_eq!(named(|c| c.max_seq_len = 999_999_999_999), "max_seq_len");
        assert_eq!(named(|c| c.vocab_size = usize::MAX), "vocab_size");
        assert_eq!(named(|c| c.moe.num_experts = usize::MAX), "moe.num_experts");
        assert_eq!(named(|c| (c.d_model, c.d_hidden) = (1 << 30, 1 << 30)), "the number of parameters");
        assert_eq!(named(|c| (c.num_heads, c.head_dim) = (1 << 30, Some(1 << 30))), "the number of parameters");
    }

    #[test]
    fn heads_that_do_not_divide_are_refused_with_both_numbers() {
        let message = error(|c| c.num_heads = 3).to_string();
        assert!(message.contains("128") && message.contains("num_heads = 3"), "{message}");
        let message = error(|c| c.num_kv_heads = Some(3)).to_string();
        assert!(message.contains("num_kv_heads = 3") && message.contains("num_heads = 4"), "{message}");
        assert_eq!(error(|c| c.head_dim = Some(7)), LmConfigError::OddHeadDim { head_dim: 7 });
    }

    #[test]
    fn a_given_head_dim_need_not_divide_d_model() {
        let mut config = LmConfig::tiny();
        (config.num_heads, config.head_dim) = (3, Some(16));
        assert_eq!(config.validate(), Ok(()));
    }

    #[test]
    fn a_padding_token_must_be_one_of_the_vocabulary() {
        let vocab_size = LmConfig::tiny().vocab_size;
        assert_eq!(LmConfig::tiny().with_padding_id(Some(vocab_size - 1)).validate(), Ok(()));
        let refused = error(|c| c.padding_id = Some(vocab_size));
        assert_eq!(refused, LmConfigError::NoSuchPadding { padding_id: vocab_size, vocab_size });
    }

    #[test]
    fn more_experts_per_token_than_experts_is_refused() {
        let expected = LmConfigError::TopKTooLarge { top_k: 9, num_experts: 8 };
        assert_eq!(error(|c| c.moe.top_k = 9), expected);
        assert!(expected.to_string().contains("top_k = 9"));
    }

    #[test]
    fn a_gate_of_no_shared_experts_is_refused() {
        let refused = error(|c| c.moe.shared_gate = true);
        assert_eq!(refused, LmConfigError::SharedGateWithoutExperts);
        assert!(refused.to_string().contains("moe.shared_d_hidden"));
    }

    #[test]
    fn a_dense_model_ignores_the_moe_table() {
        let mut config = LmConfig::tiny();
        config.moe_layers = MoeLayers::None;
        config.moe.top_k = 0;
        assert_eq!(config.validate(), Ok(()));
    }

    #[test]
    fn a_placement_without_a_layer_is_refused() {
        for moe_layers in [MoeLayers::Every(0), MoeLayers::Every(5), MoeLayers::Only(vec![])] {
            let refused = error(|c| c.moe_layers = moe_layers.clone());
            assert_eq!(refused, LmConfigError::NoMoeLayer { moe_layers, num_layers: 4 });
        }
        let beyond = error(|c| c.moe_layers = MoeLayers::Only(vec![1, 4])).to_string();
        assert!(beyond.contains("only-1,4") && beyond.contains("num_layers = 4"), "{beyond}");
        let one = |c: &mut LmConfig| c.num_layers = 1;
        assert!(matches!(error(one), LmConfigError::NoMoeLayer { num_layers: 1, .. }));
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        assert!(matches!(error(|c| c.moe.default.beta = 1.0), LmConfigError::Range { field: "moe.default.beta", .. }));
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(matches!(error(|c| c.norm_eps = bad), LmConfigError::Range { field: "norm_eps", .. }));
            assert!(matches!(error(|c| c.rope_theta = bad), LmConfigError::Range { field: "rope_theta", .. }));
        }
        for bad in [-1e-9, f64::NAN] {
            assert!(matches!(error(|c| c.init_std = bad), LmConfigError::Range { field: "init_std", .. }));
            assert!(matches!(error(|c| c.moe.z_coef = bad), LmConfigError::Range { field: "moe.z_coef", .. }));
            assert!(matches!(
                error(|c| c.moe.default.beta = bad),
                LmConfigError::Range { field: "moe.default.beta", .. }
            ));
            let coef = error(|c| c.moe.balance_coef = bad);
            assert!(matches!(coef, LmConfigError::Range { field: "moe.balance_coef", .. }));
        }
    }
}

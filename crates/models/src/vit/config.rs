//! What a vision transformer looks like, as plain data.

use burn::config::Config;
use moe_layers::{Activation, SoftMoeConfig};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::lm::feed_forward::FeedForwardSpec;
use crate::lm::{LmMoeConfig, MoeLayers, RouterKind, limits};

/// Configuration to create a [`Vit`](super::Vit) using the [init function](VitConfig::init).
///
/// Symbols in shapes: `B` batch, `C` channels, `P` patch size, `S` tokens of an image, `D` d_model, `H` heads, `A` head width.
#[derive(Config, Debug, PartialEq)]
pub struct VitConfig {
    /// Height and width of an image, in pixels.
    pub image_size: usize,
    /// Height and width of a patch, `P`, a divisor of `image_size`.
    pub patch_size: usize,
    /// Number of classes.
    pub num_classes: usize,
    /// Width of the residual stream, `D`.
    pub d_model: usize,
    /// Number of transformer blocks.
    pub num_layers: usize,
    /// Number of heads, `H`, a divisor of `d_model`.
    pub num_heads: usize,
    /// Width `F` of a dense feed-forward block.
    pub d_hidden: usize,
    /// Number of channels, `C`. Default: 3
    #[config(default = 3)]
    pub channels: usize,
    /// What the classes are read from. Default: the mean of the tokens
    #[config(default = "Pooling::Mean")]
    pub pooling: Pooling,
    /// Activation of the dense feed-forward blocks. Default: GELU
    #[config(default = "Activation::Gelu")]
    pub activation: Activation,
    /// Which layers have experts. Default: every second one, as in V-MoE
    #[config(default = "MoeLayers::Every(2)")]
    pub moe_layers: MoeLayers,
    /// The feed-forward block of those layers. Default: 8 experts, top 2, each half as wide as a dense block, with GELU
    #[config(default = "LmMoeConfig::new(8, 2, d_hidden / 2).with_activation(Activation::Gelu)")]
    pub moe: LmMoeConfig,
    /// Slots of each expert if those layers are Soft MoE, of which `moe` then says number, width, activation and biases of the experts. 0: they
    /// route. Default: 0
    #[config(default = 0)]
    pub soft_slots: usize,
    /// Added to the variance inside every normalisation. Default: 1e-6
    #[config(default = 1e-6)]
    pub norm_eps: f64,
    /// Standard deviation of the initial matrices; those that write into the residual stream have it divided by
    /// `sqrt(2 * num_layers)`. Default: 0.02
    #[config(default = 0.02)]
    pub init_std: f64,
}

/// What the classes are read from; in text `"mean"`, `"class-token"`.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Pooling {
    /// The mean of all tokens.
    #[default]
    Mean,
    /// A token of its own, before those of the patches.
    ClassToken,
}

/// Why a [`VitConfig`] is not a model.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum VitConfigError {
    /// A size is 0.
    #[error("{0} is 0; set it to at least 1")]
    Zero(&'static str),
    /// A size that no machine has room for.
    #[error("{field} is {value}; it can be {most} at most")]
    TooLarge {
        /// The field, or what the fields make together.
        field: &'static str,
        /// What it is.
        value: f64,
        /// What it may be.
        most: f64,
    },
    /// A part of an image is left over.
    #[error("patch_size = {patch_size} does not divide image_size = {image_size}; choose a divisor of {image_size}")]
    PatchesDoNotDivide {
        /// Of an image.
        image_size: usize,
        /// Of a patch.
        patch_size: usize,
    },
    /// A head would have a fraction of a channel.
    #[error("num_heads = {num_heads} does not divide d_model = {d_model}; choose a divisor of {d_model}")]
    HeadsDoNotDivide {
        /// Width of the model.
        d_model: usize,
        /// Number of heads.
        num_heads: usize,
    },
    /// A placement of experts that selects nothing.
    #[error(
        "moe_layers = \"{moe_layers}\" selects none of num_layers = {num_layers} layers; write \"none\" for a dense \
         model, or choose \"all\""
    )]
    NoMoeLayer {
        /// The placement.
        moe_layers: MoeLayers,
        /// Number of blocks.
        num_layers: usize,
    },
    /// A placement names a layer that is not there.
    #[error("moe_layers = \"{moe_layers}\" names a layer that is not there: num_layers = {num_layers}, counted from 0")]
    NoSuchLayer {
        /// The placement.
        moe_layers: MoeLayers,
        /// Number of blocks.
        num_layers: usize,
    },
    /// What a layer with experts cannot be.
    #[error("the moe table contradicts itself: {0}")]
    Moe(String),
}

impl VitConfig {
    /// Number of tokens of an image, `S`.
    pub fn num_tokens(&self) -> usize {
        let side = self.image_size / self.patch_size.max(1);
        side * side + usize::from(self.pooling == Pooling::ClassToken)
    }

    /// Numbers in a patch, `C P P`.
    pub fn patch_numbers(&self) -> usize {
        self.channels * self.patch_size * self.patch_size
    }

    /// Whether layer `layer`, counted from 0, has experts.
    pub fn is_moe_layer(&self, layer: usize) -> bool {
        self.moe_layers.includes(layer, self.num_layers)
    }

    /// # Errors
    ///
    /// Returns the first contradiction found: a size of 0, patches or heads that do not divide, a placement of experts without a
    /// layer, a table `moe` that contradicts itself (not looked at without a layer of experts).
    pub fn validate(&self) -> Result<(), VitConfigError> {
        self.validate_sizes()?;
        if self.moe_layers == MoeLayers::None {
            return Ok(());
        }
        let (moe_layers, num_layers) = (self.moe_layers.clone(), self.num_layers);
        if moe_layers.last_named().is_some_and(|layer| layer >= num_layers) {
            return Err(VitConfigError::NoSuchLayer { moe_layers, num_layers });
        }
        if !(0..self.num_layers).any(|layer| self.is_moe_layer(layer)) {
            return Err(VitConfigError::NoMoeLayer { moe_layers, num_layers });
        }
        if self.soft_slots > 0 && self.moe.is_routed() {
            let error = "a Soft MoE has neither router, capacity, shared experts nor default vectors; leave them as they are by default";
            return Err(VitConfigError::Moe(error.into()));
        }
        if self.moe.router == RouterKind::Hash {
            return Err(VitConfigError::Moe("a hash router looks at the ids of tokens, and patches have none".into()));
        }
        self.moe.validate().map_err(|error| VitConfigError::Moe(error.to_string()))?;
        self.moe.layer(0, self.d_model, self.init_std).validate().map_err(VitConfigError::Moe)
    }

    fn validate_sizes(&self) -> Result<(), VitConfigError> {
        let sizes = [
            ("image_size", self.image_size),
            ("patch_size", self.patch_size),
            ("num_classes", self.num_classes),
            ("d_model", self.d_model),
            ("num_layers", self.num_layers),
            ("num_heads", self.num_heads),
            ("d_hidden", self.d_hidden),
            ("channels", self.channels),
        ];
        if let Some((field, _)) = sizes.into_iter().find(|(_, size)| *size == 0) {
            return Err(VitConfigError::Zero(field));
        }
        self.validate_limits()?;
        let Self { image_size, patch_size, d_model, num_heads, .. } = *self;
        if !image_size.is_multiple_of(patch_size) {
            return Err(VitConfigError::PatchesDoNotDivide { image_size, patch_size });
        }
        if !d_model.is_multiple_of(num_heads) {
            return Err(VitConfigError::HeadsDoNotDivide { d_model, num_heads });
        }
        Ok(())
    }

    fn validate_limits(&self) -> Result<(), VitConfigError> {
        let moe = &self.moe;
        let sizes = [
            ("num_layers", self.num_layers, limits::LAYERS),
            ("image_size", self.image_size, limits::LAYERS),
            ("channels", self.channels, limits::LAYERS),
            ("num_classes", self.num_classes, limits::SIZE),
            ("d_model", self.d_model, limits::SIZE),
            ("num_heads", self.num_heads, limits::SIZE),
            ("d_hidden", self.d_hidden, limits::SIZE),
            ("moe.num_experts", moe.num_experts, limits::SIZE),
            ("moe.d_hidden", moe.d_hidden, limits::SIZE),
            ("moe.shared_d_hidden", moe.shared_d_hidden, limits::SIZE),
            ("soft_slots", self.soft_slots, limits::SIZE),
        ];
        if let Some((field, value, most)) = limits::first_beyond(&sizes) {
            return Err(VitConfigError::TooLarge { field, value, most });
        }
        let [d, hidden, experts, expert, shared, slots, layers, tokens, classes] = [
            self.d_model,
            self.d_hidden,
            moe.num_experts,
            moe.d_hidden,
            moe.shared_d_hidden,
            self.soft_slots,
            self.num_layers,
            self.num_tokens() + self.patch_numbers(),
            self.num_classes,
        ]
        .map(|size| size as f64);
        let inside = 4.0 * d + 3.0 * (hidden + experts * (expert + slots) + shared);
        let value = layers * d * inside + d * (tokens + classes);
        let field = "the number of parameters";
        match value > limits::PARAMETERS {
            true => Err(VitConfigError::TooLarge { field, value, most: limits::PARAMETERS }),
            false => Ok(()),
        }
    }

    /// Standard deviation of the matrices whose product is added to the residual stream.
    pub(super) fn residual_std(&self) -> f64 {
        self.init_std / (2.0 * self.num_layers as f64).sqrt()
    }

    /// What the feed-forward half of layer `layer` is made from, if it is no Soft MoE.
    pub(super) fn feed_forward(&self, layer: usize) -> FeedForwardSpec<'_> {
        let experts = || (self.moe.layer(0, self.d_model, self.init_std), self.moe.default_options());
        FeedForwardSpec {
            d_model: self.d_model,
            d_hidden: self.d_hidden,
            activation: self.activation,
            std: self.init_std,
            residual_std: self.residual_std(),
            moe: self.is_moe_layer(layer).then(experts),
        }
    }

    /// The Soft MoE of layer `layer`, if it is one.
    pub(super) fn soft(&self, layer: usize) -> Option<SoftMoeConfig> {
        let soft = SoftMoeConfig::new(self.d_model, self.moe.d_hidden, self.moe.num_experts)
            .with_slots_per_expert(self.soft_slots)
            .with_activation(self.moe.activation)
            .with_bias(self.moe.bias);
        (self.soft_slots > 0 && self.is_moe_layer(layer)).then_some(soft)
    }
}

//! A vision transformer with Mixture-of-Experts blocks: V-MoE ([Riquelme et al., 2021](https://arxiv.org/abs/2106.05974)) over ViT
//! ([Dosovitskiy et al., 2020](https://arxiv.org/abs/2010.11929)).
//!
//! An image is cut into patches, which are the tokens; blocks of attention and feed-forward networks follow, in some of which the
//! network is a layer of experts under any router of [`moe_layers::router`], or a [Soft MoE](moe_layers::SoftMoe); the
//! class token, or the mean of all tokens, goes through a linear map to the classes. Nothing is causal, so routers may look at all
//! tokens of a batch.
//!
//! ```
//! use burn::backend::{Autodiff, Flex};
//! use burn::tensor::{Distribution, Int, Tensor};
//! use moe_models::lm::{LmMoeConfig, MoeLayers, RouterKind};
//! use moe_models::vit::VitConfig;
//!
//! type B = Autodiff<Flex>;
//! let device = Default::default();
//! // Images of 16 x 16 in patches of 4, 10 classes; 8 experts of width 16 in the last block, chosen by experts.
//! let experts = LmMoeConfig::new(8, 2, 16).with_router(RouterKind::ExpertChoice);
//! let config = VitConfig::new(16, 4, 10, 32, 2, 4, 64).with_moe_layers(MoeLayers::Last(1)).with_moe(experts);
//! let model = config.init::<B>(&device);
//!
//! let images = Tensor::<B, 4>::random([2, 3, 16, 16], Distribution::Default, &device); // [batch, channels, height, width]
//! let labels = Tensor::<B, 1, Int>::from_ints([3, 7], &device);
//! let loss = model.loss(images, labels);
//! let gradients = loss.total.backward();
//! # let _ = gradients;
//! ```
//!
//! Paths of parameters: `patches` (`[C P P, D]`), `positions`, `class_token`, `blocks.0.attention.query` (`key`, `value`, `output`),
//! `blocks.0.attention_norm.gamma` (`beta`), `blocks.0.feed_forward.dense.w_in`, `blocks.1.feed_forward.moe.experts.w_in`,
//! `final_norm.gamma`, `head`, `head_bias`, and so on.

mod attention;
mod block;
mod config;
mod model;

#[cfg(test)]
mod tests;

pub use attention::VitAttention;
pub use block::VitBlock;
pub use config::{Pooling, VitConfig, VitConfigError};
pub use model::{Vit, VitLoss, VitOutput};

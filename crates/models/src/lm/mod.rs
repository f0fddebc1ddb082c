//! A decoder-only transformer language model with dense or Mixture-of-Experts feed-forward blocks.
//!
//! Pre-norm blocks, rotary positions, grouped-query attention, optional normalisation of queries and keys, tied or
//! untied embeddings. Everything that sets one published model apart from another is a field of [`LmConfig`]; the
//! published ones are its constructors ([`LmConfig::PRESETS`]).
//!
//! Paths of parameters: `embedding`, `blocks.0.attention_norm.gamma`, `blocks.0.attention.query` (`key`, `value`,
//! `output`, `query_norm.gamma`, `key_norm.gamma`), `blocks.0.feed_forward_norm.gamma`,
//! `blocks.0.feed_forward.dense.w_in` (`w_out`), `blocks.1.feed_forward.moe.router.TopK.weight`,
//! `blocks.1.feed_forward.moe.experts.w_in` (`w_out`, `b_in`, `b_out`), `final_norm.gamma`, `lm_head`. Layer
//! normalisation adds `beta` beside `gamma`, shared experts `blocks.1.feed_forward.moe.shared.w_in` (`w_out`) and
//! `blocks.1.feed_forward.moe.shared_gate`, default
//! vectors `blocks.1.feed_forward.default_vectors.values`.

mod attention;
mod block;
mod cache;
mod config;
pub mod count;
mod default_vectors;
pub(crate) mod feed_forward;
pub(crate) mod limits;
mod loads;
mod loss;
pub(crate) mod model;
mod norm;
mod placement;
mod presets;
mod rope_scaling;
mod rotary;
mod upcycle;
mod validate;

#[cfg(test)]
mod tests;

pub use attention::Attention;
pub use block::Block;
pub use cache::KvCache;
pub use config::{LmConfig, LmMoeConfig, NormKind, QkNorm, RouterKind};
pub use feed_forward::FeedForward;
pub use loss::{LmLoss, LmOutput, MoeLayerOutput, cross_entropy};
pub use model::Lm;
pub use norm::Norm;
pub use placement::{MoeLayers, ParseMoeLayersError};
pub use rope_scaling::RopeScaling;
pub use rotary::Rotary;
pub use upcycle::UpcycleError;
pub use validate::LmConfigError;

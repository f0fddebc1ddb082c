//! What turns gradients into an update: decay groups around AdamW, the learning rate of a step and the clipping of the
//! global norm.

mod adamw;
mod clip;
mod groups;
mod schedule;

pub use adamw::FusedAdamW;
pub(crate) use clip::clip_to;
pub use clip::{clip_global_norm, global_norm, scale_gradients};
pub use groups::{DecayGroups, LmOptimizer, decays};
pub use schedule::lr_at;

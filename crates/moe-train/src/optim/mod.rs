//! What turns gradients into an update: decay groups around AdamW, excitation of experts, what is frozen, the learning rate of a step and the clipping of the
//! global norm.

mod adamw;
mod clip;
mod excited;
mod freeze;
mod groups;
mod schedule;

pub use adamw::FusedAdamW;
pub(crate) use clip::clip_to;
pub use clip::{clip_global_norm, global_norm, scale_gradients};
pub(crate) use excited::moe_layers_of;
pub use excited::{ExpertLoads, LmExperts, OptionallyExcited};
pub use freeze::Freeze;
pub(crate) use freeze::parameter_paths;
pub use groups::{DecayGroups, LmOptimizer, decays};
pub use schedule::lr_at;

//! What turns gradients into an update: decay groups around AdamW, excitation of experts, what is frozen, the learning rate of a step and the clipping of the
//! global norm.

mod adamw;
mod adaptor;
mod clip;
mod excited;
mod freeze;
mod groups;
mod schedule;

pub use adamw::FusedAdamW;
pub use adaptor::AdamW;
pub(crate) use clip::clip_to;
pub use clip::{clip_global_norm, global_norm, scale_gradients};
pub use excited::{ExpertLoads, ModelExperts, OptionallyExcited};
pub use freeze::Freeze;
pub(crate) use freeze::{parameter_paths, paths_in};
pub use groups::{DecayGroups, LmOptimizer, decays};
pub use schedule::lr_at;

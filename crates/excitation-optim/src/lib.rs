#![forbid(unsafe_code)]
#![doc = include_str!("../README.md")]

mod config;
mod counts;
mod excitation;
mod exciter;
mod grads;
mod layers;
mod lbfgs;
mod modulation;
mod per_expert;
mod permutation;
mod scaling;
mod slices;

pub use config::{Control, ExcitationConfig, Variant};
pub use counts::{ExpertCounts, register_counts};
pub use excitation::Excitation;
pub use exciter::{Exciter, LayerFactors};
pub use grads::Grads;
pub use layers::{ByModule, ExpertLayer, ExpertLayers, ExpertModule, FindExperts};
pub use modulation::{Draw, Utilization};
pub use per_expert::PerExpert;
pub use scaling::{ExpertFactors, ParamFactors, ScalingOptimizer};

//! The suite that all backends share. One program: a CubeCL backend is compiled anew into every program that uses it.

mod default_moe;
mod expert_ffn;
mod expert_sums;
mod fused;
mod kernels;
mod layers;
mod model;

#[cfg(feature = "flex")]
mod kernels_panics;
#[cfg(feature = "flex")]
mod low_precision;

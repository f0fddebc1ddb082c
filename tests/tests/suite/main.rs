//! The suite that all backends share. One program: a CubeCL backend is compiled anew into every program that uses it.

mod attention;
mod default_moe;
mod expert_ffn;
mod expert_parallel;
mod expert_sums;
mod fused;
mod kernels;
mod layers;
mod linear;
mod losses;
mod low_precision;
mod model;
mod partial_plan;
mod reduce;
mod routers;
mod shared_experts;
mod torch_layer;
mod views;

#[cfg(feature = "flex")]
mod kernels_panics;
#[cfg(feature = "flex")]
mod kernels_panics_around;
#[cfg(any(feature = "flex", feature = "ndarray"))]
mod threads;

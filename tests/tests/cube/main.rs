//! The kernels of `moe_kernels::cube`, each against the naive one, on the device of the suite.
//!
//! A program of its own: it asks for kernels by name, which no op of a backend does.
#![cfg(any(feature = "wgpu", feature = "cuda"))]

mod grouped;

//! The kernels of `moe_kernels::cube`, each by name, on the device of the suite.
//!
//! A program of its own, since it needs a runtime and not a backend, which makes it quick to build.
#![cfg(feature = "cube")]

mod grouped;
mod plan;
mod rows;
mod strategy;
mod support;

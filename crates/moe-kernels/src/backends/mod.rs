//! Which backends have the ops.

mod autodiff;
#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "flex")]
mod flex;
#[cfg(feature = "cube")]
mod fusion;
#[cfg(feature = "cpu")]
mod host;
#[cfg(feature = "ndarray")]
mod ndarray;

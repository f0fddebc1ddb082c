//! Which backends have the ops.

mod autodiff;
#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "flex")]
mod flex;
#[cfg(feature = "cpu")]
mod host;
#[cfg(feature = "ndarray")]
mod ndarray;

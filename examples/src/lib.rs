//! The programs are in `src/bin`; all they share is the backend. The code of the workspace's README is tested here.

#![forbid(unsafe_code)]
#![cfg_attr(doctest, doc = include_str!("../../README.md"))]

/// The backend that a cargo feature chooses; a program of your own names one and is done.
#[cfg(feature = "cuda")]
pub type Chosen = burn::backend::Cuda;
/// The backend that a cargo feature chooses; a program of your own names one and is done.
#[cfg(all(feature = "wgpu", not(feature = "cuda")))]
pub type Chosen = burn::backend::Wgpu;
/// The backend that a cargo feature chooses; a program of your own names one and is done.
#[cfg(all(feature = "ndarray", not(any(feature = "wgpu", feature = "cuda"))))]
pub type Chosen = burn::backend::NdArray;
/// The backend that a cargo feature chooses; a program of your own names one and is done.
#[cfg(not(any(feature = "ndarray", feature = "wgpu", feature = "cuda")))]
pub type Chosen = burn::backend::Flex;

//! Why a kernel cannot be set up for a product.

use std::fmt;

/// Why a kernel was not launched. Another kernel may do: [`product`](super::product()) tries the next one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum GroupedError {
    /// The device lacks what the kernel is made of.
    Unavailable(String),
    /// The tile shape contradicts itself.
    Invalid(String),
    /// The device is too small for the kernel.
    Launch(String),
}

impl fmt::Display for GroupedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(what) => write!(f, "the device has no {what}"),
            Self::Invalid(what) => write!(f, "invalid tile shape: {what}"),
            Self::Launch(what) => write!(f, "beyond the limits of the device: {what}"),
        }
    }
}

impl std::error::Error for GroupedError {}

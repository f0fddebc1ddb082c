//! What stands between the two products of a feed-forward network.

use serde::{Deserialize, Serialize};

/// The non-linearity of a feed-forward network.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// `silu(x W_gate) * (x W_up)` ([Shazeer, 2020](https://arxiv.org/abs/2002.05202)); the first matrix has `2F`
    /// columns, gate first.
    #[default]
    SwiGlu,
    /// `gelu(x W)`, exact (with the error function).
    Gelu,
    /// `max(x W, 0)`. A NaN stays one on CPU backends; on a GPU it may become 0.
    Relu,
}

impl Activation {
    /// Columns of the first matrix for a hidden width of `d_hidden`: `2F` for SwiGLU, otherwise `F`.
    pub fn columns(self, d_hidden: usize) -> usize {
        match self {
            Activation::SwiGlu => 2 * d_hidden,
            Activation::Gelu | Activation::Relu => d_hidden,
        }
    }
}

//! The same products in PyTorch, `torch/grouped.py` on the other end.

use std::collections::BTreeMap;
use std::path::Path;

use moe_train::config::Dtype;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::clock::Time;
use crate::error::{Error, Result};
use crate::session::ON_GPU;
use crate::torch::{Peer, Script};

/// A started `torch/grouped.py`.
pub(super) struct TorchProducts {
    peer: Peer,
    /// What the script says of itself.
    pub(super) versions: Value,
}

/// What the other side says to a product.
#[derive(Deserialize)]
struct SetUp {
    names: Vec<String>,
    unable: BTreeMap<String, String>,
    #[serde(flatten)]
    versions: Value,
}

impl TorchProducts {
    pub(super) fn start(python: &Path) -> Result<Self> {
        Ok(Self { peer: Peer::start(python, Script::Grouped)?, versions: Value::Null })
    }

    /// Makes the operands and says who can multiply them; who cannot is told to the person at the terminal.
    pub(super) fn set_up(
        &mut self,
        product: &str,
        widths: [usize; 2],
        loads: &[usize],
        dtype: Dtype,
        threads: usize,
    ) -> Result<Vec<String>> {
        let device = if ON_GPU && cfg!(feature = "cuda") { "cuda" } else { "cpu" };
        let answer = self.peer.ask(&json!({
            "do": "set up", "product": product, "left": widths[0], "right": widths[1], "loads": loads,
            "dtype": dtype.to_string(), "threads": threads, "device": device,
        }))?;
        let SetUp { names, unable, versions } = serde_json::from_value(answer).map_err(|e| Error::of("PyTorch", e))?;
        self.versions = versions;
        for (name, reason) in unable {
            eprintln!("{name} cannot compute this product: {reason}");
        }
        Ok(names)
    }

    /// One repetition.
    pub(super) fn run(&mut self, name: &str, repeats: usize) -> Result<Time> {
        let answer = self.peer.ask(&json!({"do": "run", "name": name, "repeats": repeats}))?;
        serde_json::from_value(answer).map_err(|error| Error::of("PyTorch's times", error))
    }
}

//! The contestants of PyTorch, `torch/layer.py` on the other end.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::rc::Rc;

use moe_kernels::AutodiffMoeBackend;
use moe_train::config::Dtype;
use serde::Deserialize;
use serde_json::{Value, json};

use super::contest::{Contestant, Pass, Side};
use super::problem::Problem;
use super::verify::host;
use crate::clock::Time;
use crate::error::{Error, Result};
use crate::torch::{Peer, Script};

/// Contestants that compute the same function as our layer, so that their results can be compared.
const SAME_FUNCTION: [&str; 2] = ["hf eager", "hf grouped_mm"];

/// A started `torch/layer.py`.
pub(crate) struct TorchSide {
    peer: Rc<RefCell<Peer>>,
    /// What the script says of itself.
    pub(crate) versions: Value,
}

/// What the other side says to a shape.
#[derive(Deserialize)]
struct SetUp {
    names: Vec<String>,
    unable: BTreeMap<String, String>,
    #[serde(flatten)]
    versions: Value,
}

/// Who takes part on the other side.
#[derive(Default)]
pub(crate) struct Remotes {
    pub(crate) contestants: Vec<Box<dyn Contestant>>,
    /// Those that cannot compute this shape, with what they say.
    pub(crate) unable: BTreeMap<String, String>,
}

/// One of its contestants.
struct Remote {
    peer: Rc<RefCell<Peer>>,
    name: String,
}

impl TorchSide {
    pub(crate) fn start(python: &Path) -> Result<Self> {
        let peer = Peer::start(python, Script::Layer)?;
        Ok(Self { peer: Rc::new(RefCell::new(peer)), versions: Value::Null })
    }

    /// Makes the layer of `problem` on the other side and verifies it against ours.
    pub(crate) fn set_up<B: AutodiffMoeBackend>(
        &mut self,
        problem: &Problem<B>,
        threads: usize,
        device: &str,
    ) -> Result<Remotes> {
        let case = problem.case;
        let answer = self.peer.borrow_mut().ask(&json!({
            "do": "set up", "tokens": case.tokens, "d_model": case.d_model, "d_hidden": case.d_hidden,
            "experts": case.experts, "top_k": case.top_k, "skew": problem.skew, "threads": threads,
            "dtype": problem.dtype.to_string(), "device": device,
        }))?;
        let SetUp { names, unable, versions } = serde_json::from_value(answer).map_err(|e| Error::of("PyTorch", e))?;
        self.versions = versions;
        self.verify(problem, &names)?;
        Ok(Remotes { contestants: names.into_iter().map(|name| self.contestant(name)).collect(), unable })
    }

    fn contestant(&self, name: String) -> Box<dyn Contestant> {
        Box::new(Remote { peer: Rc::clone(&self.peer), name })
    }

    /// Output and token gradients of the blocks that compute what our layer computes.
    fn verify<B: AutodiffMoeBackend>(&self, problem: &Problem<B>, names: &[String]) -> Result<()> {
        let tokens = problem.tokens();
        let output = problem.moe.forward(tokens.clone()).output;
        let grads = output.backward();
        let mut ours = host(output);
        ours.extend(host(tokens.grad(&grads).expect("tokens are tracked")));
        for name in names.iter().filter(|name| SAME_FUNCTION.contains(&name.as_str())) {
            let theirs = self.result(name)?;
            agree(name, &ours, &theirs, problem.case.d_model, problem.dtype)?;
        }
        Ok(())
    }

    fn result(&self, name: &str) -> Result<Vec<f32>> {
        let mut peer = self.peer.borrow_mut();
        let path = peer.scratch_file();
        peer.ask(&json!({"do": "result", "name": name, "path": path}))?;
        let bytes = fs::read(&path).map_err(|error| Error::of("the values of PyTorch", error))?;
        Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }
}

/// Compares row by row: where two probabilities are equal but for rounding, sides may choose different experts, which
/// changes a token's whole row. Few tokens are that close, more of them in bf16, in which they compute the router.
fn agree(name: &str, ours: &[f32], theirs: &[f32], width: usize, dtype: Dtype) -> Result<()> {
    let (tolerance, part) = match dtype {
        Dtype::F32 => (1e-4, 1e-3),
        Dtype::Bf16 => (5e-2, 0.25),
    };
    let scale = ours.iter().fold(0f32, |max, x| max.max(x.abs()));
    // Not by what differs: a NaN agrees with nothing.
    let agrees = |(a, b): (&f32, &f32)| (a - b).abs() <= tolerance * scale;
    let rows = ours.chunks(width).zip(theirs.chunks(width));
    let strayed = rows.filter(|(a, b)| !a.iter().zip(b.iter()).all(agrees)).count();
    let rows = ours.len() / width;
    if ours.len() == theirs.len() && strayed <= 2 + (part * rows as f64) as usize {
        return Ok(());
    }
    Err(Error::new(format!("wrong result, so nothing is timed: {strayed} of {rows} rows of `{name}` differ from ours")))
}

impl Contestant for Remote {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn side(&self) -> Side {
        Side::Torch
    }

    fn run(&mut self, pass: Pass) -> Result<Time> {
        let question = json!({"do": "run", "name": self.name, "backward": pass == Pass::Training});
        let answer = self.peer.borrow_mut().ask(&question)?;
        serde_json::from_value(answer).map_err(|error| Error::of("PyTorch's times", error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agree_f32(theirs: &[f32]) -> bool {
        agree("hf", &[1.0; 40], theirs, 4, Dtype::F32).is_ok()
    }

    #[test]
    fn a_few_rows_may_differ_and_no_more() {
        let mut theirs = [1.0; 40];
        theirs[..8].fill(2.0);
        assert!(agree_f32(&theirs));
        theirs[8] = 1.1;
        assert!(!agree_f32(&theirs));
    }

    #[test]
    fn values_that_are_no_numbers_or_missing_do_not_agree() {
        assert!(!agree_f32(&[f32::NAN; 40]) && !agree_f32(&[1.0; 36]));
    }
}

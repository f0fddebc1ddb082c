//! Which tensors of a checkpoint make up which parameter.
//!
//! A matrix of PyTorch's is `[O, I]`, ours is `[I, O]`; SwiGLU's two matrices lie side by side in one of ours, and those
//! of all experts one behind the other. Channels of queries and keys are in the same order: both rotate channel `i` with
//! `i + A / 2`.

use super::Family;
use crate::lm::LmConfig;

/// A parameter of an [`Lm`](crate::lm::Lm), as a list of numbers.
#[derive(Debug)]
pub(super) struct Parameter {
    /// Its path in the module.
    pub(super) path: String,
    /// How many numbers it has.
    pub(super) len: usize,
    /// The tensors that fill it.
    pub(super) pieces: Vec<Piece>,
}

/// A tensor of a checkpoint and its place in a parameter.
#[derive(Debug)]
pub(super) struct Piece {
    /// Its name.
    pub(super) name: String,
    /// Its shape.
    pub(super) shape: Vec<usize>,
    /// Where in the parameter its block begins.
    start: usize,
    order: Order,
}

/// How the numbers of a tensor lie in its block.
#[derive(Clone, Copy, Debug)]
enum Order {
    /// As in the tensor.
    Same,
    /// Transposed, from column `first` on, in rows of `width` numbers.
    Transposed { first: usize, width: usize },
}

impl Piece {
    fn same(name: String, shape: impl Into<Vec<usize>>) -> Self {
        Self { name, shape: shape.into(), start: 0, order: Order::Same }
    }

    fn transposed(name: String, shape: [usize; 2]) -> Self {
        Self { name, shape: shape.into(), start: 0, order: Order::Transposed { first: 0, width: shape[0] } }
    }

    /// Numbers in the tensor.
    pub(super) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// The part of the parameter in which all its numbers lie.
    pub(super) fn block(&self) -> std::ops::Range<usize> {
        let len = match self.order {
            Order::Same => self.len(),
            Order::Transposed { width, .. } => self.shape[1] * width,
        };
        self.start..self.start + len
    }

    /// Writes the numbers of the tensor into its block.
    pub(super) fn scatter(&self, tensor: &[f32], block: &mut [f32]) {
        match self.order {
            Order::Same => block.copy_from_slice(tensor),
            Order::Transposed { first, width } => {
                self.each_place(first, width, |from, to| block[to] = tensor[from]);
            }
        }
    }

    /// Reads the numbers of the tensor out of its block.
    pub(super) fn gather(&self, block: &[f32]) -> Vec<f32> {
        match self.order {
            Order::Same => block.to_vec(),
            Order::Transposed { first, width } => {
                let mut tensor = vec![0.0; self.len()];
                self.each_place(first, width, |to, from| tensor[to] = block[from]);
                tensor
            }
        }
    }

    /// Calls `at` with the place of every number in the tensor and in the transposed block, a few columns of the block at a
    /// time: both sides then stay in the cache.
    fn each_place(&self, first: usize, width: usize, mut at: impl FnMut(usize, usize)) {
        const COLUMNS: usize = 32;
        let (columns, rows) = (self.shape[0], self.shape[1]);
        for start in (0..columns).step_by(COLUMNS) {
            for row in 0..rows {
                for column in start..columns.min(start + COLUMNS) {
                    at(column * rows + row, row * width + first + column);
                }
            }
        }
    }
}

impl Parameter {
    fn of(path: String, piece: Piece) -> Self {
        Self { path, len: piece.len(), pieces: vec![piece] }
    }
}

/// All parameters of a model, in order.
pub(super) fn parameters(family: Family, config: &LmConfig) -> Vec<Parameter> {
    let (d, vocab) = (config.d_model, config.vocab_size);
    let mut all = vec![Parameter::of("embedding".into(), Piece::same("model.embed_tokens.weight".into(), [vocab, d]))];
    for layer in 0..config.num_layers {
        all.extend(attention(config, layer));
        all.extend(if config.is_moe_layer(layer) { experts(family, config, layer) } else { dense(config, layer) });
    }
    all.push(Parameter::of("final_norm.gamma".into(), Piece::same("model.norm.weight".into(), [d])));
    if !config.tie_embeddings {
        all.push(Parameter::of("lm_head".into(), Piece::transposed("lm_head.weight".into(), [vocab, d])));
    }
    all
}

/// Attention with the norms of a block.
fn attention(config: &LmConfig, layer: usize) -> Vec<Parameter> {
    let (d, width) = (config.d_model, config.head_width());
    let [queries, keys] = [config.num_heads * width, config.kv_heads() * width];
    let (ours, theirs) = (format!("blocks.{layer}"), format!("model.layers.{layer}"));
    let matrix = |our: &str, their: &str, shape| {
        let piece = Piece::transposed(format!("{theirs}.self_attn.{their}.weight"), shape);
        Parameter::of(format!("{ours}.attention.{our}"), piece)
    };
    let gain = |our: &str, their: &str, width| {
        Parameter::of(format!("{ours}.{our}.gamma"), Piece::same(format!("{theirs}.{their}.weight"), [width]))
    };
    let mut all = vec![
        gain("attention_norm", "input_layernorm", d),
        matrix("query", "q_proj", [queries, d]),
        matrix("key", "k_proj", [keys, d]),
        matrix("value", "v_proj", [keys, d]),
        matrix("output", "o_proj", [d, queries]),
        gain("feed_forward_norm", "post_attention_layernorm", d),
    ];
    if let Some([queries, keys]) = qk_norm_widths(config) {
        all.push(gain("attention.query_norm", "self_attn.q_norm", queries));
        all.push(gain("attention.key_norm", "self_attn.k_norm", keys));
    }
    all
}

/// Channels that the norms of queries and keys see at once.
fn qk_norm_widths(config: &LmConfig) -> Option<[usize; 2]> {
    use crate::lm::QkNorm;
    let width = config.head_width();
    match config.qk_norm {
        QkNorm::None => None,
        QkNorm::PerHead => Some([width, width]),
        QkNorm::Full => Some([config.num_heads * width, config.kv_heads() * width]),
    }
}

fn dense(config: &LmConfig, layer: usize) -> Vec<Parameter> {
    let name = |matrix: &str| format!("model.layers.{layer}.mlp.{matrix}_proj.weight");
    let path = |matrix: &str| format!("blocks.{layer}.feed_forward.dense.{matrix}");
    let names = ["gate", "up", "down"].map(name);
    network([path("w_in"), path("w_out")], 1, [config.d_model, config.d_hidden], |_| names.clone()).into()
}

fn experts(family: Family, config: &LmConfig, layer: usize) -> Vec<Parameter> {
    let (d, moe) = (config.d_model, &config.moe);
    let (block, matrices) = match family {
        Family::Mixtral => ("block_sparse_moe", ["w1", "w3", "w2"]),
        Family::Olmoe | Family::Qwen3Moe => ("mlp", ["gate_proj", "up_proj", "down_proj"]),
    };
    let theirs = format!("model.layers.{layer}.{block}");
    let names = |expert: usize| matrices.map(|matrix| format!("{theirs}.experts.{expert}.{matrix}.weight"));
    let path = |parameter: &str| format!("blocks.{layer}.feed_forward.moe.{parameter}");
    let router = Piece::transposed(format!("{theirs}.gate.weight"), [moe.num_experts, d]);
    let mut all = vec![Parameter::of(path("router.TopK.weight"), router)];
    all.extend(network([path("experts.w_in"), path("experts.w_out")], moe.num_experts, [d, moe.d_hidden], names));
    all
}

/// `count` SwiGLU networks of width `[D, F]`; `names` has those of the gate, the up and the down matrix of one.
fn network(
    [w_in, w_out]: [String; 2],
    count: usize,
    [d, f]: [usize; 2],
    names: impl Fn(usize) -> [String; 3],
) -> [Parameter; 2] {
    let half = |name, expert: usize, first| Piece {
        start: expert * d * 2 * f,
        order: Order::Transposed { first, width: 2 * f },
        ..Piece::transposed(name, [f, d])
    };
    let (mut into, mut out) = (Vec::new(), Vec::new());
    for expert in 0..count {
        let [gate, up, down] = names(expert);
        into.extend([half(gate, expert, 0), half(up, expert, f)]);
        out.push(Piece { start: expert * f * d, ..Piece::transposed(down, [d, f]) });
    }
    [
        Parameter { path: w_in, len: count * d * 2 * f, pieces: into },
        Parameter { path: w_out, len: count * f * d, pieces: out },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gathering_gives_back_what_was_scattered() {
        let numbers = |len: usize, from: usize| (from..from + len).map(|n| n as f32).collect::<Vec<_>>();
        let names = |expert: usize| ["g", "u", "d"].map(|name| format!("{name}{expert}"));
        for parameter in network(["in".into(), "out".into()], 3, [4, 5 * 9], names) {
            let mut values = vec![f32::NAN; parameter.len];
            for (i, piece) in parameter.pieces.iter().enumerate() {
                piece.scatter(&numbers(180, 180 * i), &mut values[piece.block()]);
            }
            assert!(values.iter().all(|value| !value.is_nan()), "every number of {} has a tensor", parameter.path);
            for (i, piece) in parameter.pieces.iter().enumerate() {
                assert_eq!(piece.gather(&values[piece.block()]), numbers(180, 180 * i), "{}", piece.name);
            }
        }
    }

    #[test]
    fn gate_columns_come_first_and_matrices_are_transposed() {
        let [w_in, _] = network(["in".into(), "out".into()], 1, [2, 3], |_| ["g", "u", "d"].map(String::from));
        let mut values = vec![0.0; 12];
        let [gate, up] = &w_in.pieces[..] else { panic!("a gate and an up matrix") };
        gate.scatter(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &mut values[gate.block()]);
        up.scatter(&[-1.0, -2.0, -3.0, -4.0, -5.0, -6.0], &mut values[up.block()]);
        assert_eq!(values, [1.0, 3.0, 5.0, -1.0, -3.0, -5.0, 2.0, 4.0, 6.0, -2.0, -4.0, -6.0]);
    }
}

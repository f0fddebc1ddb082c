//! Which tensors of a checkpoint make up which parameter.
//!
//! A matrix of PyTorch's is `[O, I]`, ours is `[I, O]`; SwiGLU's two matrices lie side by side in one of ours, and those
//! of all experts one behind the other. Channels of queries and keys are in the same order: both rotate channel `i` with
//! `i + A / 2`.

use std::iter;
use std::ops::Range;

use super::{CheckpointError, Family};
use crate::lm::LmConfig;

/// How the matrices of a layer's experts lie in tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExpertTensors {
    /// Three for each expert, as published checkpoints have them.
    Separate,
    /// Two for all experts, `gate_up_proj` `[E, 2F, D]` and `down_proj` `[E, D, F]`, as `transformers` 5 has them in memory.
    Fused,
}

impl ExpertTensors {
    /// # Errors
    ///
    /// [`CheckpointError::MixedExperts`] when there are tensors of both kinds.
    pub(super) fn of<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Result<Self, CheckpointError> {
        let fused = names
            .clone()
            .find(|name| [".experts.gate_up_proj", ".experts.down_proj"].iter().any(|end| name.ends_with(end)));
        let separate = names.clone().find(|name| is_of_one_expert(name));
        match (fused, separate) {
            (None, _) => Ok(Self::Separate),
            (Some(_), None) => Ok(Self::Fused),
            (Some(fused), Some(separate)) => {
                Err(CheckpointError::MixedExperts { fused: fused.into(), separate: separate.into() })
            }
        }
    }
}

/// Whether a name is like `model.layers.0.mlp.experts.3.up_proj.weight`.
fn is_of_one_expert(name: &str) -> bool {
    let after = name.split_once(".experts.").and_then(|(_, after)| after.split('.').next());
    after.is_some_and(|expert| expert.parse::<usize>().is_ok())
}

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
    /// Every matrix transposed, from column `first` on, in rows of `width` numbers.
    Transposed { first: usize, width: usize },
}

impl Piece {
    fn same(name: String, shape: impl Into<Vec<usize>>) -> Self {
        Self { name, shape: shape.into(), start: 0, order: Order::Same }
    }

    /// Of a matrix, or of several in a row.
    fn transposed<const N: usize>(name: String, shape: [usize; N]) -> Self {
        Self { order: Order::Transposed { first: 0, width: shape[N - 2] }, ..Self::same(name, shape) }
    }

    /// Numbers in the tensor.
    pub(super) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Rows of all its matrices; a vector is one.
    pub(super) fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }

    /// The part of the parameter in which all its numbers lie.
    pub(super) fn block(&self) -> Range<usize> {
        let len = match self.order {
            Order::Same => self.len(),
            Order::Transposed { width, .. } => self.len() / self.matrix_rows() * width,
        };
        self.start..self.start + len
    }

    /// Writes the numbers of some rows into the block.
    pub(super) fn scatter(&self, rows: Range<usize>, numbers: &[f32], block: &mut [f32]) {
        match self.order {
            Order::Same => {
                let row_len = self.row_len();
                block[rows.start * row_len..rows.end * row_len].copy_from_slice(numbers);
            }
            Order::Transposed { first, width } => {
                self.each_place(rows, first, width, |from, to| block[to] = numbers[from]);
            }
        }
    }

    /// Reads the numbers of the tensor out of its block.
    pub(super) fn gather(&self, block: &[f32]) -> Vec<f32> {
        match self.order {
            Order::Same => block.to_vec(),
            Order::Transposed { first, width } => {
                let mut numbers = vec![0.0; self.len()];
                self.each_place(0..self.rows(), first, width, |to, from| numbers[to] = block[from]);
                numbers
            }
        }
    }

    fn row_len(&self) -> usize {
        self.shape[self.shape.len() - 1]
    }

    /// Of one matrix.
    fn matrix_rows(&self) -> usize {
        self.shape[self.shape.len() - 2]
    }

    /// Calls `at` with the place of every number of these rows, counted from the first of them, and that in the block.
    fn each_place(&self, rows: Range<usize>, first: usize, width: usize, mut at: impl FnMut(usize, usize)) {
        let (height, row_len) = (self.matrix_rows(), self.row_len());
        let mut row = rows.start;
        while row < rows.end {
            let (matrix, end) = (row / height, rows.end.min((row / height + 1) * height));
            let (from, to) = ((row - rows.start) * row_len, matrix * row_len * width + first + row % height);
            each_transposed(end - row, row_len, width, |number, place| at(from + number, to + place));
            row = end;
        }
    }
}

/// Calls `at` with the place of every number of a matrix, and that in its transpose with rows of `width` numbers; a few
/// columns of the latter at a time: both sides then stay in the cache.
fn each_transposed(rows: usize, row_len: usize, width: usize, mut at: impl FnMut(usize, usize)) {
    const COLUMNS: usize = 32;
    for start in (0..rows).step_by(COLUMNS) {
        for place in 0..row_len {
            for row in start..rows.min(start + COLUMNS) {
                at(row * row_len + place, place * width + row);
            }
        }
    }
}

impl Parameter {
    fn of(path: String, piece: Piece) -> Self {
        Self { path, len: piece.len(), pieces: vec![piece] }
    }
}

/// All parameters of a model, in order, layer after layer.
pub(super) fn parameters(
    family: Family,
    config: &LmConfig,
    tensors: ExpertTensors,
) -> impl Iterator<Item = Parameter> + '_ {
    let (d, vocab) = (config.d_model, config.vocab_size);
    let embedding = Parameter::of("embedding".into(), Piece::same("model.embed_tokens.weight".into(), [vocab, d]));
    let layer = move |layer| {
        let is_moe = config.is_moe_layer(layer);
        let network = if is_moe { experts(family, config, layer, tensors) } else { dense(config, layer) };
        attention(config, layer).into_iter().chain(network)
    };
    let norm = Parameter::of("final_norm.gamma".into(), Piece::same("model.norm.weight".into(), [d]));
    let head = || Parameter::of("lm_head".into(), Piece::transposed("lm_head.weight".into(), [vocab, d]));
    let end = iter::once(norm).chain((!config.tie_embeddings).then(head));
    iter::once(embedding).chain((0..config.num_layers).flat_map(layer)).chain(end)
}

/// How many tensors all parameters come from.
pub(super) fn num_tensors(config: &LmConfig, tensors: ExpertTensors) -> usize {
    let (layers, with_experts) = (config.num_layers, config.num_moe_layers());
    let of_experts = match tensors {
        ExpertTensors::Separate => 3 * config.moe.num_experts,
        ExpertTensors::Fused => 2,
    };
    let outside = if config.tie_embeddings { 2 } else { 3 };
    outside + layers * attention(config, 0).len() + 3 * (layers - with_experts) + with_experts * (1 + of_experts)
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

fn experts(family: Family, config: &LmConfig, layer: usize, tensors: ExpertTensors) -> Vec<Parameter> {
    let (d, moe) = (config.d_model, &config.moe);
    let (block, matrices) = match (family, tensors) {
        (Family::Mixtral, ExpertTensors::Separate) => ("block_sparse_moe", ["w1", "w3", "w2"]),
        _ => ("mlp", ["gate_proj", "up_proj", "down_proj"]),
    };
    let theirs = format!("model.layers.{layer}.{block}");
    let names = |expert: usize| matrices.map(|matrix| format!("{theirs}.experts.{expert}.{matrix}.weight"));
    let path = |parameter: &str| format!("blocks.{layer}.feed_forward.moe.{parameter}");
    let (paths, sizes) = ([path("experts.w_in"), path("experts.w_out")], [d, moe.d_hidden]);
    let router = Piece::transposed(format!("{theirs}.gate.weight"), [moe.num_experts, d]);
    let networks = match tensors {
        ExpertTensors::Separate => network(paths, moe.num_experts, sizes, names),
        ExpertTensors::Fused => stack(paths, moe.num_experts, sizes, &format!("{theirs}.experts")),
    };
    iter::once(Parameter::of(path("router.TopK.weight"), router)).chain(networks).collect()
}

/// `count` SwiGLU networks of width `[D, F]` in two tensors.
fn stack([w_in, w_out]: [String; 2], count: usize, [d, f]: [usize; 2], theirs: &str) -> [Parameter; 2] {
    let parameter = |path, name: &str, shape| Parameter::of(path, Piece::transposed(format!("{theirs}.{name}"), shape));
    [parameter(w_in, "gate_up_proj", [count, 2 * f, d]), parameter(w_out, "down_proj", [count, d, f])]
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
    use std::collections::BTreeSet;

    use super::*;
    use crate::lm::{LmMoeConfig, MoeLayers};

    fn numbers(len: usize, from: usize) -> Vec<f32> {
        (from..from + len).map(|n| n as f32).collect()
    }

    fn two_networks() -> [Parameter; 2] {
        let names = |expert: usize| ["g", "u", "d"].map(|name| format!("{name}{expert}"));
        network(["in".into(), "out".into()], 3, [4, 5 * 9], names)
    }

    #[test]
    fn gathering_gives_back_what_was_scattered() {
        let stacked = stack(["in".into(), "out".into()], 3, [4, 5 * 9], "experts");
        for parameter in two_networks().into_iter().chain(stacked) {
            let mut values = vec![f32::NAN; parameter.len];
            for (i, piece) in parameter.pieces.iter().enumerate() {
                piece.scatter(0..piece.rows(), &numbers(piece.len(), 999 * i), &mut values[piece.block()]);
            }
            assert!(values.iter().all(|value| !value.is_nan()), "every number of {} has a tensor", parameter.path);
            for (i, piece) in parameter.pieces.iter().enumerate() {
                assert_eq!(piece.gather(&values[piece.block()]), numbers(piece.len(), 999 * i), "{}", piece.name);
            }
        }
    }

    #[test]
    fn rows_may_come_a_few_at_a_time() {
        let vector = Parameter::of("gain".into(), Piece::same("gain".into(), [7]));
        let matrix = Parameter::of("same".into(), Piece::same("same".into(), [5, 7]));
        let stacked = stack(["in".into(), "out".into()], 3, [4, 5], "experts");
        for parameter in two_networks().into_iter().chain([vector, matrix]).chain(stacked) {
            let piece = parameter.pieces.last().expect("there is one");
            let [mut at_once, mut in_parts] = [0, 1].map(|_| vec![0.0; piece.block().len()]);
            let all = numbers(piece.len(), 1);
            piece.scatter(0..piece.rows(), &all, &mut at_once);
            for (i, numbers) in all.chunks(3 * piece.row_len()).enumerate() {
                piece.scatter(3 * i..piece.rows().min(3 * (i + 1)), numbers, &mut in_parts);
            }
            assert_eq!(at_once, in_parts, "{}", parameter.path);
        }
    }

    #[test]
    fn gate_columns_come_first_and_matrices_are_transposed() {
        let [w_in, _] = network(["in".into(), "out".into()], 1, [2, 3], |_| ["g", "u", "d"].map(String::from));
        let mut values = vec![0.0; 12];
        let [gate, up] = &w_in.pieces[..] else { panic!("a gate and an up matrix") };
        gate.scatter(0..3, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &mut values[gate.block()]);
        up.scatter(0..3, &[-1.0, -2.0, -3.0, -4.0, -5.0, -6.0], &mut values[up.block()]);
        assert_eq!(values, [1.0, 3.0, 5.0, -1.0, -3.0, -5.0, 2.0, 4.0, 6.0, -2.0, -4.0, -6.0]);
    }

    #[test]
    fn an_expert_has_one_place_whichever_tensor_it_is_in() {
        let (d, f, experts) = (2, 3, 2);
        let stacked = stack(["in".into(), "out".into()], experts, [d, f], "experts");
        let names = |expert: usize| ["g", "u", "d"].map(|name| format!("{name}{expert}"));
        for (one, many) in stacked.iter().zip(network(["in".into(), "out".into()], experts, [d, f], names)) {
            let [mut values, mut expected] = [0, 1].map(|_| vec![0.0; one.len]);
            let all = numbers(one.len, 1);
            one.pieces[0].scatter(0..one.pieces[0].rows(), &all, &mut values);
            for (piece, numbers) in many.pieces.iter().zip(all.chunks(f * d)) {
                piece.scatter(0..piece.rows(), numbers, &mut expected[piece.block()]);
            }
            assert_eq!(values, expected, "{}", one.path);
        }
    }

    #[test]
    fn tensors_are_counted_without_their_names() {
        let moe = LmMoeConfig::new(5, 2, 6);
        for (family, tied) in Family::ALL.into_iter().zip([true, false, true]) {
            let config = LmConfig::new(11, 8, 3, 2, 10, 16).with_moe_layers(MoeLayers::AllButFirst);
            let config = config.with_moe(moe.clone()).with_qk_norm(family.qk_norm()).with_tie_embeddings(tied);
            for tensors in [ExpertTensors::Separate, ExpertTensors::Fused] {
                let pieces = parameters(family, &config, tensors).flat_map(|parameter| parameter.pieces);
                let names: BTreeSet<_> = pieces.map(|piece| piece.name).collect();
                assert_eq!(names.len(), num_tensors(&config, tensors), "{family}, {tensors:?}");
            }
        }
    }
}

//! A dense feed-forward network becomes a layer of experts ([Komatsuzaki et al., 2022](https://arxiv.org/abs/2212.05055)).
//!
//! ```
//! use burn::backend::Flex;
//! use moe_layers::upcycle::{Upcycling, upcycle};
//! use moe_layers::{DenseFeedForwardConfig, MoeConfig};
//!
//! let device = Default::default();
//! let dense = DenseFeedForwardConfig::new(16, 64).init::<Flex>(&device);
//! // Eight experts of a quarter of the width, four of them per token: the dense network's work, and its function.
//! let config = MoeConfig::new(16, 16, 8, 4).with_normalize_gates(true);
//! let moe = upcycle(&dense, &config, Upcycling::Copy, &device);
//! assert_eq!(moe.experts.d_hidden(), 16);
//! ```
//!
//! A network of one's own comes in by its weights, [`DenseFeedForward::from_weights`], and one of a checkpoint by the model it is in
//! (`moe_models::lm::LmConfig::upcycle`).
//!
//! # What the layer computes at the start
//!
//! With `normalize_gates` exactly what the dense network does, since the gates of a token sum to 1. Otherwise the second matrices are
//! multiplied by the reciprocal of what `K` gates sum to when the router knows nothing yet (`E / K` after a softmax): about the same
//! function.
//!
//! Experts narrower than the network are **granular** ([He et al., 2024](https://arxiv.org/abs/2410.07524), section 3.3): its hidden units are cut
//! into `G = F / d_hidden` segments, one expert for each, and all of them are repeated `E / G` times. The `G` experts of a repetition have
//! one column of the router, so that a token that chooses one chooses all; a second matrix is multiplied by `G`, as each has only
//! `1 / G` of their gates. The columns drift apart in training, and with them the experts.
//!
//! A capacity breaks all of this: a token is then without the part of an expert that is full.
//!
//! Experts that are copies get the same gradient up to their gates, and may stay alike for long: noise or re-drawn units tell them
//! apart, at the price of another function at the start.

use std::fmt;
use std::str::FromStr;

use burn::module::Param;
use burn::tensor::backend::Backend;
use burn::tensor::{Distribution, Tensor};
use moe_kernels::{MoeBackend, top_k, unchosen};
use serde::{Deserialize, Serialize};

use crate::{DenseFeedForward, DenseFeedForwardConfig, Moe, MoeConfig, RouterRule};

/// What an expert has of the dense network.
///
/// In text `"copy"`, `"noise-STD"` or `"drop-SHARE"` with a number, for instance `"noise-0.1"`.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq)]
#[serde(try_from = "String", into = "String")]
pub enum Upcycling {
    /// Its weights.
    #[default]
    Copy,
    /// Its weights and noise of this standard deviation, in units of that of the matrix: gate, up and down projection are three.
    Noise(f64),
    /// Its weights but for this share of the hidden units, which each expert draws anew, others than its neighbours, from a normal
    /// distribution with the mean and deviation of their matrix (gate, up and down projection are three): Drop-upcycling
    /// ([Nakamura et al., 2025](https://arxiv.org/abs/2502.19261); 0.5 in the paper).
    Drop(f64),
}

impl fmt::Display for Upcycling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Copy => f.write_str("copy"),
            Self::Noise(std) => write!(f, "noise-{std}"),
            Self::Drop(share) => write!(f, "drop-{share}"),
        }
    }
}

impl FromStr for Upcycling {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let method = match text.split_once('-') {
            None if text == "copy" => Some(Self::Copy),
            Some(("noise", std)) => std.parse().ok().map(Self::Noise),
            Some(("drop", share)) => share.parse().ok().map(Self::Drop),
            _ => None,
        };
        let method =
            method.ok_or_else(|| format!("`{text}` is none of copy, noise-STD and drop-SHARE, as in noise-0.1"))?;
        check_method(method).map(|()| method)
    }
}

impl TryFrom<String> for Upcycling {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Upcycling> for String {
    fn from(method: Upcycling) -> Self {
        method.to_string()
    }
}

/// The layer of `config` with experts made of `dense`; its router is drawn as the configuration says.
///
/// # Panics
///
/// Panics as [`MoeConfig::init`] does, and with the message of [`segments`] when that returns an error.
pub fn upcycle<B: MoeBackend>(
    dense: &DenseFeedForward<B>,
    config: &MoeConfig,
    method: Upcycling,
    device: &B::Device,
) -> Moe<B> {
    let segments = segments(&dense.config(), config, method).unwrap_or_else(|error| panic!("upcycle: {error}"));
    let mut moe: Moe<B> = config.init(device);
    let scale = segments as f64 / undecided_gates(config);
    let repetitions = config.num_experts / segments;
    let w_in = repeat(split_columns(dense.w_in.val(), config.activation.columns(1), segments), repetitions);
    let w_out = repeat(split_rows(dense.w_out.val(), segments), repetitions) * scale;
    let (w_in, w_out) = changed(w_in, w_out, config, method);
    moe.experts.w_in = parameter(w_in);
    moe.experts.w_out = parameter(w_out);
    if let Some(weight) = moe.router.weight_mut().filter(|_| segments > 1) {
        *weight = parameter(share_columns(weight.val(), segments));
    }
    moe
}

/// A parameter of its own, without the history of the tensors that it was made of.
fn parameter<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Param<Tensor<B, D>> {
    Param::from_tensor(tensor.detach())
}

/// What the gates of a token sum to under a router that knows nothing yet.
fn undecided_gates(config: &MoeConfig) -> f64 {
    let (experts, chosen) = (config.num_experts as f64, config.top_k as f64);
    match &config.router {
        RouterRule::Hash(_) => 1.0,
        RouterRule::Sigmoid(options) if config.normalize_gates => options.scale,
        RouterRule::Sigmoid(options) => options.scale * chosen / 2.0,
        _ if config.normalize_gates => 1.0,
        // Its gate is a sigmoid where a token has one expert.
        RouterRule::Sinkhorn(_) if config.top_k == 1 => 0.5,
        _ => chosen / experts,
    }
}

/// The number `G` of experts that make up `dense` together: 1 if each is as wide.
///
/// # Errors
///
/// Says why [`upcycle`] cannot be of such a network: `config` has another `d_model` or activation than `dense`, shared experts, or a rule without `K` experts
/// for every token; `F / d_hidden` is not a whole number that divides `num_experts` and `top_k`; it is above 1 under a rule that does not choose
/// whole repetitions: hash, noisy, or sigmoid where it does not divide the size of a group, `E / groups`; noise or share are out of range.
pub fn segments(dense: &DenseFeedForwardConfig, config: &MoeConfig, method: Upcycling) -> Result<usize, String> {
    let (d, f) = (dense.d_model, dense.d_hidden);
    check_kind(dense, config)?;
    check_method(method)?;
    let MoeConfig { d_model, d_hidden, num_experts, top_k, .. } = *config;
    if d_model != d {
        return Err(format!("d_model = {d_model} must be the dense network's, {d}"));
    }
    if d_hidden == 0 || !f.is_multiple_of(d_hidden) {
        return Err(format!("d_hidden = {d_hidden} must divide the dense network's, {f}"));
    }
    let segments = f / d_hidden;
    if !num_experts.is_multiple_of(segments) || !top_k.is_multiple_of(segments) {
        return Err(format!(
            "{segments} experts make up the dense network, so num_experts = {num_experts} and top_k = {top_k} must be multiples"
        ));
    }
    match apart(config, segments).filter(|_| segments > 1) {
        Some(name) => Err(format!("a {name} does not choose {segments} experts together; let d_hidden be {f}")),
        None => Ok(segments),
    }
}

/// What router it is, where it may choose a part of the `segments` experts of a repetition.
fn apart(config: &MoeConfig, segments: usize) -> Option<String> {
    match &config.router {
        RouterRule::Hash(_) => Some("hash router".into()),
        RouterRule::NoisyTopK(_) => Some("noisy router".into()),
        RouterRule::Sigmoid(options) if options.groups > 1 => {
            let size = config.num_experts / options.groups;
            (!size.is_multiple_of(segments)).then(|| format!("sigmoid router with groups of {size} experts"))
        }
        _ => None,
    }
}

fn check_kind(dense: &DenseFeedForwardConfig, config: &MoeConfig) -> Result<(), String> {
    if config.activation != dense.activation {
        return Err("the dense network has another activation".into());
    }
    if config.shared_d_hidden != 0 {
        return Err("shared experts would change the function; add them afterwards".into());
    }
    match config.router.chooses_k() {
        true => Ok(()),
        false => Err("every token must have K experts, which this router does not give".into()),
    }
}

fn check_method(method: Upcycling) -> Result<(), String> {
    match method {
        Upcycling::Noise(std) if !(std.is_finite() && std >= 0.0) => {
            Err(format!("the noise is {std}; it is a number, 0 or above"))
        }
        Upcycling::Drop(share) if !(0.0..=1.0).contains(&share) => Err(format!("the share is {share}; it is in 0..=1")),
        _ => Ok(()),
    }
}

/// `[D, parts F]` to `[G, D, parts F / G]`: segment `g` of each of the `parts` (gate and up projection) side by side.
fn split_columns<B: Backend>(matrix: Tensor<B, 2>, parts: usize, segments: usize) -> Tensor<B, 3> {
    let [d, columns] = matrix.dims();
    let width = columns / parts / segments;
    let by_segment = matrix.reshape([d, parts, segments, width]).permute([2, 0, 1, 3]);
    by_segment.reshape([segments, d, parts * width])
}

/// `[F, D]` to `[G, F / G, D]`.
fn split_rows<B: Backend>(matrix: Tensor<B, 2>, segments: usize) -> Tensor<B, 3> {
    let [f, d] = matrix.dims();
    matrix.reshape([segments, f / segments, d])
}

/// `[G, ..]` to `[repetitions * G, ..]`.
fn repeat<B: Backend>(stack: Tensor<B, 3>, repetitions: usize) -> Tensor<B, 3> {
    stack.repeat_dim(0, repetitions)
}

/// The first of every `segments` columns of `[D, E]` for all of them.
fn share_columns<B: Backend>(weight: Tensor<B, 2>, segments: usize) -> Tensor<B, 2> {
    let [d, experts] = weight.dims();
    let first = weight.reshape([d, experts / segments, segments]).slice([0..d, 0..experts / segments, 0..1]);
    first.repeat_dim(2, segments).reshape([d, experts])
}

fn changed<B: MoeBackend>(
    w_in: Tensor<B, 3>,
    w_out: Tensor<B, 3>,
    config: &MoeConfig,
    method: Upcycling,
) -> (Tensor<B, 3>, Tensor<B, 3>) {
    let parts = config.activation.columns(1);
    match method {
        Upcycling::Copy => (w_in, w_out),
        Upcycling::Noise(std) => (by_part(w_in, parts, |part| noisy(part, std)), noisy(w_out, std)),
        Upcycling::Drop(share) => {
            let [experts, f, d] = w_out.dims();
            let count = (share * f as f64).round() as usize;
            if count == 0 {
                return (w_in, w_out);
            }
            let dropped = random_units::<B>(experts, f, count, &w_out.device());
            let rows = dropped.clone().reshape([experts, f, 1]).repeat_dim(2, d);
            let columns = dropped.reshape([experts, 1, f]).repeat_dim(1, d).repeat_dim(2, parts);
            let (new_in, new_out) = (by_part(w_in.clone(), parts, redrawn), redrawn(w_out.clone()));
            (w_in.mask_where(columns.equal_elem(1.0), new_in), w_out.mask_where(rows.equal_elem(1.0), new_out))
        }
    }
}

/// `change` of each of the matrices that lie side by side in `w_in` `[E, D, parts F]`: the gate and the up projection are two.
fn by_part<B: Backend>(
    w_in: Tensor<B, 3>,
    parts: usize,
    change: impl Fn(Tensor<B, 3>) -> Tensor<B, 3>,
) -> Tensor<B, 3> {
    Tensor::cat(w_in.chunk(parts, 2).into_iter().map(change).collect(), 2)
}

fn noisy<B: Backend>(matrix: Tensor<B, 3>, std: f64) -> Tensor<B, 3> {
    let noise = Tensor::random(matrix.dims(), Distribution::Normal(0.0, 1.0), (&matrix.device(), matrix.dtype()));
    let deviation = matrix.clone().reshape([matrix.shape().num_elements()]).var(0).sqrt().reshape([1, 1, 1]);
    matrix.clone() + noise * deviation.expand(matrix.dims()) * std
}

/// Numbers with the mean and the deviation of those of `matrix`.
fn redrawn<B: Backend>(matrix: Tensor<B, 3>) -> Tensor<B, 3> {
    let (variance, mean) = matrix.clone().reshape([matrix.shape().num_elements()]).var_mean(0);
    let normal = Tensor::random(matrix.dims(), Distribution::Normal(0.0, 1.0), (&matrix.device(), matrix.dtype()));
    let over = |number: Tensor<B, 1>| number.reshape([1, 1, 1]).expand(matrix.dims());
    normal * over(variance.sqrt()) + over(mean)
}

/// 1 for `count` of each expert's units, drawn at random, `[E, F]`.
fn random_units<B: MoeBackend>(experts: usize, units: usize, count: usize, device: &B::Device) -> Tensor<B, 2> {
    let order = Tensor::<B, 2>::random([experts, units], Distribution::Default, device);
    let ones = order.ones_like();
    ones.clone() - unchosen(ones, top_k(order, count).1)
}

#[cfg(test)]
mod tests;

//! What can be chosen about default vectors, as plain data.

use burn::config::Config;
use serde::{Deserialize, Serialize};

/// How default vectors are updated and used.
#[derive(Config, Debug, PartialEq)]
pub struct DefaultOptions {
    /// Part of a vector that a step keeps, `beta`, in `[0, 1)`. Default: 0.9
    #[config(default = 0.9)]
    pub beta: f64,
    /// What a step moves a vector towards. Default: weighted
    #[config(default = "UpdateRule::Weighted")]
    pub rule: UpdateRule,
    /// In which passes the vectors stand in for experts. Default: full
    #[config(default = "Form::Full")]
    pub form: Form,
    /// What a pass without gradients computes. Default: frozen
    #[config(default = "Evaluation::Frozen")]
    pub evaluation: Evaluation,
}

/// What a step moves the vector of expert `e` towards, `m_e`, from the tokens `t` that chose it; `n_e` is their number.
///
/// In text `"mean"`, `"weighted"`, `"weighted-by-count"`.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateRule {
    /// `m_e = sum_t E_e(x_t) / n_e`. \[C\]
    Mean,
    /// `m_e = sum_t pi_te E_e(x_t) / sum_t pi_te`: the paper's final method \[C\], with this divisor \[D\].
    #[default]
    Weighted,
    /// `m_e = sum_t pi_te E_e(x_t) / n_e`: the other reading of it \[D\]. Its vectors are smaller, by the mean
    /// probability.
    WeightedByCount,
}

/// In which passes the vectors stand in for the experts that a token did not choose.
///
/// In text `"full"`, `"backward-only"`.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// Forward and backward: the method. \[C\]
    #[default]
    Full,
    /// The output is that of plain top-K; only the router's gradient sees the vectors. An ablation, worse than the method
    /// \[C\].
    BackwardOnly,
}

/// What a pass without gradients computes. The paper is silent \[U\]; both are ours \[D\].
///
/// In text `"frozen"`, `"top-k"`.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Evaluation {
    /// What training saw, with the vectors as they are. With [`Form::BackwardOnly`] that is plain top-K.
    #[default]
    Frozen,
    /// Plain top-K, whatever was trained.
    TopK,
}

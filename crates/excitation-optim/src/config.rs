//! What a factor is made of, as plain data.

use burn::config::Config;
use serde::{Deserialize, Serialize};

use crate::{ByModule, Excitation, Exciter};

/// How utilization becomes a factor: `phi = Phi(u, gamma)`.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// `u_i^gamma / mean_j(u_j^gamma)` \[S\]: mean factor 1, and 0 for an expert that no token chose.
    ZeroSum,
    /// `max(1, ZeroSum_i)` \[S\]: amplifies only. The safe one beside a load-balance loss, hence the default \[D\].
    #[default]
    PositiveSum,
    /// `exp(gamma * (u_i - mean_j u_j))` \[name S, formula D\]: suppresses without reaching 0. It needs the number of
    /// tokens, see [`ExpertCounts::register`](crate::ExpertCounts::register).
    ExpDiff,
}

/// What the paper compares with, to show that the gain is more than a larger step \[names S, formulas D\].
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Control {
    /// Every expert of the layer gets the mean factor, `mean_j Phi_j`.
    GlobalExp,
    /// The factors of the layer in a random order, drawn anew in every step.
    RandomBoost,
    /// The factors of `max_j u_j + min_j u_j - u_i`: the least used expert gets what the most used one would.
    Inverted,
}

/// Configuration to create [`Excitation`] around an optimizer using the [init function](ExcitationConfig::init).
#[derive(Config, Debug, PartialEq)]
pub struct ExcitationConfig {
    /// How utilization becomes a factor. Default: PositiveSum
    #[config(default = "Variant::PositiveSum")]
    pub variant: Variant,
    /// Strength, `gamma >= 0`; 0 is the inner optimizer alone. Default: 1 \[D\]
    #[config(default = 1.0)]
    pub gamma: f64,
    /// Replaces the method by one of its controls. Default: none
    pub control: Option<Control>,
    /// Steps over which `phi - 1` rises linearly from 0 to its value \[ours\]. Default: 0, full strength at once
    #[config(default = 0)]
    pub warmup_steps: usize,
    /// Largest factor \[ours\]; a ZeroSum that is cut by it no longer has mean 1. Default: none
    pub cap: Option<f64>,
    /// Decoupled weight decay of the inner optimizer that the factor leaves out \[ours\]. Default: none
    ///
    /// The factor scales the whole change, so decoupled decay with it: ZeroSum neither moves nor decays an idle expert.
    /// With `Some(wd)`, `wd` being the inner optimizer's coefficient, `phi` scales the change beyond
    /// `theta * (1 - lr * wd)`, and every expert decays alike. That is the decay of AdamW, of Muon and of Adan without
    /// its proximal form; it must apply to all parameters of the experts.
    pub unscaled_decay: Option<f64>,
    /// Steps one expert parameter at a time, so that only the largest of them is held twice, not all. The inner
    /// optimizer then is called once per parameter: right for optimizers that treat parameters separately, which all of
    /// burn's do (gradient clipping included) except LBFGS. Default: false
    #[config(default = false)]
    pub low_memory: bool,
    /// Seed of [`Control::RandomBoost`]. Default: 0
    #[config(default = 0)]
    pub seed: u64,
}

impl ExcitationConfig {
    /// Wraps `inner` for a module that implements [`ExpertModule`](crate::ExpertModule).
    ///
    /// # Panics
    ///
    /// Panics unless `gamma` is finite and at least 0 and `cap`, where given, is at least 1 and `unscaled_decay` at
    /// least 0.
    pub fn init<O>(&self, inner: O) -> Excitation<O> {
        self.init_with(inner, ByModule)
    }

    /// Wraps `inner`; `finder` says where the experts of the module are.
    ///
    /// # Panics
    ///
    /// As [`init`](Self::init).
    pub fn init_with<O, F>(&self, inner: O, finder: F) -> Excitation<O, F> {
        Excitation::new(inner, Exciter::new(self.clone(), finder))
    }

    /// Why these settings make no sense, in words; `None` if they do.
    pub fn fault(&self) -> Option<String> {
        let Self { gamma, cap, unscaled_decay, .. } = self;
        let at_least = |low: f64, value: f64| value.is_finite() && value >= low;
        if !at_least(0.0, *gamma) {
            Some(format!("gamma must be finite and 0 or more, got {gamma}"))
        } else if cap.is_some_and(|cap| !at_least(1.0, cap)) {
            Some(format!("cap must be finite and 1 or more, got {cap:?}"))
        } else if unscaled_decay.is_some_and(|decay| !at_least(0.0, decay)) {
            Some(format!("unscaled_decay must be finite and 0 or more, got {unscaled_decay:?}"))
        } else {
            None
        }
    }

    /// Part of `phi - 1` that is in force in step `step`, counted from 0.
    pub(crate) fn strength(&self, step: u64) -> f64 {
        match self.warmup_steps {
            0 => 1.0,
            steps => ((step + 1) as f64 / steps as f64).min(1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_amplifies_only_with_strength_one_and_nothing_of_ours() {
        let expected = ExcitationConfig {
            variant: Variant::PositiveSum,
            gamma: 1.0,
            control: None,
            warmup_steps: 0,
            cap: None,
            unscaled_decay: None,
            low_memory: false,
            seed: 0,
        };
        assert_eq!(ExcitationConfig::new(), expected);
    }

    #[test]
    fn the_warm_up_rises_in_equal_parts_to_one() {
        let config = ExcitationConfig::new().with_warmup_steps(4);
        assert_eq!([0, 1, 2, 3, 9].map(|step| config.strength(step)), [0.25, 0.5, 0.75, 1.0, 1.0]);
        assert_eq!(ExcitationConfig::new().strength(0), 1.0);
    }

    #[test]
    #[should_panic(expected = "gamma must be finite and 0 or more, got -1")]
    fn a_negative_gamma_panics() {
        ExcitationConfig::new().with_gamma(-1.0).init(());
    }

    #[test]
    #[should_panic(expected = "cap must be finite and 1 or more")]
    fn a_cap_below_one_panics() {
        ExcitationConfig::new().with_cap(Some(0.5)).init(());
    }

    #[test]
    #[should_panic(expected = "unscaled_decay must be finite and 0 or more")]
    fn a_decay_that_is_no_number_panics() {
        ExcitationConfig::new().with_unscaled_decay(Some(f64::NAN)).init(());
    }

    #[test]
    #[should_panic(expected = "gamma must be finite and 0 or more, got inf")]
    fn an_infinite_gamma_panics() {
        ExcitationConfig::new().with_gamma(f64::INFINITY).init(());
    }

    #[test]
    #[should_panic(expected = "cap must be finite and 1 or more, got Some(inf)")]
    fn an_infinite_cap_panics() {
        ExcitationConfig::new().with_cap(Some(f64::INFINITY)).init(());
    }
}

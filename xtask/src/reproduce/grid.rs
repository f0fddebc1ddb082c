//! One training run of a grid: its settings, and the name under which its result is kept.

/// What the router's gradient is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Router {
    /// Plain top-K.
    TopK,
    /// Default vectors, the score-weighted average.
    Weighted,
    /// Default vectors, the plain mean.
    Mean,
    /// Default vectors in the backward pass only.
    BackwardOnly,
}

/// What scales the steps of the experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing.
    Plain,
    /// Excitation, ZeroSum.
    ZeroSum,
    /// Excitation, PositiveSum.
    PositiveSum,
    /// A control: every expert gets the mean factor of PositiveSum.
    GlobalExp,
}

/// One side of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arm {
    pub(crate) router: Router,
    pub(crate) step: Step,
}

impl Arm {
    pub(crate) const TOP_K: Self = Self::of(Router::TopK);
    pub(crate) const WEIGHTED: Self = Self::of(Router::Weighted);

    pub(crate) const fn of(router: Router) -> Self {
        Self { router, step: Step::Plain }
    }

    /// The same router, the experts excited.
    pub(crate) const fn excited(self, step: Step) -> Self {
        Self { step, ..self }
    }

    pub(crate) fn name(self) -> String {
        let router = match self.router {
            Router::TopK => "topk",
            Router::Weighted => "default",
            Router::Mean => "mean",
            Router::BackwardOnly => "backward",
        };
        let step = match self.step {
            Step::Plain => "",
            Step::ZeroSum => "+zerosum",
            Step::PositiveSum => "+positivesum",
            Step::GlobalExp => "+globalexp",
        };
        format!("{router}{step}")
    }

    /// Whether it has default vectors, and so two ways to be measured.
    pub(crate) fn has_default_vectors(self) -> bool {
        self.router != Router::TopK
    }

    /// Settings of `moe-train`.
    fn settings(self) -> impl Iterator<Item = String> {
        let router: &[&str] = match self.router {
            Router::TopK => &["moe.router=top-k"],
            Router::Weighted => &["moe.router=default", "moe.default.rule=weighted"],
            Router::Mean => &["moe.router=default", "moe.default.rule=mean"],
            Router::BackwardOnly => &["moe.router=default", "moe.default.form=backward-only"],
        };
        let step: &[&str] = match self.step {
            Step::Plain => &[],
            Step::ZeroSum => &["optim.excitation=zero-sum"],
            Step::PositiveSum => &["optim.excitation=positive-sum"],
            Step::GlobalExp => &["optim.excitation=positive-sum", "optim.control=global-exp"],
        };
        router.iter().chain(step).map(|setting| setting.to_string())
    }
}

/// Experts, active ones, and their width; `K F` is the same for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Experts {
    pub(crate) name: &'static str,
    pub(crate) count: usize,
    pub(crate) top_k: usize,
}

/// 8 experts, 1 active.
pub(crate) const E8C1: Experts = Experts { name: "8c1", count: 8, top_k: 1 };
/// 32 experts, 4 active.
pub(crate) const E32C4: Experts = Experts { name: "32c4", count: 32, top_k: 4 };

/// A run. Two of one seed, size and rate start from the same weights and see the same text in the same order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Run {
    pub(crate) arm: Arm,
    pub(crate) experts: Experts,
    pub(crate) lr: f64,
    pub(crate) seed: u64,
    pub(crate) steps: usize,
    /// Settings of the scale.
    pub(crate) size: &'static Size,
}

/// What all runs of a scale share.
#[derive(Debug, PartialEq)]
pub(crate) struct Size {
    /// Active width of a layer's experts, `K F`.
    pub(crate) active_width: usize,
    /// Steps of a run, unless fewer are asked for.
    pub(crate) steps: usize,
    /// Batches that a trained model is measured on.
    pub(crate) eval_batches: usize,
    /// Settings of `moe-train` on top of its preset `tiny`.
    pub(crate) settings: &'static [&'static str],
}

impl Run {
    /// The name of its result and of its directory.
    pub(crate) fn name(&self) -> String {
        format!("{}-{}-lr{:e}-seed{}", self.experts.name, self.arm.name(), self.lr, self.seed)
    }

    /// Settings of `moe-train`, as `--set` takes them.
    pub(crate) fn settings(&self) -> Vec<String> {
        let steps = self.steps;
        let mut settings: Vec<String> = self.size.settings.iter().map(|setting| setting.to_string()).collect();
        settings.extend([
            format!("moe.num_experts={}", self.experts.count),
            format!("moe.top_k={}", self.experts.top_k),
            format!("moe.d_hidden={}", self.size.active_width / self.experts.top_k),
            format!("optim.lr={}", self.lr),
            format!("optim.min_lr={}", self.lr / 10.0),
            // The paper's 1 %.
            format!("optim.warmup_steps={}", steps.div_ceil(100)),
            format!("train.steps={steps}"),
            format!("train.valid_every={steps}"),
            format!("train.log_every={}", steps.div_ceil(20)),
        ]);
        settings.extend(self.arm.settings());
        settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size { active_width: 384, steps: 250, eval_batches: 4, settings: &["model.norm=layer"] };

    #[test]
    fn a_name_tells_runs_apart_and_settings_say_the_rest() {
        let run = Run { arm: Arm::of(Router::Mean), experts: E32C4, lr: 2e-3, seed: 3, steps: 250, size: &SIZE };
        assert_eq!(run.name(), "32c4-mean-lr2e-3-seed3");
        let settings = run.settings();
        for expected in ["model.norm=layer", "moe.d_hidden=96", "optim.warmup_steps=3", "moe.default.rule=mean"] {
            assert!(settings.iter().any(|setting| setting == expected), "{expected} is not in {settings:?}");
        }
        assert!(Run { steps: 10, ..run }.settings().contains(&"train.steps=10".to_string()));

        let excited = Run { arm: Arm::TOP_K.excited(Step::GlobalExp), ..run };
        assert_eq!(excited.name(), "32c4-topk+globalexp-lr2e-3-seed3");
        assert!(excited.settings().contains(&"optim.control=global-exp".to_string()));
    }
}

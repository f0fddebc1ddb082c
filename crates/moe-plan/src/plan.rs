//! A plan: everything that follows from a setting and a layout.

use crate::{Layout, Memory, Setting, Traffic};

/// AdamW reads parameter, gradient and two moments and writes all but the gradient, f32.
const OPTIMIZER_BYTES: f64 = 28.0;

/// What a step takes. All figures are of one device, the busiest one where they differ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Devices in groups.
    pub layout: Layout,
    /// Load of the busiest device over the mean.
    pub skew: f64,
    /// What it holds.
    pub memory: Memory,
    /// Whether that is not more than it has.
    pub fits: bool,
    /// What it sends.
    pub traffic: Traffic,
    /// Tokens of a step, of all devices.
    pub tokens: u64,
    /// FLOPs of a step for the tokens of a device, as if loads were even.
    pub flops: f64,
    /// Seconds for the FLOPs of the busiest device at the device's rate.
    pub compute_seconds: f64,
    /// Seconds for the optimizer, at the rate of memory.
    pub optimizer_seconds: f64,
}

impl Plan {
    /// The plan of a layout.
    ///
    /// # Errors
    ///
    /// As [`Setting::validate`], and loads of a run with another number of experts.
    pub fn new(setting: &Setting, layout: Layout) -> Result<Self, String> {
        setting.validate()?;
        let model = &setting.model;
        let group_tokens = (setting.tokens * layout.expert_parallel) as f64;
        let skew = setting.routing.skew(&model.moe, layout.expert_parallel, group_tokens)?;
        let memory = Memory::new(setting, layout, skew);
        let experts = (memory.params - model.dense_params()) as f64;
        let tokens = (setting.tokens * setting.accumulation) as f64;
        let (dense, expert) = (model.dense_flops_per_token(setting.seq_len), model.expert_flops_per_token());
        Ok(Self {
            layout,
            skew,
            memory,
            fits: memory.total() <= setting.device.memory,
            traffic: Traffic::new(setting, layout, skew, experts),
            tokens: setting.tokens * setting.accumulation * layout.devices,
            flops: tokens * (dense + expert),
            compute_seconds: tokens * (dense + skew * expert) / setting.device.flops,
            optimizer_seconds: OPTIMIZER_BYTES * memory.params as f64 / setting.device.memory_rate,
        })
    }

    /// The plan with the smallest expert-parallel groups that fit into memory; if none does, the one that needs least.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn best(setting: &Setting, devices: u64) -> Result<Self, String> {
        Layout::new(&setting.model, devices, 1)?;
        let plans = Layout::all(&setting.model, devices).into_iter().map(|layout| Self::new(setting, layout));
        let plans = plans.collect::<Result<Vec<_>, _>>()?;
        let least = |a: &&Self, b: &&Self| a.memory.total().total_cmp(&b.memory.total());
        let found = plans.iter().find(|plan| plan.fits).or_else(|| plans.iter().min_by(least));
        Ok(*found.expect("experts that stay on one device are a layout"))
    }

    /// A lower bound of a step's seconds: all that is sent is sent while something is computed.
    pub fn overlapped_seconds(&self) -> f64 {
        self.compute_seconds.max(self.traffic.seconds()) + self.optimizer_seconds
    }

    /// The same where nothing happens at the same time.
    pub fn sequential_seconds(&self) -> f64 {
        self.compute_seconds + self.traffic.seconds() + self.optimizer_seconds
    }

    /// Most tokens per second of all devices, with or without overlap.
    pub fn tokens_per_second(&self) -> [f64; 2] {
        self.bounds().map(|seconds| self.tokens as f64 / seconds)
    }

    /// Most of the devices' rate that a step uses, with or without overlap, between 0 and 1.
    pub fn utilisation(&self, setting: &Setting) -> [f64; 2] {
        self.bounds().map(|seconds| self.flops / setting.device.flops / seconds)
    }

    fn bounds(&self) -> [f64; 2] {
        [self.overlapped_seconds(), self.sequential_seconds()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::tests::setting;
    use crate::{Device, Routing};

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() <= 1e-12 * expected.abs(), "{found} instead of {expected}");
    }

    #[test]
    fn seconds_are_flops_over_the_rate_and_bytes_over_that_of_memory() {
        let (setting, layout) = (setting(), Layout { devices: 6, expert_parallel: 3 });
        let plan = Plan::new(&setting, layout).unwrap();
        let (dense, expert) = (6.0 * 220.0 + 12.0 * 2.0 * 4.0 * 8.0, 720.0);
        close(plan.flops, 32.0 * (dense + expert));
        close(plan.compute_seconds, 32.0 * (dense + 1.5 * expert) / 1e6);
        close(plan.optimizer_seconds, 28.0 * plan.memory.params as f64 / 1e6);
        assert_eq!(plan.tokens, 16 * 2 * 6);
    }

    #[test]
    fn overlap_hides_the_shorter_of_the_two() {
        let (setting, layout) = (setting(), Layout { devices: 6, expert_parallel: 3 });
        let plan = Plan::new(&setting, layout).unwrap();
        let (compute, sent) = (plan.compute_seconds, plan.traffic.seconds());
        assert!(sent > compute);
        close(plan.overlapped_seconds(), sent + plan.optimizer_seconds);
        close(plan.sequential_seconds(), sent + compute + plan.optimizer_seconds);
        close(plan.tokens_per_second()[1], 192.0 / plan.sequential_seconds());
        close(plan.utilisation(&setting)[0], plan.flops / 1e6 / plan.overlapped_seconds());
    }

    #[test]
    fn one_device_has_no_skew_and_sends_nothing() {
        let plan = Plan::new(&setting(), Layout { devices: 1, expert_parallel: 1 }).unwrap();
        assert_eq!((plan.skew, plan.traffic.seconds()), (1.0, 0.0));
        assert_eq!(plan.overlapped_seconds(), plan.sequential_seconds());
    }

    #[test]
    fn experts_are_spread_no_further_than_memory_asks_for() {
        let with_memory = |memory| {
            let device = Device { memory, ..setting().device };
            Plan::best(&crate::Setting { device, ..setting() }, 6).unwrap()
        };
        let needed = [1, 2, 3].map(|expert_parallel| {
            Plan::new(&setting(), Layout { devices: 6, expert_parallel }).unwrap().memory.total()
        });
        let least = needed.iter().copied().fold(f64::MAX, f64::min);
        assert_eq!(with_memory(1e9).layout.expert_parallel, 1);
        let none = with_memory(least - 1.0);
        assert!(!none.fits && none.memory.total() == least);
    }

    #[test]
    fn a_contradiction_in_the_setting_is_an_error_of_the_plan() {
        let setting = crate::Setting { routing: Routing::Skew(f64::NAN), ..setting() };
        assert!(Plan::best(&setting, 2).unwrap_err().starts_with("a skew of NaN"));
        assert!(Plan::best(&setting, 0).unwrap_err().contains("the number of devices"));
    }
}

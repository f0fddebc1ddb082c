//! Devices in groups: data parallel times expert parallel.

use crate::{Device, Dtype, Link, Model, Routing};

/// Beyond these a plan says nothing, and the tokens of a step do not fit into 64 bits.
const MOST_DEVICES: u64 = 1 << 20;
const MOST_TOKENS: u64 = 1 << 28;
const MOST_MICRO_BATCHES: u64 = 1 << 12;

/// What is planned for, whatever the number of devices.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// The model.
    pub model: Model,
    /// Each device.
    pub device: Device,
    /// Between devices of a node.
    pub link: Link,
    /// Between nodes, for each device.
    pub between: Link,
    /// Devices of a node.
    pub node: u64,
    /// Activations, products and what crosses in an all-to-all.
    pub dtype: Dtype,
    /// Tokens of a micro-batch on each device, `T`.
    pub tokens: u64,
    /// Tokens of a sequence, `S`.
    pub seq_len: u64,
    /// Micro-batches of a step.
    pub accumulation: u64,
    /// How even the loads of experts are.
    pub routing: Routing,
}

impl Setting {
    /// What contradicts itself.
    ///
    /// # Errors
    ///
    /// Says which number is wrong, and what it may be.
    pub fn validate(&self) -> Result<(), String> {
        let (tokens, seq_len, max) = (self.tokens, self.seq_len, self.model.max_seq_len);
        if [tokens, seq_len, self.accumulation, self.node].contains(&0) {
            return Err("tokens, sequence length, accumulation and node must be at least 1".into());
        }
        if tokens > MOST_TOKENS || self.accumulation > MOST_MICRO_BATCHES {
            return Err(format!("more than {MOST_TOKENS} tokens or {MOST_MICRO_BATCHES} micro-batches a device"));
        }
        if seq_len > max {
            return Err(format!("sequences of {seq_len} tokens are longer than the model's {max}"));
        }
        if !tokens.is_multiple_of(seq_len) {
            return Err(format!("{tokens} tokens a device are no whole number of sequences of {seq_len}"));
        }
        match self.routing {
            Routing::Skew(skew) if !(skew >= 1.0 && skew.is_finite()) => {
                Err(format!("a skew of {skew}: the busiest device has at least 1 times the mean"))
            }
            _ => Ok(()),
        }
    }
}

/// How `N` devices are divided: all of them are copies of what is not an expert; the experts are spread over groups of `P`
/// devices, and there are `N / P` copies of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Number of devices, `N`.
    pub devices: u64,
    /// Devices over which the experts are spread, `P`.
    pub expert_parallel: u64,
}

impl Layout {
    /// A layout that `model` can have.
    ///
    /// # Errors
    ///
    /// No device, or more than 2^20; a `P` that does not divide `N`, is larger than the number of experts, or is above 1 in a model without
    /// experts.
    pub fn new(model: &Model, devices: u64, expert_parallel: u64) -> Result<Self, String> {
        let experts = model.moe.num_experts;
        if !(1..=MOST_DEVICES).contains(&devices) || expert_parallel == 0 {
            return Err(format!(
                "the number of devices must be in 1..={MOST_DEVICES}, and of those with experts at least 1"
            ));
        }
        if model.num_moe_layers == 0 && expert_parallel > 1 {
            return Err(format!("experts on {expert_parallel} devices: no layer of the model has experts"));
        }
        if expert_parallel > experts {
            return Err(format!(
                "{experts} experts cannot be spread over {expert_parallel} devices, which need one each"
            ));
        }
        if !devices.is_multiple_of(expert_parallel) {
            return Err(format!("{devices} devices are no whole number of groups of {expert_parallel}"));
        }
        Ok(Self { devices, expert_parallel })
    }

    /// All that `model` can have on so many devices, the smallest `P` first.
    pub fn all(model: &Model, devices: u64) -> Vec<Self> {
        let most = if model.num_moe_layers == 0 { 1 } else { model.moe.num_experts };
        (1..=most.min(devices)).filter_map(|size| Self::new(model, devices, size).ok()).collect()
    }

    /// Copies of each expert, `N / P`.
    pub fn data_parallel(&self) -> u64 {
        self.devices / self.expert_parallel
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::model::tests::by_hand;

    /// Two micro-batches of 16 tokens in sequences of 8, on a device of round numbers.
    pub(crate) fn setting() -> Setting {
        Setting {
            model: by_hand(),
            device: Device { flops: 1e6, memory: 1e5, memory_rate: 1e6 },
            link: Link { rate: 1e4, latency: 1e-3 },
            between: Link { rate: 1e3, latency: 1e-2 },
            node: 4,
            dtype: Dtype::F32,
            tokens: 16,
            seq_len: 8,
            accumulation: 2,
            routing: Routing::Skew(1.5),
        }
    }

    #[test]
    fn contradictions_are_named() {
        let error = |change: fn(&mut Setting)| {
            let mut setting = setting();
            change(&mut setting);
            setting.validate().unwrap_err()
        };
        assert_eq!(setting().validate(), Ok(()));
        assert_eq!(error(|setting| setting.seq_len = 16), "sequences of 16 tokens are longer than the model's 8");
        assert_eq!(error(|setting| setting.tokens = 12), "12 tokens a device are no whole number of sequences of 8");
        assert!(error(|setting| setting.accumulation = 0).contains("at least 1"));
        assert!(error(|setting| setting.accumulation = u64::MAX).starts_with("more than"));
        assert!(error(|setting| setting.tokens = u64::MAX - 7).starts_with("more than"));
        assert!(error(|setting| setting.routing = Routing::Skew(0.9)).starts_with("a skew of 0.9"));
    }

    #[test]
    fn layouts_that_cannot_be_are_refused() {
        let error = |devices, size| Layout::new(&by_hand(), devices, size).unwrap_err();
        assert_eq!(error(8, 4), "3 experts cannot be spread over 4 devices, which need one each");
        assert_eq!(error(8, 3), "8 devices are no whole number of groups of 3");
        for devices in [0, u64::MAX] {
            assert!(error(devices, 1).starts_with("the number of devices must be in 1..="));
        }
        let dense = Model { num_moe_layers: 0, ..by_hand() };
        assert_eq!(Layout::new(&dense, 4, 2).unwrap_err(), "experts on 2 devices: no layer of the model has experts");
        assert_eq!(Layout::all(&dense, 6).len(), 1);
    }

    #[test]
    fn all_layouts_divide_the_devices() {
        let sizes: Vec<u64> = Layout::all(&by_hand(), 6).iter().map(|layout| layout.expert_parallel).collect();
        assert_eq!(sizes, [1, 2, 3]);
        assert_eq!(Layout { devices: 6, expert_parallel: 3 }.data_parallel(), 2);
    }
}

//! What a device sends to others in a step, in bytes, and how long that takes at least.

use crate::{Dtype, Layout, Setting};

/// Gradients are f32.
const GRADIENT_BYTES: f64 = 4.0;
/// Exchanges of rows in a layer: rows, gates and outputs forward, and their gradients; one of counts before them.
const EXCHANGES: f64 = 7.0;

/// Bytes that leave a device in the forward pass of one layer, when `leaving` rows go to experts of others and `arriving` rows come from others, whose
/// outputs go back: `leaving (D + 1) + arriving D` numbers, the 1 for the gate. The backward pass sends gradients the other way: with
/// `leaving` and `arriving` swapped.
///
/// What `moe_layers::parallel` sends; tests compare the two.
pub fn exchange_bytes(leaving: f64, arriving: f64, d_model: u64, dtype: Dtype) -> f64 {
    (leaving * (d_model as f64 + 1.0) + arriving * d_model as f64) * dtype.bytes()
}

/// Of a device with the mean load, for one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Traffic {
    /// All-to-all of rows and outputs in forward passes.
    pub forward: f64,
    /// All-to-all of their gradients in backward passes.
    pub backward: f64,
    /// All-reduce of the gradients of what is not an expert, over all devices.
    pub dense_all_reduce: f64,
    /// All-reduce of the gradients of its experts, over the other devices that have them.
    pub expert_all_reduce: f64,
    /// Seconds for the all-to-alls.
    pub all_to_all_seconds: f64,
    /// Seconds for the all-reduces.
    pub all_reduce_seconds: f64,
}

impl Traffic {
    /// `experts` are the parameters of the experts on the device.
    pub(crate) fn new(setting: &Setting, layout: Layout, skew: f64, experts: f64) -> Self {
        let exchanges = (setting.model.num_moe_layers * setting.accumulation) as f64;
        let leaving = rows_leaving(setting, layout);
        let each = exchange_bytes(leaving, leaving, setting.model.d_model, setting.dtype);
        let dense = Group::of_all(setting, layout);
        let copies = Group::of_copies(setting, layout);
        let (dense_bytes, expert_bytes) =
            (GRADIENT_BYTES * setting.model.dense_params() as f64, GRADIENT_BYTES * experts);
        Self {
            forward: exchanges * each,
            backward: exchanges * each,
            dense_all_reduce: dense.sent(dense_bytes),
            expert_all_reduce: copies.sent(expert_bytes),
            all_to_all_seconds: exchanges * all_to_all_seconds(setting, layout, skew, 2.0 * each),
            all_reduce_seconds: dense.seconds(setting, dense_bytes) + copies.seconds(setting, expert_bytes),
        }
    }

    /// Both directions.
    pub fn all_to_all(&self) -> f64 {
        self.forward + self.backward
    }

    /// Both kinds of parameters.
    pub fn all_reduce(&self) -> f64 {
        self.dense_all_reduce + self.expert_all_reduce
    }

    /// Seconds for all of it, one after the other.
    pub fn seconds(&self) -> f64 {
        self.all_to_all_seconds + self.all_reduce_seconds
    }
}

/// Rows of a layer and micro-batch whose experts are elsewhere, `T K (1 - 1 / P)`.
fn rows_leaving(setting: &Setting, layout: Layout) -> f64 {
    let rows = (setting.tokens * setting.model.moe.top_k) as f64;
    rows * (1.0 - 1.0 / layout.expert_parallel as f64)
}

/// Of one layer and micro-batch, whose passes send `bytes`: the busiest device gets `skew` times as much, over the slower of the links inside
/// and between nodes.
fn all_to_all_seconds(setting: &Setting, layout: Layout, skew: f64, bytes: f64) -> f64 {
    let (size, here) = (layout.expert_parallel as f64, layout.expert_parallel.min(setting.node) as f64);
    if layout.expert_parallel == 1 {
        return 0.0;
    }
    let inside = (here - 1.0) / (size - 1.0) * bytes / setting.link.rate;
    let between = (size - here) / (size - 1.0) * bytes / setting.between.rate;
    let latency = if size > here { setting.between.latency } else { setting.link.latency };
    skew * inside.max(between) + EXCHANGES * latency
}

/// Devices that sum gradients: `members` in each of `nodes` nodes.
struct Group {
    members: f64,
    nodes: f64,
}

impl Group {
    fn of_all(setting: &Setting, layout: Layout) -> Self {
        Self::new(layout.devices, layout.devices.min(setting.node))
    }

    /// Those with the same experts are `P` devices apart.
    fn of_copies(setting: &Setting, layout: Layout) -> Self {
        let here = layout.devices.min(setting.node) / layout.expert_parallel;
        Self::new(layout.data_parallel(), here.clamp(1, layout.data_parallel()))
    }

    fn new(size: u64, members: u64) -> Self {
        Self { members: members as f64, nodes: size as f64 / members as f64 }
    }

    /// What a device sends to sum `bytes`: inside its node as a ring, then its part of them as a ring between nodes. Together
    /// `2 (n - 1) / n bytes` for `n` devices.
    fn parts(&self, bytes: f64) -> [f64; 2] {
        let ring = |size: f64| 2.0 * (size - 1.0) / size;
        [ring(self.members) * bytes, ring(self.nodes) * bytes / self.members]
    }

    fn sent(&self, bytes: f64) -> f64 {
        self.parts(bytes).iter().sum()
    }

    /// Both parts at once, and as many latencies as a tree is deep, up and down.
    fn seconds(&self, setting: &Setting, bytes: f64) -> f64 {
        let [inside, between] = self.parts(bytes);
        let depth = |size: f64| 2.0 * size.log2().ceil();
        let latency = depth(self.members) * setting.link.latency + depth(self.nodes) * setting.between.latency;
        (inside / setting.link.rate).max(between / setting.between.rate) + latency
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::tests::setting;

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() <= 1e-9 * expected.abs(), "{found} instead of {expected}");
    }

    fn traffic(devices: u64, expert_parallel: u64) -> Traffic {
        Traffic::new(&setting(), Layout { devices, expert_parallel }, 1.5, 60.0)
    }

    /// D 4, 16 tokens with K 2, one layer, two micro-batches, f32.
    #[test]
    fn all_to_all_counted_by_hand() {
        let found = traffic(6, 3);
        let leaving = 32.0 * 2.0 / 3.0;
        close(found.forward, 2.0 * leaving * (4.0 + 1.0 + 4.0) * 4.0);
        assert_eq!(found.backward, found.forward);
        close(found.all_to_all_seconds, 1.5 * found.all_to_all() / 1e4 + 2.0 * 7.0 * 1e-3);
        let alone = traffic(6, 1);
        assert_eq!((alone.all_to_all(), alone.all_to_all_seconds), (0.0, 0.0));
    }

    #[test]
    fn a_group_over_two_nodes_waits_for_the_slower_link() {
        let mut setting = setting();
        setting.node = 2;
        let found = Traffic::new(&setting, Layout { devices: 3, expert_parallel: 3 }, 1.0, 60.0);
        // Of two others one is in the node.
        let between = found.all_to_all() / 2.0 / 1e3;
        close(found.all_to_all_seconds, between + 2.0 * 7.0 * 1e-2);
        setting.link.rate = 10.0;
        let found = Traffic::new(&setting, Layout { devices: 3, expert_parallel: 3 }, 1.0, 60.0);
        close(found.all_to_all_seconds, found.all_to_all() / 2.0 / 10.0 + 2.0 * 7.0 * 1e-2);
    }

    #[test]
    fn all_reduce_in_one_node_is_a_ring() {
        let dense = setting().model.dense_params() as f64;
        let found = traffic(4, 2);
        close(found.dense_all_reduce, 2.0 * 3.0 / 4.0 * 4.0 * dense);
        close(found.expert_all_reduce, 2.0 * 1.0 / 2.0 * 4.0 * 60.0);
        close(found.all_reduce_seconds, found.all_reduce() / 1e4 + (4.0 + 2.0) * 1e-3);
        assert_eq!(traffic(1, 1).all_reduce(), 0.0);
        assert_eq!(traffic(1, 1).all_reduce_seconds, 0.0);
    }

    #[test]
    fn all_reduce_over_nodes_sends_the_same_bytes_over_two_links() {
        let dense = 4.0 * setting().model.dense_params() as f64;
        let found = traffic(12, 1);
        close(found.dense_all_reduce, 2.0 * 11.0 / 12.0 * dense);
        // Four devices a node, three nodes: a ring of three for a quarter of the bytes; both kinds alike with P = 1.
        let seconds = |bytes: f64| 2.0 * 2.0 / 3.0 * bytes / 4.0 / 1e3 + 4.0 * 1e-3 + 4.0 * 1e-2;
        close(found.all_reduce_seconds, seconds(dense) + seconds(240.0));
    }

    #[test]
    fn copies_of_experts_on_other_nodes_use_the_link_between() {
        let mut setting = setting();
        setting.node = 2;
        // Two groups of three devices over three nodes of two: copies are three devices apart.
        let found = Traffic::new(&setting, Layout { devices: 6, expert_parallel: 3 }, 1.0, 60.0);
        close(found.expert_all_reduce, 240.0);
        let alone = Traffic::new(&setting, Layout { devices: 6, expert_parallel: 3 }, 1.0, 0.0);
        close(found.all_reduce_seconds - alone.all_reduce_seconds, 240.0 / 1e3);
    }
}

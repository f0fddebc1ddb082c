//! What a device holds, in bytes.

use crate::{Dtype, FeedForward, Layout, Setting};

/// f32, whatever the dtype of activations.
const STATE_BYTES: f64 = 4.0;

/// The memory of the device that holds most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Memory {
    /// Parameters on the device.
    pub params: u64,
    /// Parameters, f32.
    pub weights: f64,
    /// Gradients, f32; twice where several micro-batches are accumulated, the sum and those of the last one.
    pub gradients: f64,
    /// The two moments of AdamW, f32.
    pub optimizer: f64,
    /// Weights in bf16, which a forward pass casts and keeps for the backward pass.
    pub casts: f64,
    /// What is kept between the passes of a micro-batch.
    pub activations: f64,
}

impl Memory {
    pub(crate) fn new(setting: &Setting, layout: Layout, skew: f64) -> Self {
        let params = params(setting, layout);
        let numbers = params as f64;
        Self {
            params,
            weights: STATE_BYTES * numbers,
            gradients: STATE_BYTES * numbers * if setting.accumulation > 1 { 2.0 } else { 1.0 },
            optimizer: 2.0 * STATE_BYTES * numbers,
            casts: if setting.dtype == Dtype::Bf16 { setting.dtype.bytes() * numbers } else { 0.0 },
            activations: activations(setting, layout, skew),
        }
    }

    /// All of it.
    pub fn total(&self) -> f64 {
        self.weights + self.gradients + self.optimizer + self.casts + self.activations
    }
}

/// Parameters of the device with most experts.
fn params(setting: &Setting, layout: Layout) -> u64 {
    let model = &setting.model;
    let experts = model.moe.num_experts.div_ceil(layout.expert_parallel);
    model.dense_params() + model.num_moe_layers * experts * model.expert_params()
}

fn activations(setting: &Setting, layout: Layout, skew: f64) -> f64 {
    let (model, tokens) = (&setting.model, setting.tokens as f64);
    let dense_layers = model.num_layers - model.num_moe_layers;
    model.num_layers as f64 * attention(setting)
        + dense_layers as f64 * tokens * feed_forward(setting, model.dense)
        + model.num_moe_layers as f64 * moe(setting, layout, skew)
        // The last norm's input and output, and logits in f32.
        + tokens * (2.0 * model.d_model as f64 * setting.dtype.bytes() + 4.0 * model.vocab_size as f64)
}

/// `T (3 D + (2 H + 2 C) A)` numbers: input and output of the norm before attention, input of the one after; queries, keys, values and what
/// attention gives; `(H + C) A` more where queries and keys are normalised. In f32 one number for each head.
fn attention(setting: &Setting) -> f64 {
    let model = &setting.model;
    let heads = (2 * (model.num_heads + model.num_kv_heads)) * model.head_dim;
    let before_norm = if model.qk_gains > 0 { heads / 2 } else { 0 };
    let numbers = (3 * model.d_model + heads + before_norm) as f64;
    setting.tokens as f64 * (numbers * setting.dtype.bytes() + 4.0 * model.num_heads as f64)
}

/// For a token `D + C + F` numbers: input, pre-activation, activation.
fn feed_forward(setting: &Setting, block: FeedForward) -> f64 {
    (setting.model.d_model + block.columns() + block.d_hidden) as f64 * setting.dtype.bytes()
}

/// On one device `T D + R C` numbers: tokens and pre-activations. With experts on several, the tokens, which the router learns from, and
/// for each of the `R skew` rows that come `D + C + 1`: row, pre-activation and gate. Logits and probabilities of the router in f32.
fn moe(setting: &Setting, layout: Layout, skew: f64) -> f64 {
    let (model, moe, tokens, size) = (&setting.model, &setting.model.moe, setting.tokens as f64, setting.dtype.bytes());
    let (width, columns, rows) = (model.d_model as f64, moe.expert.columns() as f64, tokens * moe.top_k as f64);
    let experts = match layout.expert_parallel {
        1 => rows * columns,
        _ => rows * skew * (width + columns + 1.0),
    };
    let shared = FeedForward { d_hidden: moe.shared_d_hidden, ..moe.expert };
    let shared = if moe.shared_d_hidden > 0 { feed_forward(setting, shared) - width * size } else { 0.0 };
    tokens * (width * size + shared + 8.0 * moe.num_experts as f64) + experts * size
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::tests::setting;

    fn memory(expert_parallel: u64, change: fn(&mut Setting)) -> Memory {
        let mut setting = setting();
        change(&mut setting);
        Memory::new(&setting, Layout { devices: 6, expert_parallel }, 1.5)
    }

    #[test]
    fn state_is_sixteen_bytes_a_parameter_and_four_more_for_accumulated_gradients() {
        let model = setting().model;
        let held = memory(1, |_| {});
        assert_eq!(held.params, model.num_params());
        let bytes = held.params as f64;
        assert_eq!(
            (held.weights, held.gradients, held.optimizer, held.casts),
            (4.0 * bytes, 8.0 * bytes, 8.0 * bytes, 0.0)
        );
        let held = memory(1, |setting| (setting.accumulation, setting.dtype) = (1, Dtype::Bf16));
        assert_eq!((held.gradients, held.casts), (4.0 * bytes, 2.0 * bytes));
    }

    #[test]
    fn the_device_with_most_experts_counts() {
        let model = setting().model;
        assert_eq!(memory(2, |_| {}).params, model.dense_params() + 2 * model.expert_params());
        assert_eq!(memory(3, |_| {}).params, model.dense_params() + model.expert_params());
    }

    /// D 4, V 10, 2 heads of 2 and 1 of keys; 16 tokens in f32.
    #[test]
    fn activations_counted_by_hand() {
        let attention = (3 * 4 + (2 * 2 + 2) * 2) * 4 + 2 * 4;
        let (dense, head) = ((4 + 12 + 6) * 4, 2 * 4 * 4 + 10 * 4);
        let router = 4 * 4 + 2 * 3 * 4;
        let on_one = 16 * (2 * attention + dense + head + router + 2 * 10 * 4);
        assert_eq!(memory(1, |_| {}).activations, f64::from(on_one));
        let on_several = 16 * (2 * attention + dense + head + router + 3 * (4 + 10 + 1) * 4);
        assert_eq!(memory(3, |_| {}).activations, f64::from(on_several));
        let normalized = memory(1, |setting| setting.model.qk_gains = 6).activations;
        assert_eq!(normalized, f64::from(on_one + 16 * 2 * (2 + 1) * 2 * 4));
        let shared = memory(1, |setting| setting.model.moe.shared_d_hidden = 7).activations;
        assert_eq!(shared, f64::from(on_one + 16 * (14 + 7) * 4));
    }
}

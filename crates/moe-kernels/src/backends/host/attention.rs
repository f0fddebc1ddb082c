//! Rotary positions and causal attention on tensors of the CPU backends.

use burn::tensor::backend::BackendTypes;
use burn::tensor::{Shape, TensorMetadata};

use super::{HostBackend, HostTensor, all_f32};
use crate::cpu::{self, Angles, AttentionInputs, AttentionSaved, AttentionShape};
use crate::portable;

type Float<B> = <B as BackendTypes>::FloatTensorPrimitive;

pub(in crate::backends) fn rotary<B: HostBackend>(
    x: Float<B>,
    cos: Float<B>,
    sin: Float<B>,
    inverse: bool,
) -> Float<B> {
    if !all_f32::<B>(&[&x, &cos, &sin]) {
        return portable::rotary::<B>(x, cos, sin, inverse);
    }
    let ([_, _, heads, head_dim], mut x) = (x.shape().dims::<4>(), x.contiguous());
    let (cos, sin) = (cos.contiguous(), sin.contiguous());
    let direction = if inverse { -1.0 } else { 1.0 };
    let angles = Angles { cos: cos.values(), sin: sin.values(), head_dim, direction };
    if x.shape().num_elements() > 0 {
        cpu::rotate(x.values_mut(), heads * head_dim, angles);
    }
    x
}

pub(in crate::backends) fn causal_attention<B: HostBackend>(inputs: [Float<B>; 3], scale: f64) -> [Float<B>; 2] {
    if !all_f32::<B>(&inputs.each_ref()) {
        return portable::causal_attention::<B>(inputs, scale);
    }
    let ([shape, _], sizes) = shapes::<B>(&inputs, scale);
    let inputs = inputs.map(HostTensor::contiguous);
    let rows = [sizes.batch, sizes.queries, sizes.heads];
    let (mut output, mut lse) = (vec![0.0; shape.num_elements()], vec![0.0; rows.iter().product()]);
    cpu::attention(&sizes, slices::<B>(&inputs), &mut output, &mut lse);
    [HostTensor::from_values(output, shape), HostTensor::from_values(lse, rows.into())]
}

pub(in crate::backends) fn causal_attention_backward<B: HostBackend>(
    inputs: [Float<B>; 3],
    outputs: [Float<B>; 2],
    scale: f64,
    grad: Float<B>,
) -> [Float<B>; 3] {
    let [output, lse] = outputs;
    if !all_f32::<B>(&[&inputs[0], &inputs[1], &inputs[2], &output, &lse, &grad]) {
        return portable::causal_attention_backward::<B>(inputs, [output, lse], scale, grad);
    }
    let ([query_shape, key_shape], sizes) = shapes::<B>(&inputs, scale);
    let inputs = inputs.map(HostTensor::contiguous);
    let [output, lse, grad] = [output, lse, grad].map(HostTensor::contiguous);
    let saved = AttentionSaved { output: output.values(), lse: lse.values(), grad: grad.values() };
    let mut query = vec![0.0; query_shape.num_elements()];
    let [mut key, mut value] = [(); 2].map(|()| vec![0.0; key_shape.num_elements()]);
    cpu::attention_backward(&sizes, slices::<B>(&inputs), saved, [&mut query, &mut key, &mut value]);
    [
        HostTensor::from_values(query, query_shape),
        HostTensor::from_values(key, key_shape.clone()),
        HostTensor::from_values(value, key_shape),
    ]
}

/// The shapes of query and key, and the sizes in them.
fn shapes<B: HostBackend>([query, key, _]: &[Float<B>; 3], scale: f64) -> ([Shape; 2], AttentionShape) {
    let [batch, queries, heads, width] = query.shape().dims::<4>();
    let [_, keys, kv_heads, _] = key.shape().dims::<4>();
    let sizes = AttentionShape { batch, queries, keys, heads, kv_heads, width, scale: scale as f32 };
    ([query.shape(), key.shape()], sizes)
}

fn slices<B: HostBackend>([query, key, value]: &[Float<B>; 3]) -> AttentionInputs<'_> {
    AttentionInputs { query: query.values(), key: key.values(), value: value.values() }
}

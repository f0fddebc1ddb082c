//! The ops around the experts against naive loops in f64: values, and gradients against central differences of the loops.

use burn::tensor::{Int, Tensor, TensorData};
use moe_kernels::{
    AdamWStep, AutodiffMoeBackend, ChangeScale, adamw_step, adamw_step_scaled, causal_attention, cross_entropy_rows,
    layer_norm, log_sum_exp_rows, reference, rms_norm, rotary, softmax_rows, sum_of_squares,
};
use moe_tests::{
    assert_close, host, numeric_gradient, numeric_gradient_by_rows, on_every_backend_and_portable, random, tensor,
};

on_every_backend_and_portable!(
    rms_norm_matches_the_loop,
    layer_norm_matches_the_loop,
    softmax_matches_the_loop,
    log_sum_exp_matches_the_loop,
    cross_entropy_matches_the_loop,
    huge_numbers_overflow_nothing,
    a_masked_logit_gets_no_probability,
    a_nan_stays_in_its_row_and_is_not_hidden,
    adamw_matches_the_loop,
    adamw_changes_are_scaled_slice_by_slice,
    a_factor_of_one_keeps_the_bits,
    sum_of_squares_matches_the_loop,
    rotary_matches_the_rotation_of_every_pair,
    causal_attention_matches_the_loop,
    attention_to_a_prefix_equals_that_of_the_whole_sequence,
    nothing_later_reaches_a_query,
    two_runs_give_the_same_bits,
);

/// `[T, width]`: one row, one channel, odd sizes, more rows than a block, a whole number of vectors, more numbers than a
/// thread takes at a time.
const ROWS: [[usize; 2]; 6] = [[1, 5], [7, 1], [13, 19], [130, 33], [3, 64], [65, 256]];

/// `[B, S, P, H, C, A]`: one of everything, grouped queries, a prefix, several blocks of queries.
const ATTENTIONS: [[usize; 6]; 6] = [
    [1, 1, 1, 1, 1, 1],
    [2, 5, 5, 4, 2, 6],
    [1, 3, 7, 3, 1, 5],
    [2, 1, 9, 2, 2, 4],
    [1, 70, 70, 2, 1, 3],
    [1, 66, 131, 1, 1, 2],
];

fn tracked<B: AutodiffMoeBackend, const D: usize>(
    values: &[f64],
    shape: [usize; D],
    device: &B::Device,
) -> Tensor<B, D> {
    tensor::<B, D>(values, shape, device).require_grad()
}

/// Gradients of `sum(output * weight)`.
fn backward<B: AutodiffMoeBackend, const D: usize>(output: Tensor<B, D>, weight: &[f64]) -> B::Gradients {
    let weight = tensor::<B, D>(weight, output.dims(), &output.device());
    (output * weight).sum().backward()
}

fn gradient<B: AutodiffMoeBackend, const D: usize>(input: &Tensor<B, D>, grads: &B::Gradients) -> Vec<f64> {
    host(input.grad(grads).expect("the input was tracked"))
}

fn scaled(n: usize, seed: u64, scale: f32) -> Vec<f64> {
    random(n, seed).into_iter().map(|x| f64::from(x as f32 * scale)).collect()
}

const EPSILON: f64 = 1e-5;

fn rms_norm_matches_the_loop<B: AutodiffMoeBackend>(device: &B::Device) {
    for shape @ [rows, width] in ROWS {
        let (x, gamma, weight) = (scaled(rows * width, 1, 3.0), random(width, 2), random(rows * width, 3));
        let (input, gain) = (tracked::<B, 2>(&x, shape, device), tracked::<B, 1>(&gamma, [width], device));
        let output = rms_norm(input.clone(), gain.clone(), EPSILON);
        assert_close("output", &host(output.clone()), &reference::norm(&x, &gamma, None, EPSILON));

        let grads = backward(output, &weight);
        let by_gamma = numeric_gradient(&gamma, &weight, |gamma| reference::norm(&x, gamma, None, EPSILON));
        assert_close("gradient of gain", &gradient(&gain, &grads), &by_gamma);
        let by_x = numeric_gradient_by_rows(&x, &weight, rows, |_, row| reference::norm(row, &gamma, None, EPSILON));
        // Of a row of one number little more than `EPSILON` is left: the difference of two numbers near 1.
        let by_x_name = if width == 1 { "gradient of x in rows of one" } else { "gradient of x" };
        assert_close(by_x_name, &gradient(&input, &grads), &by_x);
    }
}

fn layer_norm_matches_the_loop<B: AutodiffMoeBackend>(device: &B::Device) {
    // A row of one number has no variance to divide by.
    for shape @ [rows, width] in ROWS.into_iter().filter(|[_, width]| *width > 1) {
        let (x, weight) = (scaled(rows * width, 1, 3.0), random(rows * width, 3));
        let (gamma, beta) = (random(width, 2), random(width, 4));
        let input = tracked::<B, 2>(&x, shape, device);
        let (gain, shift) = (tracked::<B, 1>(&gamma, [width], device), tracked::<B, 1>(&beta, [width], device));
        let output = layer_norm(input.clone(), gain.clone(), shift.clone(), EPSILON);
        let expected = reference::norm(&x, &gamma, Some(&beta), EPSILON);
        assert_close("output", &host(output.clone()), &expected);

        let grads = backward(output, &weight);
        let by_gamma = numeric_gradient(&gamma, &weight, |gamma| reference::norm(&x, gamma, Some(&beta), EPSILON));
        assert_close("gradient of gain", &gradient(&gain, &grads), &by_gamma);
        let by_beta = numeric_gradient(&beta, &weight, |beta| reference::norm(&x, &gamma, Some(beta), EPSILON));
        assert_close("gradient of shift", &gradient(&shift, &grads), &by_beta);
        let by_x =
            numeric_gradient_by_rows(&x, &weight, rows, |_, row| reference::norm(row, &gamma, Some(&beta), EPSILON));
        assert_close("gradient of x", &gradient(&input, &grads), &by_x);
    }
}

fn softmax_matches_the_loop<B: AutodiffMoeBackend>(device: &B::Device) {
    for shape @ [rows, width] in ROWS {
        let (x, weight) = (scaled(rows * width, 5, 8.0), random(rows * width, 6));
        let input = tracked::<B, 2>(&x, shape, device);
        let output = softmax_rows(input.clone());
        assert_close("output", &host(output.clone()), &reference::softmax(&x, width));
        let expected = numeric_gradient_by_rows(&x, &weight, rows, |_, row| reference::softmax(row, width));
        assert_close("gradient of x", &gradient(&input, &backward(output, &weight)), &expected);
    }
}

fn log_sum_exp_matches_the_loop<B: AutodiffMoeBackend>(device: &B::Device) {
    for shape @ [rows, width] in ROWS {
        let (x, weight) = (scaled(rows * width, 7, 8.0), random(rows, 8));
        let input = tracked::<B, 2>(&x, shape, device);
        let output = log_sum_exp_rows(input.clone());
        assert_eq!(output.dims(), [rows, 1]);
        assert_close("output", &host(output.clone()), &reference::log_sum_exp(&x, width));
        let expected = numeric_gradient_by_rows(&x, &weight, rows, |_, row| reference::log_sum_exp(row, width));
        assert_close("gradient of x", &gradient(&input, &backward(output, &weight)), &expected);
    }
}

fn cross_entropy_matches_the_loop<B: AutodiffMoeBackend>(device: &B::Device) {
    for shape @ [rows, width] in ROWS {
        let (x, weight) = (scaled(rows * width, 9, 8.0), random(rows, 10));
        let targets: Vec<usize> = (0..rows).map(|t| (t * 7 + 3) % width).collect();
        let loss = |t: usize, row: &[f64]| vec![reference::log_sum_exp(row, width)[0] - row[targets[t]]];
        let ids: Vec<i64> = targets.iter().map(|&t| t as i64).collect();
        let ids = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [rows]), device);
        let input = tracked::<B, 2>(&x, shape, device);
        let output = cross_entropy_rows(input.clone(), ids);
        let losses: Vec<f64> = x.chunks(width).enumerate().flat_map(|(t, row)| loss(t, row)).collect();
        assert_close("output", &host(output.clone()), &losses);
        let expected = numeric_gradient_by_rows(&x, &weight, rows, loss);
        assert_close("gradient of x", &gradient(&input, &backward(output, &weight)), &expected);
    }
}

fn huge_numbers_overflow_nothing<B: AutodiffMoeBackend>(device: &B::Device) {
    let logits = tracked::<B, 2>(&[3e4, -3e4, 0.0, -3e4, -3e4, -3e4], [2, 3], device);
    let targets = Tensor::<B, 1, Int>::from_data([1, 2], device);
    let losses = cross_entropy_rows(logits.clone(), targets);
    assert_close("losses", &host(losses.clone()), &[6e4, 3f64.ln()]);
    let third = 1.0 / 3.0;
    let expected = [1.0, -1.0, 0.0, third, third, third - 1.0];
    assert_close("gradient", &gradient(&logits, &losses.sum().backward()), &expected);
    assert_close("output", &host(softmax_rows(logits)), &[1.0, 0.0, 0.0, third, third, third]);
}

/// Exactly none, so that what is masked stays without gradient too; 17 columns, so that vectors have a rest.
fn a_masked_logit_gets_no_probability<B: AutodiffMoeBackend>(device: &B::Device) {
    let masked = |i: usize| i % 3 == 1;
    let logits: Vec<f64> = (0..17).map(|i| if masked(i) { f64::NEG_INFINITY } else { 0.5 }).collect();
    let input = tracked::<B, 2>(&logits, [1, 17], device);
    let output = softmax_rows(input.clone());
    let expected: Vec<f64> = (0..17).map(|i| if masked(i) { 0.0 } else { 1.0 / 11.0 }).collect();
    assert_close("output", &host(output.clone()), &expected);
    assert!(host(output.clone()).iter().enumerate().all(|(i, &p)| !masked(i) || p == 0.0));
    let gradient = gradient(&input, &backward(output, &random(17, 1)));
    assert!(gradient.iter().enumerate().all(|(i, &g)| g.is_finite() && (!masked(i) || g == 0.0)), "{gradient:?}");
    let lse = host(log_sum_exp_rows(input));
    assert_close("output", &lse, &[0.5 + 11f64.ln()]);
}

fn a_nan_stays_in_its_row_and_is_not_hidden<B: AutodiffMoeBackend>(device: &B::Device) {
    let x = || tensor::<B, 2>(&[0.5, f64::NAN, 1.0, 0.5, 2.0, 1.0], [2, 3], device);
    let gamma = || tensor::<B, 1>(&[1.0; 3], [3], device);
    let all = |tensor: Tensor<B, 2>| host(tensor).iter().map(|x| x.is_nan()).collect::<Vec<_>>();
    let expected = [true, true, true, false, false, false];
    assert_eq!(all(softmax_rows(x())), expected);
    assert_eq!(all(rms_norm(x(), gamma(), EPSILON)), expected);
    assert_eq!(all(layer_norm(x(), gamma(), gamma(), EPSILON)), expected);
    assert_eq!(all(log_sum_exp_rows(x())), [true, false]);
}

/// One number, and more than a thread takes at a time.
const COUNTS: [usize; 3] = [1, 19, 16_385 + 33];

/// Four steps, the gradient clipped in the last one.
fn adamw_matches_the_loop<B: AutodiffMoeBackend>(device: &B::Device) {
    for count in COUNTS {
        let mut expected = [random(count, 20), vec![0.0; count], vec![0.0; count]];
        let [mut param, mut first, mut second] =
            expected.each_ref().map(|x| tensor::<B, 1>(x, [count], device).inner());
        for time in 1..=4 {
            let step = AdamWStep {
                lr: 1e-2,
                beta_1: 0.9,
                beta_2: 0.95,
                epsilon: 1e-8,
                weight_decay: 0.1,
                time,
                grad_factor: if time == 4 { 0.5 } else { 1.0 },
            };
            let grad = random(count, 20 + time as u64);
            reference::adamw(&mut expected, &grad, &step);
            let grad = tensor::<B, 1>(&grad, [count], device).inner();
            (param, [first, second]) = adamw_step(param, grad, [first, second], &step);
        }
        for (what, found, expected) in
            [("parameter", &param, &expected[0]), ("mean", &first, &expected[1]), ("square", &second, &expected[2])]
        {
            assert_close(what, &host(found.clone()), expected);
        }
    }
}

/// Sizes before the axis, along it and behind it: one of everything, runs of one number and of many, more than a thread takes at a
/// time.
const SLICES: [[usize; 3]; 6] = [[1, 1, 1], [3, 5, 1], [1, 4, 7], [2, 3, 5], [1, 3, 16_390], [1_640, 11, 1]];

/// Parameter, gradient and moments after some steps, of `[outer, slices, run]`.
fn under_way<B: AutodiffMoeBackend>(shape @ [outer, slices, run]: [usize; 3], device: &B::Device) -> Stepping<B> {
    let values = |seed| random(outer * slices * run, seed);
    let of = |values: Vec<f64>| tensor::<B, 3>(&values, shape, device).inner();
    let square = values(33).into_iter().map(|x| x * x).collect();
    Stepping { param: of(values(30)), grad: of(values(31)), moments: [of(values(32)), of(square)] }
}

#[derive(Clone)]
struct Stepping<B: AutodiffMoeBackend> {
    param: Tensor<B::InnerBackend, 3>,
    grad: Tensor<B::InnerBackend, 3>,
    moments: [Tensor<B::InnerBackend, 3>; 2],
}

impl<B: AutodiffMoeBackend> Stepping<B> {
    /// Parameter and moments after one more step.
    fn plain(self) -> [Tensor<B::InnerBackend, 3>; 3] {
        let (param, [first, second]) = adamw_step(self.param, self.grad, self.moments, &STEP);
        [param, first, second]
    }

    fn scaled(
        self,
        factors: Tensor<B::InnerBackend, 1>,
        axis: usize,
        spares_decay: bool,
    ) -> [Tensor<B::InnerBackend, 3>; 3] {
        let scale = ChangeScale { factors, axis, spares_decay };
        let (param, [first, second]) = adamw_step_scaled(self.param, self.grad, self.moments, &STEP, scale);
        [param, first, second]
    }
}

const STEP: AdamWStep =
    AdamWStep { lr: 0.1, beta_1: 0.9, beta_2: 0.95, epsilon: 1e-8, weight_decay: 0.5, time: 3, grad_factor: 1.0 };

fn adamw_changes_are_scaled_slice_by_slice<B: AutodiffMoeBackend>(device: &B::Device) {
    for shape @ [outer, slices, run] in SLICES {
        let before = under_way::<B>(shape, device);
        let factors = scaled(slices, 34, 3.0);
        let [_, first, second] = before.clone().plain();
        let old = host(before.param.clone());
        let decayed: Vec<f64> = old.iter().map(|x| x * (1.0 - STEP.lr * f64::from(STEP.weight_decay))).collect();
        let [by_loop_first, by_loop_second] = before.moments.each_ref().map(|moment| host(moment.clone()));
        let mut by_loop = [old.clone(), by_loop_first, by_loop_second];
        reference::adamw(&mut by_loop, &host(before.grad.clone()), &STEP);
        let plain = &by_loop[0];
        let expected = |old: &[f64], factor: &dyn Fn(usize) -> f64| -> Vec<f64> {
            let each = (0..outer * slices * run).map(|i| (i, factor(i / run % slices)));
            each.map(|(i, factor)| old[i] + factor * (plain[i] - old[i])).collect()
        };
        let each = tensor::<B, 1>(&factors, [slices], device).inner();
        let one = tensor::<B, 1>(&factors[..1], [1], device).inner();
        let [found, first_found, second_found] = before.clone().scaled(each.clone(), 1, false);
        assert_close("each slice", &host(found), &expected(&old, &|slice| factors[slice]));
        first_found.into_data().assert_eq(&first.into_data(), true);
        second_found.into_data().assert_eq(&second.into_data(), true);
        let [found, ..] = before.clone().scaled(one, 2, false);
        assert_close("all of it", &host(found), &expected(&old, &|_| factors[0]));
        let [found, ..] = before.scaled(each, 1, true);
        assert_close("each slice sparing decay", &host(found), &expected(&decayed, &|slice| factors[slice]));
    }
}

fn a_factor_of_one_keeps_the_bits<B: AutodiffMoeBackend>(device: &B::Device) {
    let before = under_way::<B>([1, 5, 7], device);
    let factors = tensor::<B, 1>(&[1.0, 0.0, 1.0, 2.0, 1.0], [5], device).inner();
    let [found, ..] = before.clone().scaled(factors, 1, false);
    let [plain, ..] = before.clone().plain();
    for row in [0, 2, 4] {
        let [found, plain] = [&found, &plain].map(|all| all.clone().narrow(1, row, 1));
        // The compiler for CUDA makes one rounding of a product and a sum, and not of the same ones in two kernels.
        if cfg!(feature = "cuda") {
            assert_close("a factor of 1", &host(found), &host(plain));
        } else {
            found.into_data().assert_eq(&plain.into_data(), true);
        }
    }
    assert_close("a factor of 0", &host(found.narrow(1, 1, 1)), &host(before.param.narrow(1, 1, 1)));
}

fn sum_of_squares_matches_the_loop<B: AutodiffMoeBackend>(device: &B::Device) {
    for count in COUNTS {
        let x = scaled(count, 25, 3.0);
        let expected: f64 = x.iter().map(|x| x * x).sum();
        assert_close("output", &host(sum_of_squares(tensor::<B, 1>(&x, [count], device))), &[expected]);
    }
}

fn rotary_matches_the_rotation_of_every_pair<B: AutodiffMoeBackend>(device: &B::Device) {
    for shape @ [batch, len, heads, width] in [[1, 1, 1, 2], [2, 3, 2, 6], [1, 70, 3, 8], [3, 5, 1, 34], [1, 70, 4, 64]]
    {
        let n = batch * len * heads * width;
        let (x, weight) = (random(n, 11), random(n, 12));
        let angles = scaled(len * width / 2, 13, 3.0);
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f64> = angles.iter().map(|&angle| f(angle)).collect();
            tensor::<B, 2>(&values, [len, width / 2], device)
        };
        let input = tracked::<B, 4>(&x, shape, device);
        let output = rotary(input.clone(), table(f64::cos), table(f64::sin));
        assert_close("output", &host(output.clone()), &reference::rotary(&x, &angles, width, heads));

        let back: Vec<f64> = angles.iter().map(|angle| -angle).collect();
        let expected = reference::rotary(&weight, &back, width, heads);
        assert_close("gradient of x", &gradient(&input, &backward(output, &weight)), &expected);
    }
}

/// Query, key and value of a case, scores of a few units.
fn attention_inputs([batch, len, keys, heads, kv_heads, width]: [usize; 6]) -> [Vec<f64>; 3] {
    let key_len = batch * keys * kv_heads * width;
    [scaled(batch * len * heads * width, 14, 3.0), scaled(key_len, 15, 3.0), random(key_len, 16)]
}

fn causal_attention_matches_the_loop<B: AutodiffMoeBackend>(device: &B::Device) {
    for sizes @ [batch, len, keys, heads, kv_heads, width] in ATTENTIONS {
        let (scale, [q, k, v]) = ((width as f64).sqrt().recip(), attention_inputs(sizes));
        let (queries, positions) = ([batch, len, heads, width], [batch, keys, kv_heads, width]);
        let query = tracked::<B, 4>(&q, queries, device);
        let [key, value] = [&k, &v].map(|x| tracked::<B, 4>(x, positions, device));
        let output = causal_attention(query.clone(), key.clone(), value.clone(), scale);
        let expected = reference::causal_attention(&q, &k, &v, sizes, scale);
        assert_close("output", &host(output.clone()), &expected);

        let weight = random(q.len(), 17);
        let grads = backward(output, &weight);
        let by_q = numeric_gradient(&q, &weight, |q| reference::causal_attention(q, &k, &v, sizes, scale));
        assert_close("gradient of query", &gradient(&query, &grads), &by_q);
        let by_k = numeric_gradient(&k, &weight, |k| reference::causal_attention(&q, k, &v, sizes, scale));
        assert_close("gradient of key", &gradient(&key, &grads), &by_k);
        let by_v = numeric_gradient(&v, &weight, |v| reference::causal_attention(&q, &k, v, sizes, scale));
        assert_close("gradient of value", &gradient(&value, &grads), &by_v);
    }
}

fn attention_to_a_prefix_equals_that_of_the_whole_sequence<B: AutodiffMoeBackend>(device: &B::Device) {
    let (len, start) = (9, 4);
    let [query, key, value] = attention_inputs([1, len, len, 2, 1, 4]);
    let query = tensor::<B, 4>(&query, [1, len, 2, 4], device);
    let [key, value] = [key, value].map(|x| tensor::<B, 4>(&x, [1, len, 1, 4], device));
    let whole = causal_attention(query.clone(), key.clone(), value.clone(), 0.5).slice([0..1, start..len]);
    let last = causal_attention(query.slice([0..1, start..len]), key, value, 0.5);
    assert_close("the last queries", &host(last), &host(whole));
}

fn nothing_later_reaches_a_query<B: AutodiffMoeBackend>(device: &B::Device) {
    let len = 70;
    let [query, mut key, mut value] = attention_inputs([1, len, len, 1, 1, 4]);
    let run = |key: &[f64], value: &[f64]| {
        let [query, key, value] = [&query[..], key, value].map(|x| tensor::<B, 4>(x, [1, len, 1, 4], device));
        host(causal_attention(query, key, value, 0.5))
    };
    let before = run(&key, &value);
    key[(len - 1) * 4..].fill(50.0);
    value[(len - 1) * 4..].fill(50.0);
    let after = run(&key, &value);
    assert_eq!(before[..(len - 1) * 4], after[..(len - 1) * 4]);
    assert_ne!(before, after);
}

fn two_runs_give_the_same_bits<B: AutodiffMoeBackend>(device: &B::Device) {
    let run = || {
        let x = tracked::<B, 2>(&random(300 * 24, 18), [300, 24], device);
        let gamma = tracked::<B, 1>(&random(24, 19), [24], device);
        let heads = rms_norm(x.clone(), gamma.clone(), EPSILON).reshape([2, 150, 4, 6]);
        let mixed = causal_attention(heads.clone(), heads.clone(), heads, 0.4);
        let grads = softmax_rows(mixed.reshape([300, 24])).powi_scalar(2).sum().backward();
        [gradient(&x, &grads), gradient(&gamma, &grads)]
    };
    assert_eq!(run(), run());
}

/// burn's autodiff frees, after every backward pass of any thread, what nobody holds a tensor of.
#[cfg(feature = "flex")]
#[test]
fn a_backward_pass_of_another_thread_takes_no_gradient_of_attention_away() {
    let (device, shape) = (Default::default(), [1, 400, 4, 8]);
    let numbers = |seed| random(shape.iter().product(), seed);
    let inputs = [1, 2, 3].map(|seed| tracked::<moe_tests::Flex, 4>(&numbers(seed), shape, &device));
    moe_tests::beside_backward_passes(|| {
        // Nobody but the op holds what it is given.
        let [query, key, value] = inputs.clone().map(|input| input * 1.0);
        let grads = causal_attention(query, key, value, 0.4).sum().backward();
        assert!(inputs.iter().all(|input| input.grad(&grads).is_some()), "a gradient is missing");
    });
}

//! The attention of the language model's blocks, with its projections, norms and rotations, against loops in f64.

use burn::module::Param;
use burn::tensor::Tensor;
use moe_kernels::reference;
use moe_layers::AutodiffMoeBackend;
use moe_models::lm::{Attention, Lm, LmConfig, MoeLayers, Norm, QkNorm};
use moe_tests::{assert_close, host, numeric_gradient, on_every_backend, random, tensor};

on_every_backend!(values_and_gradients_match_the_loops);

/// Sequences, tokens, heads, heads of keys and values, channels of a head, width.
const SIZES: [usize; 6] = [2, 10, 4, 2, 10, 12];
const NORMS: [QkNorm; 3] = [QkNorm::None, QkNorm::PerHead, QkNorm::Full];
const THETA: f64 = 100.0;
const EPSILON: f64 = 1e-5;

const NAMES: [&str; 7] = ["x", "query", "key", "value", "output matrix", "query norm", "key norm"];

fn config(norm: QkNorm) -> LmConfig {
    let [_, s, h, c, a, d] = SIZES;
    let config = LmConfig::new(8, d, 1, h, 8, s).with_num_kv_heads(Some(c)).with_head_dim(Some(a));
    config.with_rope_theta(THETA).with_norm_eps(EPSILON).with_qk_norm(norm).with_moe_layers(MoeLayers::None)
}

/// Channels of a gain over queries or keys of so many heads.
fn gains(norm: QkNorm, heads: usize) -> usize {
    match norm {
        QkNorm::None => 0,
        QkNorm::PerHead => SIZES[4],
        QkNorm::Full => heads * SIZES[4],
    }
}

/// Of everything in [`NAMES`].
fn shapes(norm: QkNorm) -> [Vec<usize>; 7] {
    let [b, s, h, c, a, d] = SIZES;
    let gains = [h, c].map(|heads| vec![gains(norm, heads)]);
    let [query_norm, key_norm] = gains;
    [vec![b, s, d], vec![d, h * a], vec![d, c * a], vec![d, c * a], vec![h * a, d], query_norm, key_norm]
}

fn numbers(norm: QkNorm, first_seed: u64) -> Vec<Vec<f64>> {
    let of = |(seed, shape): (u64, Vec<usize>)| random(shape.iter().product(), seed);
    let mut numbers: Vec<_> = (first_seed..).zip(shapes(norm)).map(of).collect();
    numbers[5..].iter_mut().flatten().for_each(|gain| *gain += 1.5);
    numbers
}

fn with_numbers<B: AutodiffMoeBackend>(mut model: Lm<B>, numbers: &[Vec<f64>]) -> Lm<B> {
    let attention = &mut model.blocks[0].attention;
    let Attention { query, key, value, output, query_norm, key_norm, .. } = attention;
    for (matrix, values) in [query, key, value, output].into_iter().zip(&numbers[1..]) {
        *matrix = Param::from_tensor(tensor(values, matrix.dims(), &matrix.device()));
    }
    let norms: [&mut Option<Norm<B>>; 2] = [query_norm, key_norm];
    for (norm, values) in norms.into_iter().zip(&numbers[5..]) {
        if let Some(norm) = norm {
            norm.gamma = Param::from_tensor(tensor(values, norm.gamma.dims(), &norm.gamma.device()));
        }
    }
    model
}

fn grad_of_output() -> Vec<f64> {
    let [b, s, .., d] = SIZES;
    random(b * s * d, 9)
}

/// The output of `forward`, and the gradients of everything that is there, in the order of [`NAMES`].
fn run<B: AutodiffMoeBackend>(
    norm: QkNorm,
    numbers: &[Vec<f64>],
    forward: impl Fn(&Lm<B>, Tensor<B, 3>) -> Tensor<B, 3>,
    device: &B::Device,
) -> Vec<Vec<f64>> {
    let [b, s, .., d] = SIZES;
    let model = with_numbers(config(norm).init::<B>(device), numbers);
    let x = tensor::<B, 3>(&numbers[0], [b, s, d], device).require_grad();
    let output = forward(&model, x.clone());
    let grads = (output.clone() * tensor(&grad_of_output(), [b, s, d], device)).sum().backward();
    let attention = &model.blocks[0].attention;
    let mut all = vec![host(output), host(x.grad(&grads).expect("tracked"))];
    for matrix in [&attention.query, &attention.key, &attention.value, &attention.output] {
        all.push(host(matrix.grad(&grads).expect("tracked")));
    }
    for norm in [&attention.query_norm, &attention.key_norm].into_iter().flatten() {
        all.push(host(norm.gamma.grad(&grads).expect("tracked")));
    }
    all
}

/// Rows `[N, I]` times `[I, O]`.
fn product(rows: &[f64], matrix: &[f64], inner: usize) -> Vec<f64> {
    let columns = matrix.len() / inner;
    let entry = |row: &[f64], column: usize| (0..inner).map(|i| row[i] * matrix[i * columns + column]).sum();
    rows.chunks(inner).flat_map(|row| (0..columns).map(|column| entry(row, column)).collect::<Vec<_>>()).collect()
}

/// `[S, A / 2]`, the frequency and the product rounded as in the model.
fn angles() -> Vec<f64> {
    let [_, s, .., a, _] = SIZES;
    let frequency = |i: usize| THETA.powf(-2.0 * i as f64 / a as f64) as f32;
    (0..s).flat_map(|position| (0..a / 2).map(move |i| f64::from(position as f32 * frequency(i)))).collect()
}

fn loops(numbers: &[Vec<f64>]) -> Vec<f64> {
    let [b, s, h, c, a, d] = SIZES;
    let [x, query, key, value, output, query_norm, key_norm] = numbers else { unreachable!("seven") };
    let turned = |matrix: &[f64], gain: &[f64], heads: usize| {
        let rows = product(x, matrix, d);
        let rows = if gain.is_empty() { rows } else { reference::norm(&rows, gain, None, EPSILON) };
        reference::rotary(&rows, &angles(), a, heads)
    };
    let (queries, keys) = (turned(query, query_norm, h), turned(key, key_norm, c));
    let sizes = [b, s, s, h, c, a];
    let mixed = reference::causal_attention(&queries, &keys, &product(x, value, d), sizes, (a as f64).sqrt().recip());
    product(&mixed, output, h * a)
}

/// The output, then central differences, in the order of [`NAMES`].
fn by_loops(norm: QkNorm, numbers: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let weight = grad_of_output();
    let gradient = |at: usize| {
        numeric_gradient(&numbers[at], &weight, |values| {
            let mut moved = numbers.to_vec();
            moved[at] = values.to_vec();
            loops(&moved)
        })
    };
    let given = if norm == QkNorm::None { 5 } else { 7 };
    std::iter::once(loops(numbers)).chain((0..given).map(gradient)).collect()
}

fn named(norm: QkNorm) -> impl Iterator<Item = String> {
    let gradient = move |name| format!("{norm:?}, gradient of {name}");
    std::iter::once(format!("{norm:?}, output")).chain(NAMES.into_iter().map(gradient))
}

fn forward<B: AutodiffMoeBackend>(model: &Lm<B>, x: Tensor<B, 3>) -> Tensor<B, 3> {
    model.blocks[0].attention.forward_sequences(x, &model.rotary)
}

fn values_and_gradients_match_the_loops<B: AutodiffMoeBackend>(device: &B::Device) {
    for norm in NORMS {
        let numbers = numbers(norm, 1);
        let (found, expected) = (run::<B>(norm, &numbers, forward, device), by_loops(norm, &numbers));
        assert_eq!(found.len(), expected.len());
        for ((what, found), expected) in named(norm).zip(&found).zip(&expected) {
            assert_close(&what, found, expected);
        }
    }
}

#[cfg(feature = "flex")]
mod low_precision {
    use burn::tensor::DType;
    use burn::tensor::activation::softmax;
    use moe_tests::{Flex, HALF, assert_like_plain_ops, mean_square_error, rounded};

    use super::*;

    /// Of `[B, S, heads, A]`, in f32.
    fn turn(x: Tensor<Flex, 4>) -> Tensor<Flex, 4> {
        let ([_, s, _, a], dtype, device) = (x.dims(), x.dtype(), x.device());
        let table = |f: fn(f64) -> f64| {
            tensor::<Flex, 4>(&angles().into_iter().map(f).collect::<Vec<_>>(), [1, s, 1, a / 2], &device)
        };
        let halves = x.cast(DType::F32).chunk(2, 3);
        let (cos, sin, left, right) = (table(f64::cos), table(f64::sin), halves[0].clone(), halves[1].clone());
        let turned = left.clone() * cos.clone() - right.clone() * sin.clone();
        Tensor::cat(vec![turned, right * cos + left * sin], 3).cast(dtype)
    }

    /// Root mean square of rows of as many channels as the gain has, in f32.
    fn normalize(x: Tensor<Flex, 2>, norm: &Option<Norm<Flex>>) -> Tensor<Flex, 2> {
        let Some(norm) = norm else { return x };
        let ([rows, channels], dtype, [width]) = (x.dims(), x.dtype(), norm.gamma.dims());
        let x = x.cast(DType::F32).reshape([rows * channels / width, width]);
        let size = (x.clone().powi_scalar(2).mean_dim(1) + EPSILON).sqrt();
        (x / size * norm.gamma.val().unsqueeze()).reshape([rows, channels]).cast(dtype)
    }

    /// The layer in burn's own ops: products in the dtype of `x`, norms, rotations and softmax in f32.
    fn plain(model: &Lm<Flex>, x: Tensor<Flex, 3>) -> Tensor<Flex, 3> {
        let ([b, s, h, c, a, d], dtype, attention) = (SIZES, x.dtype(), &model.blocks[0].attention);
        let x = x.reshape([b * s, d]);
        let project = |matrix: &Param<Tensor<Flex, 2>>| x.clone().matmul(matrix.val().cast(dtype));
        // Every head of keys and values once for each of its heads of queries.
        let spread =
            |x: Tensor<Flex, 4>| x.reshape([b, s, c, 1, a]).repeat_dim(3, h / c).reshape([b, s, h, a]).swap_dims(1, 2);
        let queries = turn(normalize(project(&attention.query), &attention.query_norm).reshape([b, s, h, a]));
        let keys = turn(normalize(project(&attention.key), &attention.key_norm).reshape([b, s, c, a]));
        let values = spread(project(&attention.value).reshape([b, s, c, a]));
        let scores = queries.swap_dims(1, 2).matmul(spread(keys).swap_dims(2, 3)) / (a as f64).sqrt();
        let future = Tensor::<Flex, 2>::ones([s, s], &x.device()).triu(1).greater_elem(0.0).unsqueeze::<4>();
        let scores = scores.cast(DType::F32).mask_fill(future.expand([b, h, s, s]), f32::NEG_INFINITY);
        let mixed = softmax(scores, 3).cast(dtype).matmul(values).swap_dims(1, 2).reshape([b * s, h * a]);
        mixed.matmul(attention.output.val().cast(dtype)).reshape([b, s, d])
    }

    /// Random numbers of that many kinds: a gain has ten, whose errors are chance for one kind.
    const KINDS: u64 = 3;

    /// The outputs and gradients of `forward` and of `plain`, and of the loops, in the order of [`NAMES`].
    fn all_three(norm: QkNorm, dtype: DType, first_seed: u64) -> [Vec<Vec<f64>>; 3] {
        let device = Default::default();
        let mut numbers = numbers(norm, first_seed);
        numbers[0] = rounded::<Flex>(numbers[0].len(), first_seed, dtype, &device);
        let run = |path: fn(&Lm<Flex>, Tensor<Flex, 3>) -> Tensor<Flex, 3>| {
            let forward = |model: &Lm<Flex>, x: Tensor<Flex, 3>| {
                let output = path(model, x.cast(dtype));
                assert_eq!(output.dtype(), dtype);
                output.cast(DType::F32)
            };
            run::<Flex>(norm, &numbers, forward, &device)
        };
        [run(forward), run(plain), by_loops(norm, &numbers)]
    }

    #[test]
    fn low_precision_loses_no_more_than_twice_what_plain_ops_lose() {
        for (norm, (dtype, called)) in NORMS[1..].iter().flat_map(|&norm| HALF.map(|half| (norm, half))) {
            let mut kinds = (0..KINDS).map(|kind| all_three(norm, dtype, 1 + 10 * kind));
            let mut all = kinds.next().expect("there are some");
            for kind in kinds {
                let more = kind.into_iter().flatten();
                all.iter_mut().flatten().zip(more).for_each(|(values, more)| values.extend(more));
            }
            let [found, plain, exact] = all;
            for (((what, found), plain), exact) in named(norm).zip(&found).zip(&plain).zip(&exact) {
                assert_like_plain_ops(&what, called, [found, plain], exact);
                // Gradients of scores that do not cancel in a row, as the sum over one was rounded, are 1.3 to 1.7 times as far off.
                let ratio = mean_square_error(found, exact) / mean_square_error(plain, exact);
                assert!(ratio < 1.25, "{called}, {what}: {ratio} times the error of plain ops");
            }
        }
    }
}

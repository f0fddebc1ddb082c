use burn::backend::{Autodiff, Flex};
use burn::tensor::Tolerance;

use super::*;
use crate::router::{HashOptions, NoisyTopKOptions, SigmoidOptions, SinkhornOptions};
use crate::{Activation, DenseFeedForwardConfig};

/// Relative and absolute, f32: sums of other lengths.
const TOLERANCE: f32 = 2e-5;

fn dense(activation: Activation) -> DenseFeedForward<Flex> {
    DenseFeedForwardConfig::new(6, 12).with_activation(activation).init(&Default::default())
}

fn tokens() -> Tensor<Flex, 2> {
    Tensor::random([17, 6], Distribution::Normal(0.0, 1.0), &Default::default())
}

fn config(d_hidden: usize, num_experts: usize, top_k: usize) -> MoeConfig {
    MoeConfig::new(6, d_hidden, num_experts, top_k).with_normalize_gates(true)
}

fn assert_same_function(dense: &DenseFeedForward<Flex>, config: &MoeConfig) {
    let moe = upcycle(dense, config, Upcycling::Copy, &Default::default());
    let tokens = tokens();
    let expected = dense.forward(tokens.clone()).into_data();
    let found = moe.forward(tokens).output.into_data();
    found.assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(TOLERANCE, TOLERANCE));
}

#[test]
fn copies_compute_the_dense_function() {
    for activation in [Activation::SwiGlu, Activation::Gelu, Activation::Relu] {
        assert_same_function(&dense(activation), &config(12, 5, 2).with_activation(activation));
    }
}

#[test]
fn segments_compute_the_dense_function_together() {
    for activation in [Activation::SwiGlu, Activation::Relu] {
        for (d_hidden, experts, top_k) in [(6, 8, 2), (4, 6, 3), (3, 8, 8), (6, 8, 4), (1, 24, 12)] {
            assert_same_function(&dense(activation), &config(d_hidden, experts, top_k).with_activation(activation));
        }
    }
}

#[test]
fn an_undecided_router_gives_the_dense_function_under_every_rule() {
    let sigmoid = || RouterRule::Sigmoid(SigmoidOptions::new().with_scale(2.5));
    let hash = RouterRule::Hash(HashOptions::new().with_vocab_size(17));
    let (sinkhorn, noisy) = (SinkhornOptions::new(), NoisyTopKOptions::new());
    let cases = [
        (6, 4, RouterRule::TopK),
        (6, 4, sigmoid()),
        (12, 4, hash),
        (6, 4, RouterRule::Sinkhorn(sinkhorn.clone())),
        (12, 1, RouterRule::Sinkhorn(sinkhorn)),
        (12, 4, RouterRule::NoisyTopK(noisy)),
    ];
    for (d_hidden, top_k, rule) in cases {
        let config = config(d_hidden, 8, top_k).with_router(rule);
        for normalize in [true, false] {
            assert_same_function_undecided(&config.clone().with_normalize_gates(normalize));
        }
    }
}

fn assert_same_function_undecided(config: &MoeConfig) {
    let dense = dense(config.activation);
    let mut moe = upcycle(&dense, config, Upcycling::Copy, &Default::default());
    if let Some(weight) = moe.router.weight_mut() {
        *weight = Param::from_tensor(weight.val().zeros_like());
    }
    let tokens = tokens();
    let ids = Tensor::arange(0..17, &Default::default());
    let found = moe.forward_ids(tokens.clone(), ids).output.into_data();
    let expected = dense.forward(tokens).into_data();
    found.assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(TOLERANCE, TOLERANCE));
}

#[test]
#[should_panic(expected = "a hash router does not choose 2 experts together")]
fn segments_under_a_hash_router_panic() {
    let config = config(6, 4, 2).with_router(RouterRule::Hash(HashOptions::new().with_vocab_size(17)));
    upcycle(&dense(Activation::SwiGlu), &config, Upcycling::Copy, &Default::default());
}

/// Repetitions of two experts under groups of three: one lies in both groups.
#[test]
#[should_panic(expected = "a sigmoid router with groups of 3 experts does not choose 2 experts together")]
fn segments_across_groups_panic() {
    let rule = RouterRule::Sigmoid(SigmoidOptions::new().with_groups(2));
    upcycle(&dense(Activation::SwiGlu), &config(6, 6, 2).with_router(rule), Upcycling::Copy, &Default::default());
}

#[test]
fn segments_within_groups_compute_the_dense_function() {
    let rule = RouterRule::Sigmoid(SigmoidOptions::new().with_groups(2));
    assert_same_function(&dense(Activation::SwiGlu), &config(6, 8, 2).with_router(rule));
}

#[test]
fn experts_of_a_network_that_was_trained_can_be_trained() {
    type Training = Autodiff<Flex>;
    let device = Default::default();
    let dense = DenseFeedForwardConfig::new(6, 12).init::<Training>(&device);
    for (d_hidden, method) in [(12, Upcycling::Copy), (6, Upcycling::Noise(0.1)), (4, Upcycling::Drop(0.5))] {
        let moe = upcycle(&dense, &config(d_hidden, 6, 6), method, &device);
        let grads = moe.forward(Tensor::from_inner(tokens())).output.square().sum().backward();
        let router = moe.router.weight().expect("top-k has one");
        assert!(moe.experts.w_in.grad(&grads).is_some() && moe.experts.w_out.grad(&grads).is_some());
        assert!(router.grad(&grads).is_some());
        assert!(dense.w_in.grad(&grads).is_none(), "the dense network stays out of it");
    }
}

/// Gate, up and down projection of experts without and with `method`, made of a network whose up projection is ten times the gate
/// and has another mean.
fn matrices(method: Upcycling) -> Vec<[Tensor<Flex, 3>; 2]> {
    let device = Default::default();
    let mut dense = DenseFeedForwardConfig::new(6, 192).init::<Flex>(&device);
    let [gate, up] = dense.w_in.val().chunk(2, 1).try_into().expect("two parts");
    dense.w_in = Param::from_tensor(Tensor::cat(vec![gate, up * 10.0 + 5.0], 1));
    let [plain, changed] = [Upcycling::Copy, method].map(|method| {
        let experts = upcycle(&dense, &config(192, 8, 2), method, &device).experts;
        let mut matrices = experts.w_in.val().chunk(2, 2);
        matrices.push(experts.w_out.val());
        matrices
    });
    plain.into_iter().zip(changed).map(|(plain, changed)| [plain, changed]).collect()
}

/// Mean and standard deviation.
fn moments(x: &Tensor<Flex, 3>) -> (f64, f64) {
    let values: Vec<f64> = x.to_data().iter().collect();
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / values.len() as f64;
    (mean, variance.sqrt())
}

/// Of the deviation of 9216 draws, for that and for their mean: about six deviations of the mean.
const OF_DRAWS: f64 = 0.06;

#[test]
fn noise_has_the_deviation_that_is_asked_for_in_every_matrix() {
    for (i, [plain, noisy]) in matrices(Upcycling::Noise(0.25)).into_iter().enumerate() {
        let expected = 0.25 * moments(&plain).1;
        let (_, found) = moments(&(noisy - plain));
        assert!((found - expected).abs() < OF_DRAWS * expected, "matrix {i}: {found} instead of {expected}");
    }
}

#[test]
fn what_is_drawn_anew_has_the_moments_of_its_own_matrix() {
    for (i, [plain, drawn]) in matrices(Upcycling::Drop(1.0)).into_iter().enumerate() {
        let ((mean, deviation), (found_mean, found)) = (moments(&plain), moments(&drawn));
        assert!((found - deviation).abs() < OF_DRAWS * deviation, "matrix {i}: {found} instead of {deviation}");
        assert!((found_mean - mean).abs() < OF_DRAWS * deviation, "matrix {i}: {found_mean} instead of {mean}");
    }
}

#[test]
fn a_dropped_unit_is_drawn_anew_in_all_its_weights_and_the_others_stay() {
    let (dense, device) = (dense(Activation::SwiGlu), Default::default());
    let moe = upcycle(&dense, &config(12, 4, 2), Upcycling::Drop(0.25), &device);
    let plain = upcycle(&dense, &config(12, 4, 2), Upcycling::Copy, &device);
    let of = |new: Tensor<Flex, 3>, old: Tensor<Flex, 3>| changed_rows(new - old);
    let out = of(moe.experts.w_out.val(), plain.experts.w_out.val());
    let columns = of(moe.experts.w_in.val().swap_dims(1, 2), plain.experts.w_in.val().swap_dims(1, 2));
    for e in 0..4 {
        let units = &out[e * 12..(e + 1) * 12];
        assert_eq!(units.iter().filter(|&&changed| changed).count(), 3);
        assert_eq!(&columns[e * 24..e * 24 + 12], units, "the gate's columns of expert {e}");
        assert_eq!(&columns[e * 24 + 12..(e + 1) * 24], units, "the up projection's columns of expert {e}");
    }
    assert!((1..4).any(|e| out[e * 12..(e + 1) * 12] != out[..12]), "experts drop other units than their neighbours");
}

/// For each row of each matrix whether it is other than zero, which is all of it or nothing.
fn changed_rows(difference: Tensor<Flex, 3>) -> Vec<bool> {
    let width = difference.dims()[2];
    let values: Vec<f32> = difference.into_data().to_vec().expect("f32");
    let row = |row: &[f32]| {
        let changed = row.iter().filter(|&&x| x != 0.0).count();
        assert!(changed == 0 || changed == width, "a row changed in part");
        changed > 0
    };
    values.chunks(width).map(row).collect()
}

#[test]
#[should_panic(expected = "d_hidden = 5 must divide the dense network's, 12")]
fn a_width_that_does_not_divide_panics() {
    upcycle(&dense(Activation::SwiGlu), &config(5, 4, 2), Upcycling::Copy, &Default::default());
}

#[test]
#[should_panic(expected = "2 experts make up the dense network")]
fn a_number_of_experts_that_is_no_multiple_panics() {
    upcycle(&dense(Activation::SwiGlu), &config(6, 4, 1), Upcycling::Copy, &Default::default());
}

#[test]
#[should_panic(expected = "another activation")]
fn another_activation_panics() {
    upcycle(&dense(Activation::Gelu), &config(12, 4, 1), Upcycling::Copy, &Default::default());
}

#[test]
#[should_panic(expected = "every token must have K experts")]
fn a_router_without_k_experts_panics() {
    let config = config(12, 4, 1).with_router(RouterRule::ExpertChoice);
    upcycle(&dense(Activation::SwiGlu), &config, Upcycling::Copy, &Default::default());
}

#[test]
#[should_panic(expected = "the share is 1.5")]
fn a_share_above_one_panics() {
    upcycle(&dense(Activation::SwiGlu), &config(12, 4, 1), Upcycling::Drop(1.5), &Default::default());
}

#[test]
#[should_panic(expected = "MoeConfig: load_coef = 0.1 needs a router with noise")]
fn a_layer_that_contradicts_itself_panics() {
    let config = config(12, 4, 1).with_load_coef(0.1);
    upcycle(&dense(Activation::SwiGlu), &config, Upcycling::Copy, &Default::default());
}

#[test]
#[should_panic(expected = "d_model = 8 must be the dense network's, 6")]
fn another_width_of_tokens_panics() {
    let config = MoeConfig { d_model: 8, ..config(12, 4, 1) };
    upcycle(&dense(Activation::SwiGlu), &config, Upcycling::Copy, &Default::default());
}

#[test]
#[should_panic(expected = "shared experts would change the function")]
fn shared_experts_panic() {
    let config = config(12, 4, 1).with_shared_d_hidden(3);
    upcycle(&dense(Activation::SwiGlu), &config, Upcycling::Copy, &Default::default());
}

#[test]
#[should_panic(expected = "the noise is -1")]
fn a_negative_noise_panics() {
    upcycle(&dense(Activation::SwiGlu), &config(12, 4, 1), Upcycling::Noise(-1.0), &Default::default());
}

#[test]
#[should_panic(expected = "a noisy router does not choose 2 experts together")]
fn segments_under_a_noisy_router_panic() {
    let config = config(6, 4, 2).with_router(RouterRule::NoisyTopK(NoisyTopKOptions::new()));
    upcycle(&dense(Activation::SwiGlu), &config, Upcycling::Copy, &Default::default());
}

#[test]
fn methods_have_texts_that_read_the_same_and_others_are_refused() {
    for method in [Upcycling::Copy, Upcycling::Noise(0.25), Upcycling::Drop(0.5), Upcycling::Noise(1e-3)] {
        assert_eq!(method.to_string().parse(), Ok(method));
    }
    for text in ["", "copies", "noise", "noise-", "drop-x", "drop--0.5", "noise-inf", "drop-1.5"] {
        assert!(text.parse::<Upcycling>().is_err(), "{text}");
    }
}

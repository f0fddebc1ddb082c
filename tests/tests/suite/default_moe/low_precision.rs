//! Half precision on flex: the vectors stay f32, their error is at most twice that of plain ops, and that of output and gradients a few roundings.

use burn::tensor::{DType, Distribution, Int, Tensor};
use default_moe::{DefaultMoe, DefaultMoeConfig, DefaultOptions, UpdateRule};
use moe_layers::{MoeConfig, Routing, dispatch};
use moe_tests::{CASES, Flex, HALF, assert_like_plain_ops, host, mean_square_error, note_error, rounded};

use super::{Form, Layer, PARTS, run_in};

/// Mean-square errors allowed, in roundings of one number.
const ROUNDINGS: f64 = 4.0;

fn half_of_the_spacing(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 2f64.powi(-9),
        _ => 2f64.powi(-12),
    }
}

fn layer() -> DefaultMoe<Flex> {
    let options = DefaultOptions::new().with_rule(UpdateRule::Mean);
    DefaultMoeConfig::new(MoeConfig::new(64, 48, 8, 2)).with_options(options).init(&Default::default())
}

/// Mean over its tokens of what each expert says, in burn's own ops: outputs in `dtype`, their sum in f32.
fn plain(layer: &DefaultMoe<Flex>, tokens: Tensor<Flex, 2>, routing: &Routing<Flex>) -> Vec<f64> {
    let mean = |expert: i64| {
        let chosen = routing.experts.clone().equal_elem(expert).float().sum_dim(1);
        let only = Tensor::<Flex, 2, Int>::full([tokens.dims()[0], 1], expert, &tokens.device());
        let one = Routing::new(routing.logits.clone(), routing.probs.clone(), chosen.clone().ones_like(), only);
        let outputs = dispatch::dense(tokens.clone(), &layer.moe.experts, &one).cast(DType::F32);
        host((outputs * chosen.clone()).sum_dim(0) / chosen.sum_dim(0))
    };
    (0..8).flat_map(mean).collect()
}

#[test]
fn in_bf16_the_vectors_are_f32_and_lose_no_more_than_twice_what_plain_ops_lose() {
    let mut layer = layer();
    let tokens = Tensor::<Flex, 2>::random([96, 64], Distribution::Normal(0.0, 1.0), &Default::default());
    // The same tokens in both precisions, so the same routing.
    let rounded = tokens.cast(DType::BF16);
    let routing = layer.moe.router.forward(rounded.clone());
    let out = layer.forward(rounded.clone());
    assert_eq!(out.output.dtype(), DType::BF16);
    let update = out.update.expect("a training pass");
    let exact = plain(&layer, rounded.clone().cast(DType::F32), &routing);
    let (ours, plain) = (host(update.means()), plain(&layer, rounded, &routing));
    assert_like_plain_ops("means", "bf16", [&ours, &plain], &exact);
    layer.absorb(&update);
    assert_eq!((update.sums.dtype(), layer.vectors.values.dtype()), (DType::F32, DType::F32));
}

#[test]
fn in_half_precision_the_layer_is_off_by_a_few_roundings() {
    let (device, case) = (Default::default(), CASES.iter().find(|case| case.name == "bench A, small"));
    let numbers = Layer::random(case.expect("in the catalogue"), UpdateRule::Weighted);
    for (dtype, called) in HALF {
        let tokens = rounded::<Flex>(numbers.tokens.len(), 61, dtype, &device);
        let numbers = Layer { tokens, ..numbers.clone() };
        let exact = numbers.expected();
        let exact = [exact.output, exact.vectors, exact.tokens, exact.router, exact.w_in, exact.w_out];
        for ((found, exact), part) in
            run_in::<Flex>(&numbers, Form::Full, Some(dtype), &device).iter().zip(&exact).zip(PARTS)
        {
            note_error(part, called, found, exact);
            let error = mean_square_error(found, exact) / half_of_the_spacing(dtype);
            assert!(error > 0.0 && error <= ROUNDINGS, "{called}, {part}: {error} roundings");
        }
    }
}

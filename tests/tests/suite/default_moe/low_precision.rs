//! bf16 activations on flex: the vectors stay f32, and their error is at most twice that of plain ops in bf16.

use burn::tensor::{DType, Distribution, Int, Tensor};
use default_moe::{DefaultMoe, DefaultMoeConfig, DefaultOptions, UpdateRule};
use moe_layers::{MoeConfig, Routing, dispatch};
use moe_tests::{Flex, host};

/// Our error over that of plain ops, both against f32.
const FACTOR: f64 = 2.0;

fn layer() -> DefaultMoe<Flex> {
    let options = DefaultOptions::new().with_rule(UpdateRule::Mean);
    DefaultMoeConfig::new(MoeConfig::new(64, 48, 8, 2)).with_options(options).init(&Default::default())
}

fn error(found: &[f64], exact: &[f64]) -> f64 {
    let squares = found.iter().zip(exact).map(|(x, y)| (x - y).powi(2)).sum::<f64>();
    (squares / exact.iter().map(|y| y * y).sum::<f64>()).sqrt()
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
    let (ours, plain) = (error(&host(update.means()), &exact), error(&plain(&layer, rounded, &routing), &exact));
    assert!(plain > 1e-5, "nothing was rounded");
    assert!(ours <= FACTOR * plain, "error {ours:e}, plain {plain:e}");
    layer.absorb(&update);
    assert_eq!((update.sums.dtype(), layer.vectors.values.dtype()), (DType::F32, DType::F32));
}

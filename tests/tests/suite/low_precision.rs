//! bf16 and f16 on flex: an error at most twice that of every expert in burn's own ops, in the same precision.

use burn::tensor::{DType, Distribution, Tensor};
use moe_layers::{MoeConfig, dispatch};
use moe_tests::{Flex, host};

/// Errors compared with `dispatch::dense`, both against f32.
const FACTOR: f64 = 2.0;

fn error(found: &[f64], exact: &[f64]) -> f64 {
    let squares = found.iter().zip(exact).map(|(x, y)| (x - y).powi(2)).sum::<f64>();
    (squares / exact.iter().map(|y| y * y).sum::<f64>()).sqrt()
}

#[test]
fn low_precision_loses_no_more_than_twice_what_plain_ops_lose() {
    let device = Default::default();
    let moe = MoeConfig::new(64, 48, 8, 2).init::<Flex>(&device);
    let tokens = Tensor::<Flex, 2>::random([96, 64], Distribution::Normal(0.0, 1.0), &device);
    let routing = moe.router.forward(tokens.clone());
    let run = |dtype: DType, path: fn(_, &_, &_) -> Tensor<Flex, 2>| {
        let input = tokens.clone().require_grad();
        let output = path(input.clone().cast(dtype), &moe.experts, &routing);
        assert_eq!(output.dtype(), dtype);
        let grads = output.clone().cast(DType::F32).powi_scalar(2).sum().backward();
        let w_in = moe.experts.w_in.val().grad(&grads).expect("tracked");
        [host(output.cast(DType::F32)), host(input.grad(&grads).expect("tracked")), host(w_in)]
    };
    let exact = run(DType::F32, dispatch::dense);
    for dtype in [DType::BF16, DType::F16] {
        let (ours, plain) = (run(dtype, dispatch::grouped), run(dtype, dispatch::dense));
        for (what, i) in [("output", 0), ("gradient of the tokens", 1), ("gradient of w_in", 2)] {
            let (ours, plain) = (error(&ours[i], &exact[i]), error(&plain[i], &exact[i]));
            assert!(plain > 1e-5, "{dtype:?}: nothing was rounded");
            assert!(ours <= FACTOR * plain, "{dtype:?}, {what}: error {ours:e}, plain {plain:e}");
        }
    }
}

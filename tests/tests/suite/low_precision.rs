//! bf16 and f16, where a backend has them: sums in f32, and on flex an error at most twice that of every expert in burn's
//! own ops in the same precision.

use burn::tensor::{DType, Int, Tensor};
use moe_kernels::{AutodiffMoeBackend, ExpertPlan, grouped_matmul, grouped_matmul_transposed, grouped_outer};
use moe_tests::{host, on_every_backend_and_unfused};

on_every_backend_and_unfused!(grouped_products_sum_in_f32);

/// As many ones as both types can count, and far more than either could count up to one by one: 256 in bf16, 2048 in f16.
const ONES: usize = 4096;

fn grouped_products_sum_in_f32<B: AutodiffMoeBackend>(device: &B::Device) {
    for dtype in [DType::BF16, DType::F16].into_iter().filter(|&dtype| B::supports_dtype(device, dtype)) {
        let matrix = |shape: [usize; 2]| Tensor::<B, 2>::ones(shape, (device, dtype));
        let stack = |shape: [usize; 3]| Tensor::<B, 3>::ones(shape, (device, dtype));
        let plan = |tokens: usize| ExpertPlan::new(Tensor::<B, 2, Int>::zeros([tokens, 1], device), 2);

        let product = grouped_matmul(matrix([3, ONES]), stack([2, ONES, 5]), &plan(3));
        assert_eq!(product.dtype(), dtype);
        assert_eq!(host(product), [ONES as f64; 15], "{dtype:?}");
        let transposed = grouped_matmul_transposed(matrix([3, ONES]), stack([2, 5, ONES]), &plan(3));
        assert_eq!(host(transposed), [ONES as f64; 15], "{dtype:?}");
        let outer = host(grouped_outer(matrix([ONES, 3]), matrix([ONES, 5]), &plan(ONES)));
        assert_eq!(outer, [[ONES as f64; 15], [0.0; 15]].concat(), "{dtype:?}");
    }
}

#[cfg(feature = "flex")]
mod beside_plain_ops {
    use burn::tensor::backend::Backend;
    use moe_layers::{Activation, dispatch};
    use moe_tests::{CASES, Flex, HALF, assert_like_plain_ops};

    use crate::layers::{by_loops, values_and_gradients};

    /// Output and the gradients of tokens, gates, weights and biases.
    #[test]
    fn low_precision_loses_no_more_than_twice_what_plain_ops_lose() {
        let (device, case) = (Default::default(), CASES.iter().find(|case| case.name == "bench A, small"));
        let case = case.expect("in the catalogue");
        assert!(HALF.iter().all(|&(dtype, _)| Flex::supports_dtype(&device, dtype)));
        for activation in [Activation::SwiGlu, Activation::Gelu, Activation::Relu] {
            // Under ReLU a pre-activation that is rounded to the other side of 0 takes a whole slope with it.
            let kind = if activation == Activation::Relu { " with ReLU" } else { "" };
            for bias in [false, true] {
                let run = |dtype, path| values_and_gradients::<Flex>(case, activation, bias, path, dtype, &device);
                let exact = by_loops(case, activation, bias);
                for (dtype, called) in HALF {
                    let (ours, plain) = (run(dtype, dispatch::grouped), run(dtype, dispatch::dense));
                    for (((name, exact), (_, ours)), (_, plain)) in exact.iter().zip(&ours).zip(&plain) {
                        let what = format!("{activation:?}, bias {bias}, {name}{kind}");
                        assert_like_plain_ops(&what, called, [ours, plain], exact);
                    }
                }
            }
        }
    }
}

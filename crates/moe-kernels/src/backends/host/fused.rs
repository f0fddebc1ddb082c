//! The ops around the experts, for the body of a CPU backend's `impl MoeBackend`.

/// Methods that hand over to the functions beside this file.
macro_rules! fused_ops {
    () => {
        fn moe_linear(x: Self::FloatTensorPrimitive, weight: Self::FloatTensorPrimitive) -> Self::FloatTensorPrimitive {
            $crate::backends::host::linear::linear::<Self>(x, weight)
        }

        fn moe_linear_onto(
            base: burn::tensor::ops::FloatTensor<Self>,
            x: burn::tensor::ops::FloatTensor<Self>,
            weight: burn::tensor::ops::FloatTensor<Self>,
        ) -> burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::linear::linear_onto::<Self>(base, x, weight)
        }

        fn moe_linear_backward_x(
            grad: Self::FloatTensorPrimitive,
            weight: Self::FloatTensorPrimitive,
        ) -> Self::FloatTensorPrimitive {
            $crate::backends::host::linear::backward_x::<Self>(grad, weight)
        }

        fn moe_linear_backward_weight(
            x: Self::FloatTensorPrimitive,
            grad: Self::FloatTensorPrimitive,
        ) -> Self::FloatTensorPrimitive {
            $crate::backends::host::linear::backward_weight::<Self>(x, grad)
        }

        fn moe_rms_norm(
            x: Self::FloatTensorPrimitive,
            gamma: Self::FloatTensorPrimitive,
            epsilon: f64,
        ) -> Self::FloatTensorPrimitive {
            $crate::backends::host::norm::norm::<Self>(x, gamma, None, epsilon)
        }

        fn moe_rms_norm_backward(
            x: Self::FloatTensorPrimitive,
            gamma: Self::FloatTensorPrimitive,
            epsilon: f64,
            grad: Self::FloatTensorPrimitive,
        ) -> [Self::FloatTensorPrimitive; 2] {
            let [x, gamma, _] = $crate::backends::host::norm::norm_backward::<Self>(x, gamma, false, epsilon, grad);
            [x, gamma]
        }

        fn moe_layer_norm(
            x: Self::FloatTensorPrimitive,
            gamma: Self::FloatTensorPrimitive,
            beta: Self::FloatTensorPrimitive,
            epsilon: f64,
        ) -> Self::FloatTensorPrimitive {
            $crate::backends::host::norm::norm::<Self>(x, gamma, Some(beta), epsilon)
        }

        fn moe_layer_norm_backward(
            x: Self::FloatTensorPrimitive,
            gamma: Self::FloatTensorPrimitive,
            epsilon: f64,
            grad: Self::FloatTensorPrimitive,
        ) -> [Self::FloatTensorPrimitive; 3] {
            $crate::backends::host::norm::norm_backward::<Self>(x, gamma, true, epsilon, grad)
        }

        fn moe_softmax(x: Self::FloatTensorPrimitive) -> Self::FloatTensorPrimitive {
            $crate::backends::host::softmax::softmax::<Self>(x)
        }

        fn moe_softmax_backward(
            output: Self::FloatTensorPrimitive,
            grad: Self::FloatTensorPrimitive,
        ) -> Self::FloatTensorPrimitive {
            $crate::backends::host::softmax::softmax_backward::<Self>(output, grad)
        }

        fn moe_log_sum_exp(x: Self::FloatTensorPrimitive) -> Self::FloatTensorPrimitive {
            $crate::backends::host::softmax::log_sum_exp::<Self>(x)
        }

        fn moe_log_sum_exp_backward(
            x: Self::FloatTensorPrimitive,
            grad: Self::FloatTensorPrimitive,
        ) -> Self::FloatTensorPrimitive {
            $crate::backends::host::softmax::log_sum_exp_backward::<Self>(x, grad)
        }

        fn moe_cross_entropy(
            logits: Self::FloatTensorPrimitive,
            targets: Self::IntTensorPrimitive,
        ) -> Self::FloatTensorPrimitive {
            $crate::backends::host::softmax::cross_entropy::<Self>(logits, targets)
        }

        fn moe_cross_entropy_backward(
            logits: Self::FloatTensorPrimitive,
            targets: Self::IntTensorPrimitive,
            grad: Self::FloatTensorPrimitive,
        ) -> Self::FloatTensorPrimitive {
            $crate::backends::host::softmax::cross_entropy_backward::<Self>(logits, targets, grad)
        }

        fn moe_rotary(
            x: Self::FloatTensorPrimitive,
            cos: Self::FloatTensorPrimitive,
            sin: Self::FloatTensorPrimitive,
            inverse: bool,
        ) -> Self::FloatTensorPrimitive {
            $crate::backends::host::attention::rotary::<Self>(x, cos, sin, inverse)
        }

        fn moe_causal_attention(
            query: Self::FloatTensorPrimitive,
            key: Self::FloatTensorPrimitive,
            value: Self::FloatTensorPrimitive,
            scale: f64,
        ) -> [Self::FloatTensorPrimitive; 2] {
            $crate::backends::host::attention::causal_attention::<Self>([query, key, value], scale)
        }

        fn moe_causal_attention_backward(
            inputs: [Self::FloatTensorPrimitive; 3],
            outputs: [Self::FloatTensorPrimitive; 2],
            scale: f64,
            grad: Self::FloatTensorPrimitive,
        ) -> [Self::FloatTensorPrimitive; 3] {
            $crate::backends::host::attention::causal_attention_backward::<Self>(inputs, outputs, scale, grad)
        }

        fn moe_adamw_step(
            param: Self::FloatTensorPrimitive,
            grad: Self::FloatTensorPrimitive,
            moments: [Self::FloatTensorPrimitive; 2],
            step: &$crate::AdamWStep,
            scale: Option<$crate::RunScale<Self::FloatTensorPrimitive>>,
        ) -> [Self::FloatTensorPrimitive; 3] {
            $crate::backends::host::optim::adamw_step::<Self>(param, grad, moments, step, scale)
        }

        fn moe_sum_of_squares(x: Self::FloatTensorPrimitive) -> Self::FloatTensorPrimitive {
            $crate::backends::host::optim::sum_of_squares::<Self>(x)
        }

        fn moe_with_threads_awake<R>(work: impl FnOnce() -> R) -> R {
            $crate::cpu::with_threads_awake(work)
        }
    };
}

pub(in crate::backends) use fused_ops;

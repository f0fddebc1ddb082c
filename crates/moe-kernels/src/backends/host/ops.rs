//! The ops of [`MoeBackend`](crate::MoeBackend) that the CPU backends override, for both.

/// The methods, to be called inside an `impl MoeBackend for ..` of a [`HostBackend`](super::HostBackend).
macro_rules! host_ops {
    () => {
        fn moe_top_k_indices(
            scores: burn::tensor::ops::FloatTensor<Self>,
            k: usize,
        ) -> burn::tensor::ops::IntTensor<Self> {
            $crate::backends::host::top_k::indices::<Self>(scores, k)
        }

        fn moe_top_k_backward(
            grad: burn::tensor::ops::FloatTensor<Self>,
            indices: burn::tensor::ops::IntTensor<Self>,
            num_experts: usize,
        ) -> burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::top_k::backward::<Self>(grad, indices, num_experts)
        }

        fn moe_unchosen(
            scores: burn::tensor::ops::FloatTensor<Self>,
            indices: burn::tensor::ops::IntTensor<Self>,
        ) -> burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::top_k::unchosen::<Self>(scores, indices)
        }

        fn moe_dispatch(
            tokens: burn::tensor::ops::FloatTensor<Self>,
            plan: &$crate::ExpertPlan<Self>,
        ) -> burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::rows::dispatch(tokens, plan)
        }

        fn moe_dispatch_backward(
            grad: burn::tensor::ops::FloatTensor<Self>,
            plan: &$crate::ExpertPlan<Self>,
        ) -> burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::rows::dispatch_backward(grad, plan)
        }

        fn moe_combine(
            rows: burn::tensor::ops::FloatTensor<Self>,
            gates: burn::tensor::ops::FloatTensor<Self>,
            plan: &$crate::ExpertPlan<Self>,
        ) -> burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::rows::combine(rows, gates, plan)
        }

        fn moe_combine_backward_rows(
            grad: burn::tensor::ops::FloatTensor<Self>,
            gates: burn::tensor::ops::FloatTensor<Self>,
            plan: &$crate::ExpertPlan<Self>,
        ) -> burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::rows::combine_backward_rows(grad, gates, plan)
        }

        fn moe_combine_backward_gates(
            grad: burn::tensor::ops::FloatTensor<Self>,
            rows: burn::tensor::ops::FloatTensor<Self>,
            plan: &$crate::ExpertPlan<Self>,
        ) -> burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::rows::combine_backward_gates(grad, rows, plan)
        }

        fn moe_grouped_matmul(
            rows: burn::tensor::ops::FloatTensor<Self>,
            weight: burn::tensor::ops::FloatTensor<Self>,
            plan: &$crate::ExpertPlan<Self>,
        ) -> burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::grouped::matmul(rows, weight, plan, false)
        }

        fn moe_grouped_matmul_transposed(
            rows: burn::tensor::ops::FloatTensor<Self>,
            weight: burn::tensor::ops::FloatTensor<Self>,
            plan: &$crate::ExpertPlan<Self>,
        ) -> burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::grouped::matmul(rows, weight, plan, true)
        }

        fn moe_grouped_outer(
            lhs: burn::tensor::ops::FloatTensor<Self>,
            rhs: burn::tensor::ops::FloatTensor<Self>,
            plan: &$crate::ExpertPlan<Self>,
        ) -> burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::grouped::outer(lhs, rhs, plan)
        }

        fn moe_expert_ffn(
            tokens: burn::tensor::ops::FloatTensor<Self>,
            gates: burn::tensor::ops::FloatTensor<Self>,
            weights: $crate::FfnWeights<Self>,
            plan: &$crate::ExpertPlan<Self>,
        ) -> burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::expert_ffn::forward(tokens, gates, weights, plan, false).0
        }

        fn moe_expert_ffn_saving(
            tokens: burn::tensor::ops::FloatTensor<Self>,
            gates: burn::tensor::ops::FloatTensor<Self>,
            weights: $crate::FfnWeights<Self>,
            plan: &$crate::ExpertPlan<Self>,
        ) -> (burn::tensor::ops::FloatTensor<Self>, burn::tensor::ops::FloatTensor<Self>) {
            let (output, pre_activation) =
                $crate::backends::host::expert_ffn::forward(tokens, gates, weights, plan, true);
            (output, pre_activation.expect("it was asked for"))
        }

        fn moe_expert_ffn_summing(
            tokens: burn::tensor::ops::FloatTensor<Self>,
            gates: burn::tensor::ops::FloatTensor<Self>,
            shares: burn::tensor::ops::FloatTensor<Self>,
            weights: $crate::FfnWeights<Self>,
            plan: &$crate::ExpertPlan<Self>,
        ) -> $crate::FfnSummed<Self> {
            $crate::backends::host::expert_ffn::forward_summing(tokens, gates, shares, weights, plan)
        }

        fn moe_expert_ffn_backward(
            saved: $crate::FfnSaved<Self>,
            grad: burn::tensor::ops::FloatTensor<Self>,
            needs: $crate::FfnNeeds,
        ) -> $crate::FfnGrads<Self> {
            $crate::backends::host::expert_ffn::backward(saved, grad, needs)
        }

        fn moe_swiglu(input: burn::tensor::ops::FloatTensor<Self>) -> burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::activation::swiglu::<Self>(input)
        }

        fn moe_swiglu_backward(
            input: burn::tensor::ops::FloatTensor<Self>,
            grad: burn::tensor::ops::FloatTensor<Self>,
        ) -> burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::activation::swiglu_backward::<Self>(input, grad)
        }

        fn moe_gelu(input: burn::tensor::ops::FloatTensor<Self>) -> burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::activation::gelu::<Self>(input)
        }

        fn moe_gelu_backward(
            input: burn::tensor::ops::FloatTensor<Self>,
            grad: burn::tensor::ops::FloatTensor<Self>,
        ) -> burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::activation::gelu_backward::<Self>(input, grad)
        }
    };
}

pub(in crate::backends) use host_ops;

//! Which row of the sorted layout belongs to which token, slot and expert.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};

use crate::MoeBackend;
use crate::host_plan::{HostPlan, check_slots};
use crate::host_reads::note_host_read;

/// The slots `(t, k)` of a routing decision, sorted by expert.
///
/// A slot is numbered `t * K + k`; a row is a position in the sorted order. Both index tensors are permutations of
/// `0..R`, inverse to each other, so that every gather here has a gather as its gradient. Nothing is padded.
///
/// In a [partial](Self::partial) plan some slots have no expert. Their rows come last, after those of the experts: a grouped
/// product makes them zero, and [`expert_ffn`](crate::expert_ffn) does no work for them.
#[derive(Debug, Clone)]
pub struct ExpertPlan<B: Backend> {
    pub(crate) num_tokens: usize,
    pub(crate) top_k: usize,
    pub(crate) num_experts: usize,
    pub(crate) partial: bool,
    pub(crate) offsets: Tensor<B, 1, Int>,
    pub(crate) slot_of_row: Tensor<B, 1, Int>,
    pub(crate) row_of_slot: Tensor<B, 1, Int>,
    pub(crate) token_of_row: Tensor<B, 1, Int>,
    /// The same in memory of the host, when the sort was done there.
    pub(crate) host: Option<Arc<HostPlan>>,
}

fn check_experts(num_experts: usize) {
    assert!(num_experts >= 1, "ExpertPlan: num_experts must be at least 1");
}

impl<B: MoeBackend> ExpertPlan<B> {
    /// Sorts the slots of `experts` by expert; within an expert by token, then by `k`.
    ///
    /// # Shapes
    ///
    /// - experts: `[T, K]`, values in `0..num_experts`
    ///
    /// # Panics
    ///
    /// Panics when `K` or `num_experts` is 0, or there are more than `2^31 - 1` slots. Panics when an index is not below
    /// `num_experts`, on backends that sort on the host.
    pub fn new(experts: Tensor<B, 2, Int>, num_experts: usize) -> Self {
        let [num_tokens, top_k] = experts.dims();
        assert!(top_k >= 1, "ExpertPlan: experts [T, K] must have K of at least 1, got {:?}", experts.dims());
        check_experts(num_experts);
        check_slots(num_tokens.saturating_mul(top_k));
        B::moe_plan(experts.into_primitive(), num_experts)
    }

    /// [`new`](Self::new) for slots of which some are served by nobody: dropped by a capacity, or filled up where tokens have
    /// different numbers of experts.
    ///
    /// The output of such a slot is zero, and so are the gradients of its gate and of whatever it would have read.
    ///
    /// # Shapes
    ///
    /// - experts: `[T, K]`, values in `0..=num_experts`; `num_experts` is nobody
    ///
    /// # Panics
    ///
    /// As [`new`](Self::new), but with `num_experts` as an index.
    pub fn partial(experts: Tensor<B, 2, Int>, num_experts: usize) -> Self {
        check_experts(num_experts);
        let plan = Self::new(experts, num_experts + 1);
        Self {
            num_experts,
            partial: true,
            offsets: plan.offsets.slice(0..num_experts + 1),
            host: plan.host.map(|host| Arc::new(host.without_last_expert())),
            ..plan
        }
    }

    /// Slots per expert, `[E]`: exact integers that sum to `T * K`, or in a [partial](Self::partial) plan to the number of slots
    /// that are served.
    pub fn counts(&self) -> Tensor<B, 1, Int> {
        let last = self.num_experts + 1;
        self.offsets.clone().slice(1..last) - self.offsets.clone().slice(0..self.num_experts)
    }
}

impl<B: Backend> ExpertPlan<B> {
    /// Number of tokens, `T`.
    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// Experts per token, `K`.
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// Number of experts, `E`.
    pub fn num_experts(&self) -> usize {
        self.num_experts
    }

    /// Number of rows, `R = T * K`.
    pub fn num_rows(&self) -> usize {
        self.num_tokens * self.top_k
    }

    /// Whether some slots may be served by nobody.
    pub fn is_partial(&self) -> bool {
        self.partial
    }

    /// First row of each expert and, last, the number of rows that an expert serves, which is `R` unless the plan is
    /// [partial](Self::partial): `[E + 1]`.
    pub fn offsets(&self) -> Tensor<B, 1, Int> {
        self.offsets.clone()
    }

    /// Slot `t * K + k` of each row: `[R]`.
    pub fn slot_of_row(&self) -> Tensor<B, 1, Int> {
        self.slot_of_row.clone()
    }

    /// Row of each slot, the inverse of [`slot_of_row`](Self::slot_of_row): `[R]`.
    pub fn row_of_slot(&self) -> Tensor<B, 1, Int> {
        self.row_of_slot.clone()
    }

    /// The same order with every slot a token of its own, of one expert: for values of slots, as gates are, instead of tokens.
    pub fn per_slot(&self) -> Self {
        Self {
            num_tokens: self.num_rows(),
            top_k: 1,
            token_of_row: self.slot_of_row.clone(),
            host: self.host.as_ref().map(|host| Arc::new(host.per_slot())),
            ..self.clone()
        }
    }

    /// The plan in memory of the host; read from the device when it was made there.
    pub(crate) fn on_host(&self) -> Arc<HostPlan> {
        let read =
            |indices: &Tensor<B, 1, Int>| indices.to_data().iter::<i64>().map(|i| i as usize).collect::<Vec<_>>();
        let from_device = || {
            note_host_read();
            Arc::new(HostPlan::from_sorted(read(&self.offsets), read(&self.slot_of_row), self.top_k))
        };
        self.host.clone().unwrap_or_else(from_device)
    }

    /// The row range of every expert, in order.
    pub(crate) fn host_ranges(&self) -> Vec<Range<usize>> {
        let plan = self.on_host();
        (0..plan.num_experts()).map(|expert| plan.rows_of(expert)).collect()
    }

    /// The same plan for a backend with the same integer tensors (`Autodiff<B>` and `B`).
    pub(crate) fn cast<C>(&self) -> ExpertPlan<C>
    where
        C: Backend<IntTensorPrimitive = B::IntTensorPrimitive>,
    {
        let convert = |t: &Tensor<B, 1, Int>| Tensor::from_primitive(t.clone().into_primitive());
        ExpertPlan {
            num_tokens: self.num_tokens,
            top_k: self.top_k,
            num_experts: self.num_experts,
            partial: self.partial,
            offsets: convert(&self.offsets),
            slot_of_row: convert(&self.slot_of_row),
            row_of_slot: convert(&self.row_of_slot),
            token_of_row: convert(&self.token_of_row),
            host: self.host.clone(),
        }
    }
}

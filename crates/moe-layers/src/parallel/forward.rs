//! Tokens to the ranks that own their experts, and back.

use std::ops::Range;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};
use moe_kernels::{ExpertPlan, MoeBackend, combine_rows, dispatch_rows, expert_ffn};

use super::{AllToAll, ExpertPlacement, Pairs, ShardedExperts};
use crate::{Experts, Routing};

/// What a rank has: tokens `[T, D]` on its device, and the decision about them.
pub type Batch<'a, B> = (Tensor<B, 2>, &'a Routing<B>);

impl<B: MoeBackend> ShardedExperts<B> {
    /// [`forward`](Self::forward) where all tokens are on the first rank: the others have experts, but no tokens of their own.
    ///
    /// # Shapes
    ///
    /// - tokens: `[T, D]`, on the device of rank 0
    /// - output: `[T, D]`, dtype and device of the tokens
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn forward_one(&self, tokens: Tensor<B, 2>, routing: &Routing<B>, exchange: &impl AllToAll<B>) -> Tensor<B, 2> {
        let (width, dtype) = (tokens.dims()[1], tokens.dtype());
        let no_tokens = |experts: &Experts<B>| {
            let device = experts.w_in.device();
            let routing = Routing::empty(routing.num_experts(), routing.top_k(), routing.gates.dtype(), &device);
            (empty(width, dtype, &device), routing)
        };
        let others: Vec<_> = self.shards.iter().skip(1).map(no_tokens).collect();
        let others = others.iter().map(|(tokens, routing)| (tokens.clone(), routing));
        self.forward([(tokens, routing)].into_iter().chain(others).collect(), exchange).swap_remove(0)
    }

    /// Each expert runs, on the rank that owns it, on the tokens of all ranks that chose it:
    /// `y_t = sum_k gate_tk * expert_tk(x_t)`, as [`dispatch::grouped`](crate::dispatch::grouped()) does on one device.
    ///
    /// Rows go to the owners together with their gates, so that the experts' op keeps for the backward pass what it keeps on one device:
    /// the tokens that came and their pre-activations, but no outputs. Numbers of rows are read on the host, once a rank.
    ///
    /// # Shapes
    ///
    /// - batches: for every local rank tokens `[T, D]`, with a `T` of its own
    /// - output: for every local rank `[T, D]`, dtype and device of its tokens
    ///
    /// # Panics
    ///
    /// Panics when `exchange` and the experts are of different ranks, there is not one batch for each local rank, tokens are on another
    /// device than the experts of their rank, or tokens, experts and routing disagree on `T`, `D` or `E`.
    pub fn forward(&self, batches: Vec<Batch<'_, B>>, exchange: &impl AllToAll<B>) -> Vec<Tensor<B, 2>> {
        self.check(&batches, exchange);
        let leaving: Vec<_> = batches.iter().map(|batch| Leaving::new(batch, self.placement())).collect();
        let counts = exchange.exchange_counts(leaving.iter().map(|leaving| leaving.counts.clone()).collect());
        let (sent, received) =
            (leaving.iter().map(Leaving::sizes).collect(), counts.iter().map(|from| sizes(from)).collect());
        let send = |of: fn(&Leaving<B>) -> &Tensor<B, 2>| {
            let parts = leaving.iter().map(|leaving| parts(of(leaving), &leaving.sizes())).collect();
            exchange.exchange_rows(parts, &received)
        };
        let (rows, gates) = (send(|leaving| &leaving.rows), send(|leaving| &leaving.gates));
        let serve = |(i, (rows, gates)): (usize, (Vec<_>, Vec<_>))| {
            serve(&self.shards[i], rows, gates, leaving[i].kept(), &counts[i])
        };
        let (outputs, kept): (Vec<_>, Vec<_>) = rows.into_iter().zip(gates).enumerate().map(serve).unzip();
        let returned = exchange.exchange_rows(outputs, &sent);
        self.combine(batches, returned, kept)
    }

    fn check(&self, batches: &[Batch<'_, B>], exchange: &impl AllToAll<B>) {
        let (placed, ranks) = (self.placement().num_ranks(), exchange.num_ranks());
        assert_eq!(placed, ranks, "ShardedExperts: experts of {placed} ranks, but {ranks} exchange rows");
        assert_eq!(self.local_ranks(), exchange.local_ranks(), "ShardedExperts: the exchange is of other local ranks");
        let (shards, given) = (self.shards.len(), batches.len());
        assert_eq!(shards, given, "ShardedExperts: one batch for each of {shards} ranks, got {given}");
        for ((tokens, routing), shard) in batches.iter().zip(&self.shards) {
            let [num_tokens, width] = tokens.dims();
            assert_eq!(num_tokens, routing.num_tokens(), "ShardedExperts: tokens [T, D] and routing disagree on T");
            assert_eq!(width, shard.d_model(), "ShardedExperts: tokens [T, D] and experts disagree on D");
            let experts = self.placement().num_experts();
            assert_eq!(experts, routing.num_experts(), "ShardedExperts: experts and routing disagree on E");
            assert_eq!(tokens.device(), shard.w_in.device(), "ShardedExperts: tokens and experts of a rank are apart");
        }
    }

    /// The rows of each token, which came back in the order in which they left, summed.
    ///
    /// `kept` of a rank has no token to go to where the rank has none; it then goes along with the first rank that has some, so that
    /// experts that served nobody get a gradient of zero, as on one device.
    fn combine(
        &self,
        batches: Vec<Batch<'_, B>>,
        returned: Pairs<Tensor<B, 2>>,
        kept: Vec<Tensor<B, 2>>,
    ) -> Vec<Tensor<B, 2>> {
        let has_tokens: Vec<bool> = batches.iter().map(|(tokens, _)| tokens.dims()[0] > 0).collect();
        let home = |rank: usize| if has_tokens[rank] { Some(rank) } else { has_tokens.iter().position(|&has| has) };
        let mut rows = returned;
        for (rank, kept) in kept.into_iter().enumerate() {
            if let Some(home) = home(rank) {
                rows[home].push(kept.to_device(&batches[home].0.device()));
            }
        }
        let combine = |((tokens, routing), rows): (Batch<'_, B>, Vec<Tensor<B, 2>>)| match tokens.dims()[0] {
            0 => self.pass_nothing(tokens, &routing.gates),
            _ => sum_rows(rows, routing, tokens.dtype()),
        };
        batches.into_iter().zip(rows).map(combine).collect()
    }

    /// No tokens through the experts that are here: nothing is computed, and all of them get a gradient of zero.
    fn pass_nothing(&self, tokens: Tensor<B, 2>, gates: &Tensor<B, 2>) -> Tensor<B, 2> {
        let (home, dtype, top_k) = (tokens.device(), tokens.dtype(), gates.dims()[1]);
        let pass = |tokens: Tensor<B, 2>, experts: &Experts<B>| {
            let device = experts.w_in.device();
            let plan = Routing::empty(experts.num_experts(), top_k, dtype, &device).plan;
            let gates = gates.clone().cast(dtype).to_device(&device);
            expert_ffn(tokens.to_device(&device), gates, experts.weights(dtype), &plan)
        };
        self.shards.iter().fold(tokens, pass).to_device(&home)
    }
}

/// The rows of a rank, sorted by expert and so by the rank they go to; those that nobody serves come last and stay.
struct Leaving<B: Backend> {
    /// `[R, D]`.
    rows: Tensor<B, 2>,
    /// `[R, 1]`.
    gates: Tensor<B, 2>,
    /// For each rank and expert of it.
    counts: Vec<Vec<usize>>,
}

impl<B: MoeBackend> Leaving<B> {
    fn new((tokens, routing): &Batch<'_, B>, placement: &ExpertPlacement) -> Self {
        let plan = &routing.plan;
        let offsets: Vec<usize> = plan.offsets().into_data().iter::<i64>().map(|offset| offset as usize).collect();
        let count = |expert: usize| offsets[expert + 1] - offsets[expert];
        let counts = (0..placement.num_ranks()).map(|rank| placement.experts_of(rank).map(count).collect()).collect();
        let gates = routing.gates.clone().cast(tokens.dtype()).reshape([plan.num_rows(), 1]);
        Self { rows: dispatch_rows(tokens.clone(), plan), gates: dispatch_rows(gates, &plan.per_slot()), counts }
    }

    /// Rows for each rank.
    fn sizes(&self) -> Vec<usize> {
        sizes(&self.counts)
    }

    /// Rows and gates that stay: those that nobody serves, and a row of zeros, so that there is one.
    fn kept(&self) -> [Tensor<B, 2>; 2] {
        let served = self.sizes().iter().sum();
        [&self.rows, &self.gates].map(|all| {
            let zeros = TensorData::zeros::<f32, _>([1, all.dims()[1]]);
            let zeros = Tensor::from_data(zeros, (&all.device(), all.dtype()));
            together(vec![part(all, served..all.dims()[0]), zeros])
        })
    }
}

fn sizes(counts: &[Vec<usize>]) -> Vec<usize> {
    counts.iter().map(|counts| counts.iter().sum()).collect()
}

/// The first rows of `all` in parts of these sizes.
fn parts<B: Backend>(all: &Tensor<B, 2>, sizes: &[usize]) -> Vec<Tensor<B, 2>> {
    let mut end = 0;
    let next = |&size: &usize| {
        end += size;
        part(all, end - size..end)
    };
    sizes.iter().map(next).collect()
}

fn part<B: Backend>(all: &Tensor<B, 2>, range: Range<usize>) -> Tensor<B, 2> {
    match range.len() {
        0 => empty(all.dims()[1], all.dtype(), &all.device()),
        count if count == all.dims()[0] => all.clone(),
        _ => all.clone().slice(range),
    }
}

/// No rows. From data, as Fusion takes no empty tensor that is to be filled.
fn empty<B: Backend>(width: usize, dtype: DType, device: &B::Device) -> Tensor<B, 2> {
    Tensor::from_data(TensorData::new(Vec::<f32>::new(), [0, width]), (device, dtype))
}

fn together<B: Backend>(mut parts: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
    parts.retain(|part| part.dims()[0] > 0);
    if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(parts, 0) }
}

/// The outputs of a rank's experts, times their gates: for each rank in the order its rows came, and for those `kept`.
///
/// `counts[s]` are the rows of rank `s` for each expert.
fn serve<B: MoeBackend>(
    experts: &Experts<B>,
    mut rows: Vec<Tensor<B, 2>>,
    mut gates: Vec<Tensor<B, 2>>,
    [kept_rows, kept_gates]: [Tensor<B, 2>; 2],
    counts: &[Vec<usize>],
) -> (Vec<Tensor<B, 2>>, Tensor<B, 2>) {
    let (arrived, num_kept) = (sizes(counts), kept_rows.dims()[0]);
    rows.push(kept_rows);
    gates.push(kept_gates);
    let (rows, gates) = (together(rows), together(gates));
    let plan = owners_plan(counts, num_kept, experts.num_experts(), &rows.device());
    let dtype = rows.dtype();
    let outputs = expert_ffn(rows, gates, experts.weights(dtype), &plan);
    let mut outputs = parts(&outputs, &[arrived, vec![num_kept]].concat());
    let kept = outputs.pop().expect("it was pushed last");
    (outputs, kept)
}

/// Each row is a token of one expert; the last ones are nobody's.
fn owners_plan<B: MoeBackend>(
    counts: &[Vec<usize>],
    num_kept: usize,
    num_experts: usize,
    device: &B::Device,
) -> ExpertPlan<B> {
    let of_expert = |(expert, &count): (usize, &usize)| std::iter::repeat_n(expert as i64, count);
    let mut experts: Vec<i64> =
        counts.iter().flat_map(|counts| counts.iter().enumerate().flat_map(of_expert)).collect();
    experts.extend(std::iter::repeat_n(num_experts as i64, num_kept));
    let shape = [experts.len(), 1];
    ExpertPlan::partial(Tensor::<B, 2, Int>::from_data(TensorData::new(experts, shape), device), num_experts)
}

/// `rows` begin with those of the plan, in its order; the gates are in them already.
fn sum_rows<B: MoeBackend>(rows: Vec<Tensor<B, 2>>, routing: &Routing<B>, dtype: DType) -> Tensor<B, 2> {
    let (rows, plan) = (together(rows), &routing.plan);
    let gates = Tensor::ones([plan.num_tokens(), plan.top_k()], (&rows.device(), dtype));
    combine_rows(part(&rows, 0..plan.num_rows()), gates, plan)
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;

    use super::*;
    use crate::MoeConfig;
    use crate::parallel::InProcess;

    /// Four experts of width 8 on two ranks, given to `ranks` ranks with tokens of shape `tokens` each, which were routed among `routed` experts.
    fn forward(ranks: usize, exchanging: usize, tokens: [usize; 2], routed: usize) {
        let devices = vec![Default::default(); exchanging];
        let moe = MoeConfig::new(8, 6, 4, 2).init::<Flex>(&Default::default());
        let router = MoeConfig::new(8, 6, routed, 2).init::<Flex>(&Default::default()).router;
        let placement = ExpertPlacement::even(4, 2).expect("enough experts");
        let sharded = ShardedExperts::split(&moe.experts, &placement, &[Default::default(); 2]);
        let routing = router.forward(Tensor::ones([3, 8], &Default::default()));
        let batches = (0..ranks).map(|_| (Tensor::ones(tokens, &Default::default()), &routing)).collect();
        sharded.forward(batches, &InProcess::new(devices).expect("one device"));
    }

    #[test]
    #[should_panic(expected = "experts of 2 ranks, but 3 exchange rows")]
    fn an_exchange_of_other_ranks_panics() {
        forward(2, 3, [3, 8], 4);
    }

    #[test]
    #[should_panic(expected = "one batch for each of 2 ranks, got 1")]
    fn a_rank_without_a_batch_panics() {
        forward(1, 2, [3, 8], 4);
    }

    #[test]
    #[should_panic(expected = "tokens [T, D] and routing disagree on T")]
    fn another_number_of_tokens_panics() {
        forward(2, 2, [2, 8], 4);
    }

    #[test]
    #[should_panic(expected = "tokens [T, D] and experts disagree on D")]
    fn tokens_of_another_width_panic() {
        forward(2, 2, [3, 6], 4);
    }

    #[test]
    #[should_panic(expected = "experts and routing disagree on E")]
    fn a_decision_among_other_experts_panics() {
        forward(2, 2, [3, 8], 5);
    }

    #[test]
    #[should_panic(expected = "the exchange is of other local ranks")]
    fn an_exchange_for_all_ranks_does_not_serve_one() {
        let moe = MoeConfig::new(8, 6, 4, 2).init::<Flex>(&Default::default());
        let placement = ExpertPlacement::even(4, 2).expect("enough experts");
        let shard = ShardedExperts::shard(&moe.experts, &placement, 1, &Default::default());
        let exchange = InProcess::new(vec![Default::default(); 2]).expect("one device");
        shard.forward(Vec::new(), &exchange);
    }
}

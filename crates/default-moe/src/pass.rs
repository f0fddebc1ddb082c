//! One pass through a layer with default vectors.
//!
//! An expert whose slot a capacity dropped was chosen: no vector stands in for it \[D\].
//!
//! The order is the paper's \[C\]: the chosen experts run, the averages update, the updated averages fill the missing slots
//! of this very pass. The update is computed here and handed back; the module stays as it is.

use burn::tensor::Tensor;
use moe_kernels::{MoeBackend, expert_ffn_summing, linear, linear_onto, sum_of_squares};
use moe_layers::{Experts, Moe, MoeLosses, Routing, dispatch};

use crate::{DefaultUpdate, DefaultVectors, Evaluation, Form, UpdateRule};

/// What a pass yields: nothing of it stays in the module.
#[derive(Debug, Clone)]
pub struct DefaultMoeOutput<B: MoeBackend, const N: usize> {
    /// The layer's output, in the shape of its input.
    pub output: Tensor<B, N>,
    /// What the router decided. Its counts are those of the chosen experts; default vectors serve no slot.
    pub routing: Routing<B>,
    /// The auxiliary losses of this pass.
    pub losses: MoeLosses<B>,
    /// What a training pass found out about the experts, for [`DefaultVectors::absorb`]; `None` in evaluation.
    pub update: Option<DefaultUpdate<B>>,
    /// Sums of squares over the batch, `[2]`, f32: of the part of the output that comes from the vectors, and of the
    /// chosen experts' part, without the shared ones. Only when [asked for](DefaultVectors::with_measuring), and only where vectors are in the output.
    pub energy: Option<Tensor<B, 1>>,
}

impl<B: MoeBackend> DefaultVectors<B> {
    /// [`forward_training`](Self::forward_training) on a backend with gradients, [`forward_evaluation`](Self::forward_evaluation) on one without: what burn's
    /// dropout and batch norm do.
    ///
    /// # Shapes
    ///
    /// - input: `[.., D]`, any leading dimensions; they are the `T` tokens
    /// - output: the shape and dtype of the input
    ///
    /// # Panics
    ///
    /// Panics when the last dimension is not `D`, the vectors are not those of `moe`, or they would be in the output of a
    /// router under which they have no meaning ([`gates_of_unchosen`](moe_layers::Router::gates_of_unchosen)).
    pub fn forward<const N: usize>(&self, moe: &Moe<B>, input: Tensor<B, N>) -> DefaultMoeOutput<B, N> {
        match B::ad_enabled(&input.device()) {
            true => self.forward_training(moe, input),
            false => self.forward_evaluation(moe, input),
        }
    }

    /// `y_t = sum_i pi_ti (E_i(x_t) if chosen, else Ehat_i)` with the vectors as this batch updates them; on
    /// [several ranks](moe_layers::ranks) as their batches together do.
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn forward_training<const N: usize>(&self, moe: &Moe<B>, input: Tensor<B, N>) -> DefaultMoeOutput<B, N> {
        self.forward_training_reduced(moe, input, DefaultUpdate::over_ranks)
    }

    /// [`forward_training`](Self::forward_training), with `reduce` between what this batch found out and its use: an all-reduce of
    /// [`into_matrix`](DefaultUpdate::into_matrix) there gives every rank the vectors, and so the output, of one batch made
    /// of all of theirs. The update in the output then is that of all ranks: every rank absorbs it as it is.
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn forward_training_reduced<const N: usize>(
        &self,
        moe: &Moe<B>,
        input: Tensor<B, N>,
        reduce: impl FnOnce(DefaultUpdate<B>) -> DefaultUpdate<B>,
    ) -> DefaultMoeOutput<B, N> {
        self.check(moe);
        let serve = |tokens: Tensor<B, 2>, routing: &Routing<B>| {
            let (experts_part, update) = self.run_experts(moe, tokens, routing);
            let update = reduce(update);
            let (output, energy) = self.fill(experts_part, self.updated(&update), moe, routing);
            (output, (Some(update), energy))
        };
        collect(moe.forward_with(input, serve))
    }

    /// The output with the vectors as they are, or that of plain top-K: see [`Evaluation`]. Leaves no update.
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn forward_evaluation<const N: usize>(&self, moe: &Moe<B>, input: Tensor<B, N>) -> DefaultMoeOutput<B, N> {
        self.check(moe);
        let options = self.options();
        let plain = options.evaluation == Evaluation::TopK || options.form == Form::BackwardOnly;
        let serve = |tokens: Tensor<B, 2>, routing: &Routing<B>| {
            let experts_part = dispatch::grouped(tokens, &moe.experts, routing);
            let (output, energy) = match plain {
                true => (experts_part, None),
                false => self.fill(experts_part, self.constant(), moe, routing),
            };
            (output, (None, energy))
        };
        collect(moe.forward_with(input, serve))
    }

    fn check(&self, moe: &Moe<B>) {
        let expected = [moe.experts.num_experts(), moe.experts.d_model()];
        assert_eq!(self.values.dims(), expected, "DefaultVectors: they must be [E, D], as the experts are");
    }

    /// The chosen experts' part of the output, `[T, D]`, and what it says about them.
    fn run_experts(
        &self,
        moe: &Moe<B>,
        tokens: Tensor<B, 2>,
        routing: &Routing<B>,
    ) -> (Tensor<B, 2>, DefaultUpdate<B>) {
        if routing.num_tokens() == 0 {
            let vectors = self.constant();
            let update = DefaultUpdate::empty(vectors.dims(), vectors.dtype(), &vectors.device());
            return (tokens, update);
        }
        let shares = match self.options().rule {
            UpdateRule::Mean => routing.gates.ones_like(),
            UpdateRule::Weighted | UpdateRule::WeightedByCount => chosen_scores(moe, routing),
        };
        let (output, sums, totals) = run_and_sum(tokens, &moe.experts, routing, shares);
        let weights = match self.options().rule {
            UpdateRule::Mean | UpdateRule::Weighted => totals,
            UpdateRule::WeightedByCount => routing.counts().float().cast(totals.dtype()),
        };
        (output, DefaultUpdate { sums, weights })
    }

    /// Adds the vectors of the experts that a token did not choose: one product `[T, E] x [E, D]`.
    fn fill(
        &self,
        experts_part: Tensor<B, 2>,
        vectors: Tensor<B, 2>,
        moe: &Moe<B>,
        routing: &Routing<B>,
    ) -> (Tensor<B, 2>, Option<Tensor<B, 1>>) {
        if routing.num_tokens() == 0 {
            return (experts_part, None);
        }
        let dtype = experts_part.dtype();
        let weights = moe.router.gates_of_unchosen(routing);
        let weights = match self.options().form {
            Form::Full => weights,
            // Zero, with the gradient of the weights.
            Form::BackwardOnly => weights.clone() - weights.detach(),
        };
        let (weights, vectors) = (weights.cast(dtype), vectors.cast(dtype));
        let measure = || energy(linear(weights.clone().detach(), vectors.clone()), experts_part.clone());
        let energy = self.is_measuring().then(measure);
        (linear_onto(experts_part, weights, vectors), energy)
    }
}

type Served<B> = (Option<DefaultUpdate<B>>, Option<Tensor<B, 1>>);

fn collect<B: MoeBackend, const N: usize>(
    (out, (update, energy)): (moe_layers::MoeOutput<B, N>, Served<B>),
) -> DefaultMoeOutput<B, N> {
    DefaultMoeOutput { output: out.output, routing: out.routing, losses: out.losses, update, energy }
}

/// The experts' part of the output, the sums of their outputs and the sums of the shares.
fn run_and_sum<B: MoeBackend>(
    tokens: Tensor<B, 2>,
    experts: &Experts<B>,
    routing: &Routing<B>,
    shares: Tensor<B, 2>,
) -> (Tensor<B, 2>, Tensor<B, 2>, Tensor<B, 1>) {
    let dtype = tokens.dtype();
    let gates = routing.gates.clone().cast(dtype);
    expert_ffn_summing(tokens, gates, shares.cast(dtype), experts.weights(dtype), &routing.plan)
}

/// Scores of the chosen experts, `[T, K]`, a constant: the probabilities, where the router is a softmax. Not their gates, which a
/// capacity may have made zero, and a normalisation something else.
fn chosen_scores<B: MoeBackend>(moe: &Moe<B>, routing: &Routing<B>) -> Tensor<B, 2> {
    match moe.router.gates_are_scores() && !routing.plan.is_partial() {
        true => routing.gates.clone().detach(),
        false => routing.scores.clone().detach().gather(1, routing.experts.clone()),
    }
}

/// What the vectors add, computed once more: a pass that is measured takes the way of one that is not.
fn energy<B: MoeBackend>(fill: Tensor<B, 2>, experts_part: Tensor<B, 2>) -> Tensor<B, 1> {
    let of = |part: Tensor<B, 2>| {
        let part = part.set_require_grad(false).cast(burn::tensor::DType::F32);
        let size = part.shape().num_elements();
        sum_of_squares(part.reshape([size]))
    };
    Tensor::cat(vec![of(fill), of(experts_part)], 0)
}

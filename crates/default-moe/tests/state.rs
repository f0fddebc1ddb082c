//! When default vectors move, and that several devices, threads or ranks make the same of a batch as one.

use std::sync::{Barrier, Mutex};

use burn::backend::autodiff::checkpoint::strategy::BalancedCheckpointing;
use burn::backend::{Autodiff, Flex};
use burn::module::{AutodiffModule, Module};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Distribution, Tensor, TensorData, Tolerance};
use default_moe::{DefaultMoe, DefaultMoeConfig, DefaultOptions, DefaultUpdate, UpdateRule};
use moe_layers::{MoeBackend, MoeConfig};

type AD = Autodiff<Flex>;

/// f32: relative, and absolute for values near zero.
const REL: f32 = 1e-5;
const ABS: f32 = 1e-6;

const WIDTH: usize = 6;

fn layer<B: MoeBackend>(rule: UpdateRule) -> DefaultMoe<B> {
    let options = DefaultOptions::new().with_beta(0.5).with_rule(rule);
    let config = DefaultMoeConfig::new(MoeConfig::new(WIDTH, 8, 5, 2)).with_options(options);
    let layer = config.init::<B>(&Default::default());
    let _ = layer.num_params(); // draws the parameters: clones share them from here on
    layer
}

fn tokens<B: MoeBackend>(count: usize) -> Tensor<B, 2> {
    Tensor::random([count, WIDTH], Distribution::Normal(0.0, 1.0), &Default::default())
}

fn vectors<B: MoeBackend>(layer: &DefaultMoe<B>) -> TensorData {
    layer.vectors.values.to_data()
}

fn assert_close(found: &TensorData, expected: &TensorData) {
    found.assert_approx_eq::<f32>(expected, Tolerance::rel_abs(REL, ABS));
}

const RULES: [UpdateRule; 3] = [UpdateRule::Mean, UpdateRule::Weighted, UpdateRule::WeightedByCount];

#[test]
#[should_panic(expected = "default vectors have no meaning with expert choice")]
fn a_router_by_which_no_token_chooses_panics() {
    let moe = MoeConfig::new(4, 6, 3, 1).with_router(moe_layers::RouterRule::ExpertChoice);
    DefaultMoeConfig::new(moe).init::<burn::backend::Flex>(&Default::default());
}

#[test]
fn a_second_pass_over_a_batch_finds_out_the_same_and_moves_nothing() {
    let mut layer = layer::<AD>(UpdateRule::Weighted);
    let batch = tokens(20);
    let pass = |layer: &DefaultMoe<AD>| {
        let out = layer.forward(batch.clone());
        let output = out.output.to_data();
        drop(out.output.sum().backward());
        (output, out.update.expect("training"))
    };
    let ((first, update), (second, again)) = (pass(&layer), pass(&layer));
    first.assert_eq(&second, true);
    update.clone().into_matrix().into_data().assert_eq(&again.into_matrix().into_data(), true);
    layer.absorb(&update);
    assert_ne!(vectors(&layer).iter::<f32>().map(f32::abs).sum::<f32>(), 0.0);
}

#[test]
fn the_vectors_of_a_pass_are_those_that_its_update_leaves() {
    // Frozen after the step, the layer says about the batch what it said within the step.
    let mut layer = layer::<AD>(UpdateRule::Mean);
    let batch = tokens(20);
    let out = layer.forward(batch.clone());
    layer.absorb(&out.update.expect("training"));
    let frozen = layer.valid().forward(batch.inner()).output.into_data();
    frozen.assert_eq(&out.output.into_data(), true);
}

#[test]
fn recomputing_activations_moves_nothing() {
    type Checkpointed = Autodiff<Flex, BalancedCheckpointing>;
    let layer = layer::<Checkpointed>(UpdateRule::Weighted);
    let before = vectors(&layer);
    let out = layer.forward(tokens(20) * 0.5);
    let found = out.update.expect("training").into_matrix().to_data();
    drop(out.output.exp().sum().backward());
    vectors(&layer).assert_eq(&before, true);
    assert!(found.iter::<f32>().all(f32::is_finite));
}

#[test]
fn validation_on_either_backend_moves_nothing() {
    let mut layer = layer::<AD>(UpdateRule::Weighted);
    let update = layer.forward(tokens(20)).update.expect("training");
    layer.absorb(&update);
    let before = vectors(&layer);
    assert!(layer.valid().forward(tokens(9)).update.is_none());
    assert!(layer.vectors.forward_evaluation(&layer.moe, tokens(9)).update.is_none());
    vectors(&layer).assert_eq(&before, true);
    vectors(&layer.valid()).assert_eq(&before, true);
}

#[test]
fn micro_batches_move_the_vectors_as_one_batch_of_all_of_them() {
    for rule in RULES {
        let layer = layer::<AD>(rule);
        let batch = tokens(31);
        let part = |range| layer.forward(batch.clone().slice([range, 0..WIDTH])).update.expect("training");
        let merged = [0..7, 7..8, 8..31].map(part).into_iter().reduce(DefaultUpdate::merge).expect("three parts");
        let whole = layer.forward(batch.clone()).update.expect("training");
        let moved = |update| layer.vectors.updated(&update).into_data();
        assert_close(&moved(merged), &moved(whole));
    }
}

#[test]
fn threads_with_forks_of_a_layer_move_it_as_one_batch() {
    let layer = layer::<AD>(UpdateRule::Weighted);
    let batch = tokens(40);
    let whole = layer.vectors.updated(&layer.forward(batch.clone()).update.expect("training")).into_data();
    let updates = std::thread::scope(|scope| {
        let run = |start: usize| {
            let (layer, batch) = (layer.clone(), batch.clone());
            scope.spawn(move || {
                let device = Default::default();
                let part = batch.slice([start..start + 10, 0..WIDTH]);
                layer.fork(&device).forward(part).update.expect("training").to_device(&device)
            })
        };
        let threads = [0, 10, 20, 30].map(run);
        threads.map(|thread| thread.join().expect("it ends well"))
    });
    let merged = updates.into_iter().reduce(DefaultUpdate::merge).expect("four threads");
    assert_close(&layer.vectors.updated(&merged).into_data(), &whole);
}

/// Sums matrices over the ranks of a run: every rank gives one and gets the sum.
struct AllReduce {
    barrier: Barrier,
    sum: Mutex<Option<Tensor<Flex, 2>>>,
}

impl AllReduce {
    fn new(ranks: usize) -> Self {
        Self { barrier: Barrier::new(ranks), sum: Mutex::new(None) }
    }

    fn reduce(&self, matrix: Tensor<Flex, 2>) -> Tensor<Flex, 2> {
        {
            let mut sum = self.sum.lock().expect("no rank has failed");
            *sum = Some(match sum.take() {
                Some(sum) => sum + matrix,
                None => matrix,
            });
        }
        self.barrier.wait();
        let sum = self.sum.lock().expect("no rank has failed");
        sum.clone().expect("every rank has given one")
    }
}

#[test]
fn ranks_that_reduce_before_the_use_compute_the_output_of_one_large_batch() {
    const RANKS: usize = 3;
    let layer = layer::<AD>(UpdateRule::Weighted);
    let batch = tokens(3 * 11);
    let whole = layer.forward(batch.clone());
    let expected = layer.vectors.updated(&whole.update.expect("training")).into_data();
    let all_reduce = AllReduce::new(RANKS);
    let outputs = std::thread::scope(|scope| {
        let rank = |rank: usize| {
            let (mut layer, batch, all_reduce, expected) = (layer.clone(), batch.clone(), &all_reduce, &expected);
            scope.spawn(move || {
                let part = batch.slice([rank * 11..(rank + 1) * 11, 0..WIDTH]);
                let reduce = |update: DefaultUpdate<AD>| {
                    let sum = all_reduce.reduce(update.into_matrix().inner());
                    DefaultUpdate::from_matrix(Tensor::from_inner(sum))
                };
                let out = layer.vectors.forward_training_reduced(&layer.moe, part, reduce);
                layer.absorb(&out.update.expect("training"));
                assert_close(&vectors(&layer), expected);
                out.output.inner()
            })
        };
        [0, 1, 2].map(rank).map(|thread| thread.join().expect("it ends well"))
    });
    assert_close(&Tensor::cat(outputs.into(), 0).into_data(), &whole.output.into_data());
}

#[test]
fn a_reduction_by_the_mean_moves_the_vectors_as_one_by_the_sum() {
    let layer = layer::<AD>(UpdateRule::Weighted);
    let update = layer.forward(tokens(20)).update.expect("training");
    let halved = DefaultUpdate::from_matrix(update.clone().into_matrix() * 0.5);
    let moved = |update| layer.vectors.updated(&update).into_data();
    assert_close(&moved(halved), &moved(update));
}

#[test]
fn no_gradient_reaches_an_expert_that_nobody_chose() {
    let mut layer = layer::<AD>(UpdateRule::Mean);
    // Expert 4 has served tokens, so its vector is in the sum, and is then out of reach of every token.
    let update = layer.forward(tokens(20)).update.expect("training");
    layer.absorb(&update);
    let out = layer.forward(Tensor::<AD, 2>::ones([1, WIDTH], &Default::default()));
    let chosen: Vec<i64> = out.routing.experts.to_data().iter().collect();
    let grads = out.output.sum().backward();
    let grad = layer.moe.experts.w_out.val().grad(&grads).expect("tracked");
    for expert in 0..5 {
        let size = grad.clone().slice(expert..expert + 1).abs().sum().into_scalar();
        assert_eq!(size > 0.0, chosen.contains(&(expert as i64)), "expert {expert} of {chosen:?}");
    }
    assert!(layer.vectors.values.val().grad(&grads).is_none());
}

/// Somebody asks every parameter for gradients, the vectors included.
#[test]
fn vectors_that_are_asked_for_a_gradient_stay_constants() {
    let mut layer = layer::<AD>(UpdateRule::Mean);
    layer.vectors.values = layer.vectors.values.map(|v| v.require_grad());
    let grads: <AD as AutodiffBackend>::Gradients = layer.forward(tokens(20)).output.sum().backward();
    assert!(layer.vectors.values.val().grad(&grads).is_none());
}

#[test]
fn counts_are_those_of_the_chosen_experts() {
    let out = layer::<AD>(UpdateRule::Mean).forward(tokens(20));
    assert_eq!(out.routing.counts().into_data().iter::<i64>().sum::<i64>(), 20 * 2);
}

#[test]
#[should_panic(expected = "MoeConfig: shared_gate is set, but shared_d_hidden = 0")]
fn a_layer_that_contradicts_itself_panics() {
    let moe = MoeConfig::new(4, 6, 3, 1).with_shared_gate(true);
    DefaultMoeConfig::new(moe).init::<Flex>(&Default::default());
}

#[test]
#[should_panic(expected = "DefaultOptions: beta = 1 must be in 0.0..1.0")]
fn a_layer_whose_vectors_never_move_panics() {
    let options = DefaultOptions::new().with_beta(1.0);
    DefaultMoeConfig::new(MoeConfig::new(4, 6, 3, 1)).with_options(options).init::<Flex>(&Default::default());
}

#[test]
#[should_panic(expected = "TopKRouter: tokens [T, D] must have D = 6, got 7")]
fn tokens_of_another_width_panic_in_training() {
    layer::<AD>(UpdateRule::Mean).forward(Tensor::<AD, 2>::ones([3, WIDTH + 1], &Default::default()));
}

#[test]
#[should_panic(expected = "TopKRouter: tokens [T, D] must have D = 6, got 7")]
fn no_tokens_of_another_width_panic_in_training() {
    layer::<AD>(UpdateRule::Mean).forward(Tensor::<AD, 2>::ones([0, WIDTH + 1], &Default::default()));
}

#[test]
#[should_panic(expected = "TopKRouter: tokens [T, D] must have D = 6, got 7")]
fn tokens_of_another_width_panic_in_evaluation() {
    layer::<Flex>(UpdateRule::Mean).forward(Tensor::<Flex, 2>::ones([3, WIDTH + 1], &Default::default()));
}

#[test]
#[should_panic(expected = "DefaultVectors: the update must be [E, D], as the vectors are")]
fn an_update_of_another_layer_panics() {
    let update = DefaultUpdate::empty([4, WIDTH], burn::tensor::DType::F32, &Default::default());
    layer::<Flex>(UpdateRule::Mean).absorb(&update);
}

#[test]
#[should_panic(expected = "DefaultVectors: they must be [E, D], as the experts are")]
fn vectors_of_another_layer_panic() {
    let vectors = DefaultOptions::new().init::<AD>(4, WIDTH, &Default::default());
    vectors.forward(&layer::<AD>(UpdateRule::Mean).moe, tokens(3));
}

#[test]
#[should_panic(expected = "default vectors have no meaning with a ReLU router")]
fn vectors_without_a_meaning_panic() {
    let relu = moe_layers::RouterRule::Relu(moe_layers::router::ReluOptions::new());
    let moe = MoeConfig::new(WIDTH, 8, 5, 2).with_router(relu).init::<AD>(&Default::default());
    DefaultMoe { moe, vectors: layer(UpdateRule::Mean).vectors }.forward(tokens(3));
}

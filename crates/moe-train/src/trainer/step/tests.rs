//! What one step does to gradients, losses, default vectors and excited experts.

use burn::backend::{Autodiff, Flex};
use burn::module::{Module, ModuleVisitor, Param};
use default_moe::optimizer::HasDefaultVectors;
use excitation_optim::Variant;
use moe_layers::Experts;

use super::*;
use crate::config::{LoopConfig, OptimConfig};
use crate::data::{Batch, train_batch};
use crate::parallel::{Collective, RankError};
use crate::trainer::testing::{config, text};

type AD = Autodiff<Flex>;

/// Of the largest gradient, and absolute; f32.
const RELATIVE: f32 = 1e-5;
const ABSOLUTE: f32 = 1e-6;

fn trainee(config: &TrainConfig) -> Trainee<AD> {
    Trainee { model: config.model.init(&Default::default()), optim: Optim::<AD>::adamw(&config.optim) }
}

/// Cross-entropy is the only loss.
fn without_auxiliary_losses() -> TrainConfig {
    let mut config = config();
    (config.model.moe.balance_coef, config.model.moe.z_coef) = (0.0, 0.0);
    config
}

fn eight_sequences() -> Batch {
    let config = LoopConfig { batch_size: 8, ..config().train };
    train_batch(&text(600), &config, 0, 0)
}

/// The same sequences in four micro-batches.
fn in_pairs(batch: &Batch) -> Vec<Batch> {
    let size = 2 * batch.seq_len;
    let pairs = batch.inputs.chunks(size).zip(batch.targets.chunks(size));
    pairs
        .map(|(inputs, targets)| Batch {
            inputs: inputs.to_vec(),
            targets: targets.to_vec(),
            batch_size: 2,
            seq_len: batch.seq_len,
        })
        .collect()
}

fn gather(model: &Lm<AD>, batches: &[Batch]) -> (GradientsParams, StepOutcome) {
    let mut gathered = Gathered::new(true);
    for batch in batches {
        gathered.add(model, batch, batches.len(), &Default::default());
    }
    let grads = gathered.grads.grads();
    let (_, outcome) = gathered.finish(model, &grads);
    (grads, outcome)
}

fn flatten(model: &Lm<AD>, grads: &GradientsParams) -> Vec<f32> {
    struct Flatten<'a>(&'a GradientsParams, Vec<f32>);
    impl ModuleVisitor<AD> for Flatten<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<AD, D>>) {
            let grad = self.0.get::<Flex, D>(param.id).expect("every parameter has a gradient");
            self.1.extend(grad.into_data().to_vec::<f32>().expect("gradients are f32"));
        }
    }
    let mut flatten = Flatten(grads, Vec::new());
    model.visit(&mut flatten);
    flatten.1
}

fn parameters(model: &Lm<AD>) -> Vec<f32> {
    struct Values(Vec<f32>);
    impl ModuleVisitor<AD> for Values {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<AD, D>>) {
            self.0.extend(param.val().into_data().to_vec::<f32>().expect("parameters are f32"));
        }
    }
    let mut values = Values(Vec::new());
    model.visit(&mut values);
    values.0
}

fn assert_close(found: &[f32], expected: &[f32]) {
    let largest = expected.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= RELATIVE * largest + ABSOLUTE, "{found} != {expected}");
    }
}

#[test]
fn four_micro_batches_give_the_gradient_of_one_batch_of_all_of_them() {
    let model = trainee(&without_auxiliary_losses()).model;
    let batch = eight_sequences();
    let (accumulated, parts) = gather(&model, &in_pairs(&batch));
    let (at_once, whole) = gather(&model, std::slice::from_ref(&batch));
    assert_close(&flatten(&model, &accumulated), &flatten(&model, &at_once));
    assert_close(&[parts.cross_entropy as f32], &[whole.cross_entropy as f32]);
    assert_close(&[parts.grad_norm as f32], &[whole.grad_norm as f32]);
    assert_eq!(parts.layers[0].stats.expert_counts, whole.layers[0].stats.expert_counts);
}

#[test]
fn the_balance_loss_is_the_mean_over_the_micro_batches() {
    let model = trainee(&config()).model;
    let pairs = in_pairs(&eight_sequences());
    let (_, together) = gather(&model, &pairs);
    let alone = pairs.iter().map(|pair| gather(&model, std::slice::from_ref(pair)).1.balance);
    let mean = alone.sum::<f64>() / pairs.len() as f64;
    assert_close(&[together.balance as f32], &[mean as f32]);
}

fn with_default_vectors() -> TrainConfig {
    let mut config = without_auxiliary_losses();
    config.model.moe.router = moe_models::lm::RouterKind::Default;
    config
}

fn vectors(model: &Lm<AD>) -> Vec<f32> {
    model.default_vectors()[0].values.to_data().to_vec().expect("f32")
}

#[test]
fn default_vectors_move_once_by_what_all_micro_batches_found_out() {
    let config = with_default_vectors();
    let (start, batch) = (trainee(&config), eight_sequences());
    let settings = StepSettings { lr: 0.0, clip_norm: 0.0, with_stats: true };
    let after = |batches: Vec<Batch>| {
        let start = Trainee { model: start.model.clone(), optim: start.optim.clone() };
        start.step(batches.into_iter(), &settings, &Default::default()).expect("finite")
    };
    let ((parts, measured), (whole, _)) = (after(in_pairs(&batch)), after(vec![batch.clone()]));
    assert!(vectors(&start.model).iter().all(|v| *v == 0.0) && vectors(&whole.model).iter().any(|v| *v != 0.0));
    assert_close(&vectors(&parts.model), &vectors(&whole.model));

    let stats = measured.layers[0].default.as_ref().expect("a layer with default vectors");
    let [norm, target] = [stats.norm(), stats.target_norm];
    // From zero, a step goes a tenth of the way; every expert had a token.
    assert!((norm - 0.1 * target).abs() < 1e-5 * target && (stats.moved - norm).abs() < 1e-5 * norm);
    assert!(stats.share > 0.0 && stats.share < 1.0);
}

/// Excited, an expert's change is that of the plain step times `E n_e / sum n`, `n` being the tokens that chose it: default
/// vectors serve none. They, the router and the shared experts end where they do without.
#[test]
fn excitation_scales_the_routed_experts_beside_default_vectors_and_nothing_else() {
    let mut config = with_default_vectors();
    config.model.moe.shared_d_hidden = 8;
    let (start, batch) = (trainee(&config).model, eight_sequences());
    let step = |excitation| {
        let optim = OptimConfig { excitation, ..config.optim.clone() };
        let trainee = Trainee { model: start.clone(), optim: Optim::<AD>::adamw(&optim) };
        let settings = StepSettings { lr: 1e-2, clip_norm: 1.0, with_stats: true };
        trainee.step([batch.clone()].into_iter(), &settings, &Default::default()).expect("finite")
    };
    let ((plain, _), (excited, measured)) = (step(None), step(Some(Variant::ZeroSum)));

    let stats = &measured.layers[0].stats;
    assert_eq!(stats.expert_counts.iter().sum::<u64>(), 2 * batch.inputs.len() as u64);
    let factors: Vec<f32> =
        stats.expert_counts.iter().map(|&n| 4.0 * n as f32 / (2 * batch.inputs.len()) as f32).collect();
    assert!(factors.iter().any(|factor| (factor - 1.0).abs() > 0.05), "a load that tells nothing: {factors:?}");

    let of = |model: &Lm<AD>, matrix: fn(&Experts<AD>) -> Tensor<AD, 3>| {
        let moe = model.blocks[1].feed_forward.moe.as_ref().expect("a layer with experts");
        matrix(&moe.experts).into_data().to_vec::<f32>().expect("f32")
    };
    for matrix in [(|e| e.w_in.val()) as fn(&Experts<AD>) -> Tensor<AD, 3>, |e| e.w_out.val()] {
        let [start, plain, excited] = [&start, &plain.model, &excited.model].map(|model| of(model, matrix));
        let per_expert = start.len() / factors.len();
        let changed = (0..start.len()).map(|i| start[i] + factors[i / per_expert] * (plain[i] - start[i]));
        assert_close(&excited, &changed.collect::<Vec<_>>());
    }

    let mut others = excited.model;
    for (block, plain) in others.blocks.iter_mut().zip(&plain.model.blocks) {
        if let (Some(moe), Some(plain)) = (&mut block.feed_forward.moe, &plain.feed_forward.moe) {
            moe.experts = plain.experts.clone();
        }
    }
    assert!(vectors(&others).iter().any(|v| *v != 0.0));
    assert_eq!(parameters(&others), parameters(&plain.model));
}

/// The record of the expert layer of one excited step.
fn excited_layer(config: &TrainConfig, model: Lm<AD>) -> LayerRecord {
    let optim = OptimConfig { excitation: Some(Variant::ZeroSum), ..config.optim.clone() };
    let trainee = Trainee { model, optim: Optim::<AD>::adamw(&optim) };
    let settings = StepSettings { lr: 1e-2, clip_norm: 1.0, with_stats: true };
    let stepped = trainee.step([eight_sequences()].into_iter(), &settings, &Default::default());
    let (_, mut outcome) = stepped.expect("finite");
    outcome.layers.remove(0)
}

fn as_f32(numbers: &[f64]) -> Vec<f32> {
    numbers.iter().map(|&number| number as f32).collect()
}

/// Counts over their mean, whoever chooses; all 1 where every expert serves as many tokens.
#[test]
fn factors_follow_from_the_counts_under_every_router() {
    use moe_models::lm::RouterKind::{ExpertChoice, Hash, NoisyTopK, Relu, Sigmoid, Sinkhorn, TopK};
    for router in [TopK, NoisyTopK, Sigmoid, Sinkhorn, Relu, ExpertChoice, Hash] {
        let mut config = without_auxiliary_losses();
        config.model.moe.router = router;
        let layer = excited_layer(&config, trainee(&config).model);
        let counts = &layer.stats.expert_counts;
        let mean = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
        let expected: Vec<f64> = counts.iter().map(|&count| count as f64 / mean).collect();
        assert_eq!(layer.factors.len(), 4, "{router:?}");
        assert_close(&as_f32(&layer.factors), &as_f32(&expected));
        match router {
            ExpertChoice => assert_eq!(layer.factors, [1.0; 4]),
            // Balanced, and by chance perhaps perfectly.
            Sinkhorn => {}
            _ => assert!(expected.iter().any(|factor| *factor != 1.0), "{router:?}: a load that tells nothing"),
        }
    }
}

/// What a capacity drops was chosen.
#[test]
fn a_capacity_changes_no_factor() {
    use moe_models::lm::RouterKind::{Hash, Relu, Sigmoid, TopK};
    for router in [TopK, Sigmoid, Relu, Hash] {
        let mut config = without_auxiliary_losses();
        config.model.moe.router = router;
        let free = trainee(&config).model;
        config.model.moe.capacity_factor = 0.5;
        let bounded = trainee(&config).model.load_record(free.clone().into_record());
        let (free, bounded) = (excited_layer(&config, free), excited_layer(&config, bounded));
        assert!(bounded.stats.drop_rate > 0.0 && free.stats.drop_rate == 0.0, "{router:?}");
        assert_eq!(bounded.factors, free.factors, "{router:?}");
    }
}

/// Though what it found out would spoil them.
#[test]
fn a_step_that_is_not_finite_moves_no_default_vector() {
    let settings = StepSettings { lr: 1e-2, clip_norm: 1.0, with_stats: true };
    let step = |trainee: Trainee<AD>| trainee.step([eight_sequences()].into_iter(), &settings, &Default::default());
    let (mut trainee, _) = step(trainee(&with_default_vectors())).expect("finite");
    let moe = trainee.model.blocks[1].feed_forward.moe.as_mut().expect("a layer with experts");
    moe.experts.w_out = moe.experts.w_out.clone().map(|w| w.slice_fill([0..1, 0..1, 0..1], f32::INFINITY));
    let (model, before) = (trainee.model.clone(), vectors(&trainee.model));
    let loss = Learns::<AD>::loss_of(&model, &eight_sequences(), &Default::default());
    let update = loss.layers[0].default_update.as_ref().expect("a training pass");
    let spoiled = model.default_vectors()[0].updated(update).into_data();
    assert!(spoiled.iter::<f32>().any(|v| !v.is_finite()) && before.iter().all(|v| v.is_finite()));

    assert!(matches!(step(trainee), Err(NotFinite("loss"))));
    assert_eq!(vectors(&model), before);
}

/// What a step writes down about a layer is about the vectors of that layer, before it and after it.
#[test]
fn every_layer_absorbs_and_records_its_own_update() {
    let mut config = with_default_vectors();
    config.model.num_layers = 3;
    let settings = StepSettings { lr: 1e-2, clip_norm: 1.0, with_stats: true };
    let step = |trainee: Trainee<AD>| {
        trainee.step([eight_sequences()].into_iter(), &settings, &Default::default()).expect("finite")
    };
    let (first, _) = step(trainee(&config));
    let before = first.model.clone();
    let (second, outcome) = step(first);
    let of = |model: &Lm<AD>, layer: usize| {
        model.blocks[layer].feed_forward.default_vectors.as_ref().expect("it has some").values.val()
    };
    let lengths = |rows: Tensor<AD, 2>| rows.powi_scalar(2).sum_dim(1).sqrt().into_data().to_vec::<f32>().expect("f32");
    assert_eq!(outcome.layers.iter().map(|record| record.layer).collect::<Vec<_>>(), [1, 2]);
    for LayerRecord { layer, default, .. } in &outcome.layers {
        let stats = default.as_ref().expect("default vectors");
        assert_close(&as_f32(&stats.norms), &lengths(of(&second.model, *layer)));
        let moved = lengths(of(&second.model, *layer) - of(&before, *layer));
        assert_close(&[stats.moved as f32], &[moved.iter().sum::<f32>() / moved.len() as f32]);
    }
    assert_ne!(outcome.layers[0].default, outcome.layers[1].default);
}

#[test]
fn a_step_that_is_not_finite_is_refused() {
    let trainee = trainee(&config());
    let broken = Trainee { model: trainee.model.map(&mut ToNan), ..trainee };
    let settings = StepSettings { lr: 1e-3, clip_norm: 1.0, with_stats: false };
    let refusal = broken.step([eight_sequences()].into_iter(), &settings, &Default::default()).err();
    assert_eq!(refusal.map(|NotFinite(what)| what), Some("loss"));
}

/// A selection bias moves against the counts of all micro-batches, an L1 coefficient with them; once, and no gradient does.
#[test]
fn routers_absorb_the_load_of_all_micro_batches_once() {
    use moe_layers::{ExpertLoad, Router};
    use moe_models::lm::RouterKind;
    for router in [RouterKind::Sigmoid, RouterKind::Relu] {
        let mut config = config();
        config.model.moe.router = router;
        let trainee = trainee(&config);
        let batches = in_pairs(&eight_sequences());
        let router_of =
            |model: &Lm<AD>| model.blocks[1].feed_forward.moe.as_ref().expect("it has experts").router.clone();
        let mut expected = router_of(&trainee.model);
        let loads = batches.iter().map(|batch| {
            let (inputs, targets) = batch.to_tensors::<AD>(&Default::default());
            ExpertLoad::of(&trainee.model.loss(inputs, targets).layers[0].routing)
        });
        expected.absorb(&loads.reduce(ExpertLoad::merge).expect("four batches"));
        let settings = StepSettings { lr: 1e-2, clip_norm: 1.0, with_stats: false };
        let stepped = trainee.step(batches.into_iter(), &settings, &Default::default());
        let (stepped, _) = stepped.unwrap_or_else(|error| panic!("{error:?}"));
        let state = |router: &Router<AD>| match router {
            Router::Sigmoid(router) => router.selection_bias.to_data(),
            Router::Relu(router) => router.l1_coef.to_data(),
            other => panic!("another router: {other:?}"),
        };
        assert_ne!(state(&expected), state(&router_of(&trainee_start(&config))));
        state(&router_of(&stepped.model)).assert_eq(&state(&expected), true);
    }
}

fn trainee_start(config: &TrainConfig) -> Lm<AD> {
    config.model.init(&Default::default())
}

#[test]
fn statistics_are_read_on_request_and_change_nothing() {
    for config in [config(), with_default_vectors()] {
        assert_statistics_change_nothing(&config);
    }
}

fn assert_statistics_change_nothing(config: &TrainConfig) {
    let start = trainee(config);
    let step = |with_stats| {
        let trainee = Trainee { model: start.model.clone(), optim: start.optim.clone() };
        let settings = StepSettings { lr: 1e-2, clip_norm: 0.1, with_stats };
        trainee.step([eight_sequences()].into_iter(), &settings, &Default::default()).expect("finite")
    };
    let ((with, asked), (without, unasked)) = (step(true), step(false));
    assert_eq!((asked.layers.len(), unasked.layers.len()), (1, 0));
    assert_eq!(parameters(&with.model), parameters(&without.model));
    assert_ne!(parameters(&with.model), parameters(&start.model));
}

struct ToNan;

impl burn::module::ModuleMapper<AD> for ToNan {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<AD, D>>) -> Param<Tensor<AD, D>> {
        param.map(|tensor| (tensor * f32::NAN).detach().require_grad())
    }
}

#[test]
#[should_panic(expected = "0 cached and 9 new tokens are more than max_seq_len = 8")]
fn the_loss_of_sequences_that_are_too_long_panics() {
    let too_long = LoopConfig { seq_len: 9, ..config().train };
    let batch = train_batch(&text(600), &too_long, 0, 0);
    Learns::<AD>::loss_of(&trainee(&config()).model, &batch, &Default::default());
}

#[test]
#[should_panic(expected = "expert layer `blocks.1.feed_forward.moe` has no counts")]
fn an_excited_update_without_counts_panics() {
    let mut config = config();
    config.optim.excitation = Some(Variant::ZeroSum);
    let Trainee { model, mut optim } = trainee(&config);
    optim.step_with_factors::<Lm<AD>, AD>(1e-2, model, GradientsParams::new());
}

#[test]
#[should_panic(expected = "not a model: moe.top_k = 5")]
fn a_trainee_of_a_contradictory_model_panics() {
    let mut config = config();
    config.model.moe.top_k = 5;
    Trainee::<AD>::new(&config, &Default::default());
}

#[test]
#[should_panic(expected = "ExcitationConfig: gamma must be finite and 0 or more, got -1")]
fn a_trainee_with_a_negative_gamma_panics() {
    let mut config = config();
    (config.optim.excitation, config.optim.gamma) = (Some(Variant::ZeroSum), -1.0);
    Trainee::<AD>::new(&config, &Default::default());
}

#[test]
#[should_panic(expected = "Trainee: a step needs at least one micro-batch")]
fn a_step_without_a_batch_panics() {
    let settings = StepSettings { lr: 1e-2, clip_norm: 1.0, with_stats: false };
    let _ = trainee(&config()).step(std::iter::empty(), &settings, &Default::default());
}

/// A rank of three whose exchange is never reached.
struct Third;

impl Collective<Flex> for Third {
    fn rank(&self) -> usize {
        2
    }

    fn num_ranks(&self) -> usize {
        3
    }

    fn sum(&self, _: Tensor<Flex, 1>) -> Result<Tensor<Flex, 1>, RankError> {
        unreachable!("there is nothing to sum")
    }
}

#[test]
#[should_panic(expected = "a batch of 8 rows has no part 2 of 3")]
fn a_step_among_ranks_that_do_not_divide_the_rows_panics() {
    let settings = StepSettings { lr: 1e-2, clip_norm: 1.0, with_stats: false };
    let _ = trainee(&config()).step_among(
        &Group::new(Third),
        [eight_sequences()].into_iter(),
        &settings,
        &Default::default(),
    );
}

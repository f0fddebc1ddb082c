//! Several ranks against one: the same global batch gives the same training.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use burn::backend::{Autodiff, Flex};
use burn::tensor::Tensor;
use excitation_optim::Variant;
use moe_layers::{BalanceConvention, ExpertLoad};
use moe_models::lm::RouterKind;

use super::router_loads::RouterLoads;
use super::testing::{config, data};
use super::tests::{Silent, begun, copy_run, losses, new_dir};
use super::{TrainError, train_on};
use crate::config::TrainConfig;
use crate::parallel::Party;
use crate::progress::Progress;
use crate::run::{Run, StepRecord};

type AD = Autodiff<Flex>;

/// Relative, of what ten steps in f32 make of sums in another order.
const RELATIVE: f64 = 2e-4;

/// Twelve steps of 2 x 4 sequences.
fn four_rows() -> TrainConfig {
    let mut config = config();
    config.train.batch_size = 4;
    config
}

fn go_on(dir: &Path, config: &TrainConfig, num_ranks: usize) -> Result<Vec<StepRecord>, TrainError> {
    let (mut run, _) = Run::open(dir).expect("the run opens");
    let devices = vec![Default::default(); num_ranks];
    train_on::<AD>(config, &data(), &mut run, &mut Silent::default(), Party::Threads(&devices, None))?;
    Ok(losses(dir))
}

/// The same run, begun once, continued by 1, 2 and 4 ranks; those of one layout twice.
fn trains_alike_on_any_number_of_ranks(config: &TrainConfig) -> Vec<StepRecord> {
    let (_parent, start) = begun(config);
    let continued = |num_ranks| {
        let (_parent, dir) = new_dir();
        copy_run(&start, &dir);
        go_on(&dir, config, num_ranks).expect("training")
    };
    let alone = continued(1);
    for num_ranks in [2, 4] {
        let together = continued(num_ranks);
        assert_close(&together, &alone, num_ranks);
        assert_eq!(continued(num_ranks), together, "two runs on {num_ranks} ranks");
    }
    alone
}

fn assert_close(found: &[StepRecord], expected: &[StepRecord], num_ranks: usize) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        let step = found.step;
        assert_eq!((step, found.tokens, found.lr), (expected.step, expected.tokens, expected.lr));
        let close = |what: &str, found: f64, expected: f64| {
            let error = (found - expected).abs();
            assert!(
                error <= RELATIVE * expected.abs().max(1e-3),
                "{what}, step {step}, {num_ranks} ranks: {found} != {expected}"
            );
        };
        close("loss", found.loss, expected.loss);
        close("balance loss", found.balance_loss, expected.balance_loss);
        close("z-loss", found.z_loss, expected.z_loss);
        close("gradient norm", found.grad_norm, expected.grad_norm);
        close("validation", found.valid_loss.unwrap_or(0.0), expected.valid_loss.unwrap_or(0.0));
        assert_eq!(found.layers.len(), expected.layers.len());
        for (found, expected) in found.layers.iter().zip(&expected.layers) {
            let (stats, wanted) = (&found.stats, &expected.stats);
            assert_eq!(stats.expert_counts, wanted.expert_counts, "step {step}, {num_ranks} ranks");
            close("entropy", stats.router_entropy, wanted.router_entropy);
            close("gate mass", stats.gate_mass, wanted.gate_mass);
            assert_eq!(found.factors.len(), expected.factors.len());
            found.factors.iter().zip(&expected.factors).for_each(|(&found, &wanted)| close("factor", found, wanted));
            assert_eq!(found.default.is_some(), expected.default.is_some());
            if let (Some(found), Some(wanted)) = (&found.default, &expected.default) {
                close("move of default vectors", found.moved, wanted.moved);
                close("share of default vectors", found.share, wanted.share);
                found.norms.iter().zip(&wanted.norms).for_each(|(&found, &wanted)| close("norm", found, wanted));
            }
        }
    }
}

#[test]
fn ranks_share_gradients_their_norm_and_the_balance_loss() {
    for balance in [
        BalanceConvention::Switch,
        BalanceConvention::HuggingFace,
        BalanceConvention::GShard,
        BalanceConvention::Sequence,
    ] {
        let mut config = four_rows();
        config.model.moe.balance = balance;
        // So large that a loss of local fractions would lead elsewhere, and clipped in every step.
        (config.model.moe.balance_coef, config.model.moe.z_coef, config.optim.clip_norm) = (1.0, 0.1, 0.1);
        let records = trains_alike_on_any_number_of_ranks(&config);
        assert!(records.iter().all(|record| record.grad_norm > 0.1));
    }
}

#[test]
fn ranks_share_what_they_find_out_about_default_vectors() {
    let mut config = four_rows();
    config.model.moe.router = RouterKind::Default;
    let records = trains_alike_on_any_number_of_ranks(&config);
    assert!(records.last().is_some_and(|record| record.layers[0].default.is_some()));
}

#[test]
fn ranks_share_the_counts_by_which_excitation_scales() {
    let mut config = four_rows();
    (config.optim.excitation, config.optim.gamma) = (Some(Variant::PositiveSum), 2.0);
    let records = trains_alike_on_any_number_of_ranks(&config);
    assert!(records.last().is_some_and(|record| record.layers[0].factors.iter().any(|&factor| factor > 1.1)));
}

#[test]
fn ranks_share_the_loads_by_which_routers_balance_themselves() {
    for router in [RouterKind::Sigmoid, RouterKind::Relu] {
        let mut config = four_rows();
        config.model.moe.router = router;
        // Steps of the bias and of the weight that show within a few steps.
        config.model.moe.sigmoid.rate = 0.05;
        config.model.moe.relu.l1_coef = 0.1;
        trains_alike_on_any_number_of_ranks(&config);
    }
}

#[test]
fn a_dense_model_trains_on_several_ranks() {
    let mut config = four_rows();
    config.model.moe_layers = moe_models::lm::MoeLayers::None;
    trains_alike_on_any_number_of_ranks(&config);
}

#[test]
fn a_loss_that_is_not_finite_ends_all_ranks() {
    let mut config = four_rows();
    let (_parent, dir) = begun(&config);
    (config.optim.lr, config.optim.min_lr, config.optim.warmup_steps) = (1e30, 1e30, 0);
    let error = go_on(&dir, &config, 2).expect_err("it diverges");
    assert!(matches!(error, TrainError::NotFinite { .. }), "{error}");
}

/// Fails where a rank of its own may not: rank 0 alone shows progress.
struct Panics;

impl Progress for Panics {
    fn start(&mut self, _done: usize, _total: usize) {}

    fn step(&mut self, _record: &StepRecord, _total: usize) {
        panic!("no room to draw");
    }

    fn finish(&mut self) {}

    fn interrupted(&self) -> bool {
        false
    }
}

#[test]
fn a_panic_of_rank_0_ends_the_others() {
    let config = four_rows();
    let (_parent, dir) = begun(&config);
    let (mut run, _) = Run::open(&dir).expect("the run opens");
    let devices = [Default::default(), Default::default()];
    let trained = catch_unwind(AssertUnwindSafe(|| {
        train_on::<AD>(&config, &data(), &mut run, &mut Panics, Party::Threads(&devices, None)).map(drop)
    }));
    let panic = trained.expect_err("it panics, and the others do not wait for ever");
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"no room to draw"));
}

#[test]
fn three_ranks_find_equal_loads_equal() {
    // A third of it is no number of f32, and of 1/3 + 1/3 + 1/3 not every sum is 1.
    let loads = [[7.0f32, 7.0, 1.0, 12.0], [3.0, 2.0, 6.0, 4.0], [1.0, 2.0, 4.0, 1.0]];
    let device = Default::default();
    let mean = |at: usize| (0..3).map(|rank| loads[rank][at]).sum::<f32>() / 3.0;
    let vector = |values: &[f32]| Tensor::<AD, 1>::from_floats(values, &device);
    let load = ExpertLoad::from_vector(vector(&[loads[0].as_slice(), &[27.0]].concat()));
    let mut gathered = RouterLoads::of(vec![load]);
    gathered.exchange(3, &mut |own| {
        assert_eq!(own.dims(), [5]);
        Tensor::from_floats([mean(0), mean(1), mean(2), mean(3), 50.0 / 3.0].as_slice(), &device)
    });
    let load = gathered.into_inner().remove(0);
    assert_eq!(load.into_vector().into_data().to_vec::<f32>().expect("f32"), [11.0, 11.0, 11.0, 17.0, 50.0]);
}

#[test]
fn a_disk_that_refuses_ends_all_ranks_and_names_itself() {
    let config = four_rows();
    let (_parent, dir) = begun(&config);
    // Where the next checkpoint belongs.
    std::fs::write(dir.join("checkpoints/step-00000005"), "in the way").expect("writable");
    let error = go_on(&dir, &config, 2).expect_err("it cannot be written");
    assert!(!matches!(error, TrainError::Ranks(_)), "{error}");
}

#[test]
fn settings_that_ranks_cannot_share_are_refused() {
    let mut config = four_rows();
    let (_parent, dir) = begun(&config);
    assert!(matches!(go_on(&dir, &config, 3), Err(TrainError::Config(_))));
    config.model.moe.router = RouterKind::ExpertChoice;
    let error = go_on(&dir, &config, 2).expect_err("it compares tokens");
    assert!(error.to_string().contains("expert choice"), "{error}");
}

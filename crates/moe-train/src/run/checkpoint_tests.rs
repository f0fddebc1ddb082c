//! What a checkpoint survives and what it refuses.

use burn::{
    backend::{Autodiff, Flex},
    nn::{Linear, LinearConfig},
    optim::{AdamW, AdamWConfig, GradientsParams, adaptor::OptimizerAdaptor},
    tensor::Tensor,
};
use tempfile::TempDir;

use super::*;
use crate::config::TrainConfig;
use crate::run::{Run, test_record};

type Ad = Autodiff<Flex>;
type Model = Linear<Ad>;
type Optim = OptimizerAdaptor<AdamW, Model, Ad>;

fn model(width: usize) -> Model {
    LinearConfig::new(width, 3).init(&Default::default())
}

/// A model and an optimizer that has a state.
fn trained() -> (Model, Optim) {
    let (model, mut optim): (Model, Optim) = (model(4), AdamWConfig::new().init());
    let x = Tensor::<Ad, 2>::ones([2, 4], &Default::default());
    let loss = model.forward(x).powi_scalar(2).mean();
    let grads = GradientsParams::from_grads(loss.backward(), &model);
    let model = optim.step(0.1, model, grads);
    (model, optim)
}

fn state(step: usize, valid_loss: Option<f64>) -> TrainState {
    TrainState {
        step,
        tokens: 640 * step as u64,
        seconds: 0.1 * step as f64,
        best_valid_loss: valid_loss,
        last_valid: valid_loss.map(|loss| (loss, 1.4 * loss)),
    }
}

fn empty() -> (TempDir, Checkpoints) {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(dir.path().join("checkpoints"));
    (dir, checkpoints)
}

/// A directory with checkpoints of these steps and validation losses, all kept.
fn saved(states: &[(usize, Option<f64>)]) -> (TempDir, Checkpoints) {
    let (dir, checkpoints) = empty();
    let (model, optim) = trained();
    for (step, valid_loss) in states {
        checkpoints.save(&model, &optim, &state(*step, *valid_loss), usize::MAX).unwrap();
    }
    (dir, checkpoints)
}

fn load(checkpoints: &Checkpoints) -> Result<Option<TrainState>, CheckpointError> {
    let optim: Optim = AdamWConfig::new().init();
    let loaded = checkpoints.load_latest(model(4), optim, &Default::default())?;
    Ok(loaded.map(|(_, _, state)| state))
}

fn hidden(checkpoints: &Checkpoints) -> Vec<String> {
    let names = checkpoints.names().unwrap();
    names.into_iter().filter(|name| name.starts_with('.')).collect()
}

#[test]
fn model_optimizer_and_state_come_back() {
    let (_dir, checkpoints) = empty();
    let (model_saved, optim) = trained();
    let state = state(7, Some(1.0 / 3.0));
    checkpoints.save(&model_saved, &optim, &state, 1).unwrap();
    let blank: Optim = AdamWConfig::new().init();
    let (model_loaded, optim_loaded, loaded) =
        checkpoints.load_latest(model(4), blank, &Default::default()).unwrap().unwrap();
    assert_eq!(loaded, state);
    assert_eq!(optim_loaded.to_record().len(), optim.to_record().len());
    let weights = [&model_saved, &model_loaded].map(|model| model.weight.val().into_data());
    assert_eq!(weights[0], weights[1]);
}

#[test]
fn a_run_without_checkpoints_loads_none_but_has_no_model() {
    let (_dir, checkpoints) = empty();
    assert_eq!(load(&checkpoints).unwrap(), None);
    let text = checkpoints.load_model(Which::Latest, model(4), &Default::default()).unwrap_err().to_string();
    assert!(text.contains("holds no checkpoint yet"), "{text}");
}

#[test]
fn what_a_kill_leaves_is_ignored_and_then_removed() {
    let (_dir, checkpoints) = saved(&[(10, None)]);
    for name in [".step-00000020.tmp", ".step-00000005.removed"] {
        let leftover = checkpoints.dir.join(name);
        fs::create_dir(&leftover).unwrap();
        fs::write(leftover.join(MODEL_FILE), "half").unwrap();
    }
    assert_eq!(checkpoints.steps().unwrap(), [10]);
    assert_eq!(load(&checkpoints).unwrap().unwrap().step, 10);
    checkpoints.recover().unwrap();
    assert_eq!(hidden(&checkpoints), [""; 0]);
}

#[test]
fn a_checkpoint_killed_while_being_replaced_comes_back() {
    let (_dir, checkpoints) = saved(&[(10, None)]);
    let path = checkpoints.path(10);
    fs::rename(&path, files::hidden_sibling(&path, "replaced")).unwrap();
    assert_eq!(load(&checkpoints).unwrap(), None);
    checkpoints.recover().unwrap();
    assert_eq!(load(&checkpoints).unwrap().unwrap().step, 10);
}

#[test]
fn saving_a_step_again_replaces_its_checkpoint() {
    let (_dir, checkpoints) = saved(&[(10, None), (10, Some(2.0))]);
    assert_eq!(load(&checkpoints).unwrap().unwrap(), state(10, Some(2.0)));
    assert_eq!(hidden(&checkpoints), [""; 0]);
}

#[test]
fn a_failed_save_keeps_the_earlier_checkpoints_and_leaves_nothing_behind() {
    let (_dir, checkpoints) = saved(&[(10, Some(2.0))]);
    let full = CheckpointError::File(FileError::NoSpace { path: "model.mpk".into() });
    let result = checkpoints.write(&state(20, None), |dir, manifest| {
        manifest.add(dir, MODEL_FILE, &[1; 100])?;
        Err(full)
    });
    assert!(result.unwrap_err().to_string().contains("no space left"));
    assert_eq!(load(&checkpoints).unwrap().unwrap().step, 10);
    assert_eq!(hidden(&checkpoints), [""; 0]);
}

#[test]
fn truncated_files_are_named_with_the_last_good_checkpoint() {
    for name in [MODEL_FILE, OPTIM_FILE, STATE_FILE] {
        let (_dir, checkpoints) = saved(&[(10, None), (20, None), (30, None)]);
        let file = checkpoints.path(30).join(name);
        let bytes = fs::read(&file).unwrap();
        fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
        let text = load(&checkpoints).unwrap_err().to_string();
        assert!(text.contains("step-00000030 is damaged") && text.contains(name), "{text}");
        assert!(text.contains("step-00000020 is intact: move the damaged"), "{text}");
        assert_eq!(checkpoints.steps().unwrap(), [10, 20, 30], "nothing is deleted");
    }
}

#[test]
fn a_flipped_bit_anywhere_is_noticed() {
    let (_dir, checkpoints) = saved(&[(10, Some(2.5))]);
    for name in [MODEL_FILE, OPTIM_FILE, STATE_FILE] {
        let file = checkpoints.path(10).join(name);
        let good = fs::read(&file).unwrap();
        for at in (0..good.len()).step_by(good.len() / 40 + 1) {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            fs::write(&file, &bytes).unwrap();
            // Between the tokens of state.json a flip may not change what it says.
            if let Ok(loaded) = load(&checkpoints) {
                assert_eq!((name, loaded), (STATE_FILE, Some(state(10, Some(2.5)))));
            }
        }
        fs::write(&file, &good).unwrap();
    }
    load(&checkpoints).unwrap();
}

#[test]
fn advice_passes_over_older_damaged_checkpoints() {
    let (_dir, checkpoints) = saved(&[(10, None), (20, None)]);
    fs::remove_file(checkpoints.path(20).join(OPTIM_FILE)).unwrap();
    fs::remove_file(checkpoints.path(10).join(STATE_FILE)).unwrap();
    let text = load(&checkpoints).unwrap_err().to_string();
    assert!(text.contains("optim.mpk is missing"), "{text}");
    assert!(text.contains("no other checkpoint is intact"), "{text}");
}

#[test]
fn foreign_files_are_no_checkpoint() {
    let (_dir, checkpoints) = saved(&[(10, None)]);
    fs::write(checkpoints.path(10).join(STATE_FILE), r#"{"epoch": 3}"#).unwrap();
    let text = load(&checkpoints).unwrap_err().to_string();
    assert!(text.contains("state.json does not describe a checkpoint"), "{text}");
}

#[test]
fn a_checkpoint_under_the_name_of_another_step_is_refused() {
    let (_dir, checkpoints) = saved(&[(10, None)]);
    fs::rename(checkpoints.path(10), checkpoints.path(90)).unwrap();
    let text = load(&checkpoints).unwrap_err().to_string();
    assert!(text.contains("state.json is that of step 10"), "{text}");
}

#[test]
fn names_that_are_no_step_are_not_taken_for_checkpoints() {
    let (_dir, checkpoints) = saved(&[(10, None)]);
    for name in ["step-99", "step-0000001x", "step-00000010.bak", "notes"] {
        fs::create_dir(checkpoints.dir.join(name)).unwrap();
    }
    assert_eq!(checkpoints.steps().unwrap(), [10]);
    checkpoints.recover().unwrap();
    assert!(checkpoints.dir.join("step-99").exists());
}

#[test]
fn a_checkpoint_of_another_model_says_what_differs() {
    let (_dir, checkpoints) = saved(&[(10, None)]);
    let text = checkpoints.load_model(Which::Latest, model(5), &Default::default()).unwrap_err().to_string();
    assert!(text.contains("step-00000010 does not fit this model"), "{text}");
    assert!(text.contains("parameter weight has shape [4, 3], expected [5, 3]"), "{text}");
}

#[test]
fn pruning_keeps_the_newest_and_the_best() {
    let (_dir, checkpoints) = empty();
    let (model, optim) = trained();
    let losses = [(10, 3.0), (20, 1.0), (30, 2.0), (40, 2.5), (50, f64::NAN)];
    for (step, loss) in losses {
        checkpoints.save(&model, &optim, &state(step, Some(loss)), 2).unwrap();
    }
    assert_eq!(checkpoints.steps().unwrap(), [20, 40, 50]);
    assert_eq!(checkpoints.best_step().unwrap(), Some(20));
    checkpoints.save(&model, &optim, &state(60, Some(0.5)), 1).unwrap();
    assert_eq!(checkpoints.steps().unwrap(), [60]);
    assert_eq!(hidden(&checkpoints), [""; 0]);
}

#[test]
fn the_best_model_is_loaded_when_asked_for() {
    let (_dir, checkpoints) = saved(&[(10, Some(1.0)), (20, Some(2.0))]);
    let device = Default::default();
    let step = |which| checkpoints.load_model(which, model(4), &device).unwrap().1.step;
    assert_eq!(step(Which::Best), 10);
    assert_eq!(step(Which::Latest), 20);
    fs::remove_dir_all(checkpoints.path(10)).unwrap();
    assert_eq!(step(Which::Best), 20);
}

#[test]
fn the_best_is_known_after_a_kill_right_behind_its_checkpoint() {
    let (_dir, checkpoints) = saved(&[(10, Some(3.0))]);
    let content = |dir: &Path, manifest: &mut Manifest| Ok(manifest.add(dir, MODEL_FILE, b"")?);
    checkpoints.write(&state(20, Some(1.0)), content).unwrap();
    // The next checkpoint has no validation of its own.
    let (model, optim) = trained();
    checkpoints.save(&model, &optim, &state(30, Some(1.0)), 1).unwrap();
    assert_eq!(checkpoints.best_step().unwrap(), Some(20));
    assert_eq!(checkpoints.steps().unwrap(), [20, 30]);
}

#[test]
fn old_checkpoints_that_a_kill_kept_go_once_the_newest_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = TrainConfig::preset("tiny").unwrap();
    config.train.keep_last = 1;
    let mut run = Run::create(dir.path(), &config).unwrap();
    let (model, optim) = trained();
    run.save_checkpoint(&model, &optim, &state(10, None)).unwrap();
    run.checkpoints().save(&model, &optim, &state(20, None), usize::MAX).unwrap();
    drop(run);

    let (run, _) = Run::open(dir.path()).unwrap();
    let newest = run.checkpoints().path(20).join(MODEL_FILE);
    let whole = fs::read(&newest).unwrap();
    let load = || run.load_latest(self::model(4), Optim::from(AdamWConfig::new().init()), &Default::default());
    fs::write(&newest, &whole[1..]).unwrap();
    assert!(load().is_err());
    assert_eq!(run.checkpoints().steps().unwrap(), [10, 20], "nothing goes while the newest is damaged");
    fs::write(&newest, &whole).unwrap();
    load().unwrap();
    assert_eq!(run.checkpoints().steps().unwrap(), [20]);
}

#[test]
fn a_damaged_state_is_no_reason_to_take_another_for_the_best_or_to_remove_anything() {
    let (_dir, checkpoints) = saved(&[(10, Some(1.0)), (20, Some(2.0))]);
    fs::write(checkpoints.path(10).join(STATE_FILE), "").unwrap();
    let text = checkpoints.best_step().unwrap_err().to_string();
    assert!(text.contains("step-00000010 is damaged") && text.contains("step-00000020 is intact"), "{text}");
    let (model, optim) = trained();
    checkpoints.save(&model, &optim, &state(30, Some(3.0)), 1).unwrap();
    assert_eq!(checkpoints.steps().unwrap(), [10, 20, 30]);
}

#[test]
fn a_run_whose_checkpoints_are_gone_does_not_start_again_over_its_metrics() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = TrainConfig::preset("tiny").unwrap();
    config.train.checkpoint_every = 10;
    let load = |run: &Run| run.load_latest(model(4), Optim::from(AdamWConfig::new().init()), &Default::default());
    let mut run = Run::create(dir.path(), &config).unwrap();
    run.log(&test_record(10)).unwrap();
    assert!(load(&run).unwrap().is_none(), "killed before its first checkpoint");
    run.log(&test_record(11)).unwrap();
    drop(run);
    let (run, _) = Run::open(dir.path()).unwrap();
    let text = load(&run).err().unwrap().to_string();
    assert!(text.contains("holds no checkpoint, and the run was past step 10: put the checkpoints back"), "{text}");
    assert_eq!(crate::run::read_records(dir.path()).unwrap().len(), 2);
}

//! Writing: whole or not at all.

use burn::tensor::Tensor;

use super::*;
use crate::lm::QkNorm;

fn entries(dir: &std::path::Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("readable").map(|entry| entry.expect("readable").file_name());
    let mut names: Vec<_> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn an_export_has_the_standard_names_and_the_files_that_go_with_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let tokenizer = dir.path().join("mine.json");
    fs::write(&tokenizer, "{}").expect("writable");
    let (model, out) = (model(&small(Family::Mixtral)), dir.path().join("parents/are/made"));
    HfExport::new().with_file("tokenizer.json", &tokenizer).save(&model, &out).expect("a new directory");
    assert_eq!(entries(&out), ["config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(entries(out.parent().expect("it has one")), ["made"]);
}

#[test]
fn shards_are_no_larger_than_asked_and_one_tensor_at_least() {
    let place = Place::sharded();
    let index = fs::read_to_string(place.path.join("model.safetensors.index.json")).expect("it is sharded");
    let index: Value = serde_json::from_str(&index).expect("JSON");
    let shards: Vec<_> = entries(&place.path).into_iter().filter(|name| name.ends_with(".safetensors")).collect();
    let mut total = 0;
    for name in &shards {
        let bytes = fs::read(place.path.join(name)).expect("readable");
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("safetensors");
        assert!(header.data_len() <= 1000 || header.tensors().len() == 1, "{name}");
        assert_eq!(header.metadata().as_ref().and_then(|all| all.get("format")).map(String::as_str), Some("pt"));
        total += header.data_len();
    }
    assert!(shards.len() > 3);
    assert_eq!(shards[0], format!("model-00001-of-{:05}.safetensors", shards.len()));
    assert_eq!(index["metadata"]["total_size"], total);
    let one = Place::new(&HfExport::new().with_max_shard_bytes(0));
    assert!(HfCheckpoint::open(&one.path).is_ok());
}

#[test]
fn weights_in_half_precision_come_back_rounded_once() {
    for dtype in [WeightDtype::Bf16, WeightDtype::F16] {
        let place = Place::new(&HfExport::new().with_dtype(dtype));
        let checkpoint = HfCheckpoint::open(&place.path).expect("it is whole");
        assert_eq!((checkpoint.dtype(), checkpoint.family()), (dtype, Family::Olmoe));
        let loaded: Lm<Flex> = checkpoint.load(&Default::default()).expect("it was just opened");
        let original = embedding(&place.model);
        assert_eq!(embedding(&loaded), dtype.decode(&dtype.encode(&original)));
        assert_ne!(embedding(&loaded), original);
    }
}

#[test]
fn weights_serve_a_model_with_other_losses_and_no_other_parameters() {
    let place = Place::whole();
    let open = || HfCheckpoint::open(&place.path).expect("it is whole");
    let mut config = open().config().clone();
    (config.moe.z_coef, config.max_seq_len) = (0.5, 64);
    let loaded: Lm<Flex> =
        open().with_config(config.clone()).expect("the same tensors").load(&Default::default()).expect("readable");
    assert_eq!(loaded.config(), &config);
    let refused = open().with_config(config.clone().with_qk_norm(QkNorm::None));
    assert!(matches!(refused, Err(CheckpointError::NoEquivalent { .. })));
    let (mut wider, mut more) = (config.clone(), config);
    (wider.moe.d_hidden, more.moe.num_experts) = (7, 4);
    assert!(matches!(open().with_config(wider), Err(CheckpointError::Shape { .. })));
    assert!(matches!(open().with_config(more), Err(CheckpointError::MissingTensor { .. })));
}

#[test]
fn a_directory_in_use_is_left_alone() {
    let place = Place::whole();
    let before = entries(&place.path);
    let model = model(&small(Family::Olmoe));
    for used in [place.path.clone(), place.path.join("config.json")] {
        let refused = HfExport::new().save(&model, used).expect_err("there is something");
        assert!(matches!(refused, CheckpointError::NotEmpty { .. }), "{refused}");
    }
    assert_eq!(entries(&place.path), before);
    let empty = place.path.join("empty");
    fs::create_dir(&empty).expect("writable");
    HfExport::new().save(&model, &empty).expect("an empty directory is free");
}

#[test]
fn a_number_beyond_half_precision_is_named_and_nothing_is_left_behind() {
    let mut model = model(&small(Family::Olmoe));
    let gains = Tensor::from_floats([1.0, 1e5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], &Default::default());
    model.final_norm.gamma = burn::module::Param::from_tensor(gains);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let export = HfExport::new().with_dtype(WeightDtype::F16);
    let refused = export.save(&model, dir.path().join("model")).expect_err("100,000 is more than 65,504");
    assert!(matches!(&refused, CheckpointError::Overflow { name, dtype: "f16" } if name == "model.norm.weight"));
    assert!(entries(dir.path()).is_empty(), "{:?}", entries(dir.path()));
}

#[test]
fn a_failure_leaves_nothing_behind() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (model, export) = (model(&small(Family::Olmoe)), HfExport::new());
    let missing = export.clone().with_file("tokenizer.json", &dir.path().join("absent.json"));
    let refused = missing.save(&model, dir.path().join("model")).expect_err("there is no such file");
    assert!(matches!(refused, CheckpointError::Io { .. }) && refused.to_string().contains("absent.json"));
    assert!(entries(dir.path()).is_empty());
    let mut biased = small(Family::Olmoe);
    biased.moe.bias = true;
    let refused = export.save(&super::model(&biased), dir.path().join("model"));
    assert!(matches!(refused, Err(CheckpointError::NoEquivalent { .. })) && entries(dir.path()).is_empty());
}

#[test]
fn a_path_without_a_name_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let model = model(&small(Family::Olmoe));
    assert!(matches!(HfExport::new().save(&model, dir.path().join("..")), Err(CheckpointError::NotEmpty { .. })));
    assert!(matches!(HfExport::new().save(&model, "nowhere/.."), Err(CheckpointError::Io { .. })));
}

//! Weights: what is missing, misplaced, damaged or of another model.

use serde_json::json;

use super::*;
use crate::checkpoint::shards::{INDEX_FILE, SINGLE_FILE};

const FIRST_SHARD: &str = "model-00001-of-";

/// The full name of the shard whose name begins with `start`.
fn shard(place: &Place, start: &str) -> String {
    let names = fs::read_dir(&place.path).expect("readable").map(|entry| entry.expect("readable").file_name());
    let mut names = names.map(|name| name.to_string_lossy().into_owned());
    names.find(|name| name.starts_with(start)).expect("the checkpoint is sharded")
}

#[test]
fn a_tensor_that_is_read_in_parts_has_every_number_in_its_place() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let dir = dir.path().join("model");
    // 1.5 MB each, more than is read at once.
    let config = LmConfig { vocab_size: 47_001, tie_embeddings: false, ..small(Family::Olmoe) };
    let written = model(&config);
    HfExport::new().save(&written, &dir).expect("a new directory");
    let read: Lm<Flex> = HfCheckpoint::open(&dir).expect("whole").load(&Default::default()).expect("readable");
    assert_eq!(embedding(&read), embedding(&written));
    let output = |model: &Lm<Flex>| model.lm_head.as_ref().map(|head| head.val().into_data());
    assert!(output(&read).is_some() && output(&read) == output(&written));
}

#[test]
fn shards_are_read_like_one_file() {
    for place in [Place::whole(), Place::sharded()] {
        let checkpoint = HfCheckpoint::open(&place.path).expect("it is whole");
        let model: Lm<Flex> = checkpoint.load(&Default::default()).expect("it was just opened");
        assert_eq!(embedding(&model), embedding(&place.model));
        assert!(model.lm_head.is_none());
    }
}

#[test]
fn without_weights_or_with_two_sets_of_them_it_is_refused() {
    let place = Place::whole();
    fs::write(place.path.join(INDEX_FILE), "{}").expect("writable");
    assert!(matches!(place.refusal(), CheckpointError::TwoWeights { .. }));
    fs::remove_file(place.path.join(INDEX_FILE)).expect("writable");
    fs::remove_file(place.path.join(SINGLE_FILE)).expect("writable");
    let refused = place.refusal();
    assert!(matches!(refused, CheckpointError::NoWeights { .. }) && refused.to_string().contains("save_pretrained"));
}

#[test]
fn a_directory_without_a_configuration_is_an_error_of_the_file() {
    let place = Place::whole();
    fs::remove_file(place.path.join("config.json")).expect("writable");
    let refused = place.refusal();
    assert!(matches!(refused, CheckpointError::Io { .. }) && refused.to_string().contains("config.json"), "{refused}");
}

#[test]
fn json_that_is_broken_names_its_file() {
    let place = Place::sharded();
    for (file, text) in [(INDEX_FILE, "{\"weight_map\": 3}"), (INDEX_FILE, "{"), ("config.json", "[]")] {
        fs::write(place.path.join(file), text).expect("writable");
        let refused = place.refusal();
        assert!(matches!(refused, CheckpointError::Json { .. }) && refused.to_string().contains(file), "{refused}");
    }
}

#[test]
fn an_index_that_leaves_its_directory_is_refused() {
    for name in ["../model.safetensors", "/model.safetensors", "sub/model.safetensors", "..", ".", "", "sub/"] {
        let place = Place::sharded();
        place.change_json(INDEX_FILE, |index| index["weight_map"]["model.norm.weight"] = json!(name));
        let refused = place.refusal();
        assert!(matches!(&refused, CheckpointError::ShardName { shard } if shard == name), "{refused}");
    }
}

#[test]
fn a_missing_shard_is_named() {
    let place = Place::sharded();
    let name = shard(&place, "model-00002-of-");
    fs::remove_file(place.path.join(&name)).expect("writable");
    let refused = place.refusal();
    assert!(matches!(refused, CheckpointError::MissingShard { .. }) && refused.to_string().contains(&name));
}

#[test]
fn a_tensor_in_another_shard_than_the_index_says_is_named() {
    let (name, other) = ("model.embed_tokens.weight", "model-00002-of-");
    let moved = Place::sharded();
    let other = shard(&moved, other);
    moved.change_json(INDEX_FILE, |index| index["weight_map"][name] = json!(other));
    let unlisted = Place::sharded();
    unlisted.change_json(INDEX_FILE, |index| drop(index["weight_map"].as_object_mut().expect("a table").remove(name)));
    let nowhere = Place::sharded();
    nowhere.change_tensors(&shard(&nowhere, FIRST_SHARD), |tensors| tensors.retain(|tensor| tensor.0 != name));
    let twice = Place::sharded();
    twice.change_tensors(&shard(&twice, "model-00002-of-"), |tensors| tensors[0].0 = name.into());
    for (place, what) in [(moved, "model-00001"), (unlisted, "no shard"), (nowhere, "no shard"), (twice, "model-00001")]
    {
        let refused = place.refusal();
        assert!(matches!(refused, CheckpointError::Misplaced { .. }), "{refused}");
        assert!(refused.to_string().contains(name) && refused.to_string().contains(what), "{refused}");
    }
}

#[test]
fn a_file_that_is_cut_short_or_no_safetensors_is_damaged() {
    let place = Place::whole();
    let path = place.path.join(SINGLE_FILE);
    let bytes = fs::read(&path).expect("readable");
    let longer = [bytes.clone(), vec![0]].concat();
    let no_header = [&u64::MAX.to_le_bytes(), &bytes[8..]].concat();
    let no_json = [&bytes[..8], b"x", &bytes[9..]].concat();
    let cut = [0, 7, 8, 100, bytes.len() - 1].map(|len| bytes[..len].to_vec());
    for broken in cut.into_iter().chain([longer, no_header, no_json]) {
        fs::write(&path, &broken).expect("writable");
        let refused = place.refusal();
        assert!(matches!(refused, CheckpointError::Damaged { .. }), "{refused}");
        assert!(refused.to_string().contains(SINGLE_FILE), "{refused}");
    }
}

/// No sum overflows, and nothing is allocated.
#[test]
fn a_header_that_claims_more_than_any_disk_holds_is_damaged() {
    let place = Place::whole();
    let path = place.path.join(SINGLE_FILE);
    for bytes in [1_000_000_000_000_000, 1 << 60, u64::MAX - 8, u64::MAX] {
        let tensor = json!({"dtype": "U8", "shape": [bytes], "data_offsets": [0, bytes]});
        let header = json!({"model.norm.weight": tensor}).to_string();
        let length = (header.len() as u64).to_le_bytes();
        fs::write(&path, [&length, header.as_bytes(), &[0; 16]].concat()).expect("writable");
        let refused = place.refusal();
        assert!(matches!(refused, CheckpointError::Damaged { .. }), "{refused}");
    }
}

#[test]
fn tensors_that_are_missing_unknown_or_of_another_shape_or_dtype_are_named() {
    let name = "model.layers.1.self_attn.k_proj.weight";
    type Change = fn(&mut Vec<Entry>, &str);
    let missing: Change = |tensors, name| tensors.retain(|tensor| tensor.0 != name);
    let unknown: Change = |tensors, name| {
        let mut another = tensors.iter().find(|tensor| tensor.0 == name).expect("it is there").clone();
        another.0 = "model.layers.1.self_attn.k_proj.bias".into();
        tensors.push(another);
    };
    let shape: Change = |tensors, name| {
        tensors.iter_mut().find(|tensor| tensor.0 == name).expect("it is there").2 = vec![4, 16];
    };
    let dtype: Change = |tensors, name| {
        tensors.iter_mut().find(|tensor| tensor.0 == name).expect("it is there").1 = Dtype::I32;
    };
    for (change, text) in [(missing, name), (unknown, "k_proj.bias"), (shape, "[4, 16]"), (dtype, "I32")] {
        let place = Place::whole();
        place.change_tensors(SINGLE_FILE, |tensors| change(tensors, name));
        let refused = place.refusal();
        assert!(refused.to_string().contains(text), "{refused}");
        let expected = match text {
            "[4, 16]" => matches!(refused, CheckpointError::Shape { .. }),
            "I32" => matches!(refused, CheckpointError::Dtype { .. }),
            "k_proj.bias" => matches!(refused, CheckpointError::UnknownTensor { .. }),
            _ => matches!(refused, CheckpointError::MissingTensor { .. }),
        };
        assert!(expected, "{refused}");
    }
}

#[test]
fn the_first_of_many_missing_tensors_is_named_with_how_many_more() {
    let place = Place::whole();
    place.change_tensors(SINGLE_FILE, |tensors| tensors.retain(|tensor| !tensor.0.contains(".experts.")));
    let refused = place.refusal();
    let first = "model.layers.0.mlp.experts.0.gate_proj.weight";
    assert!(matches!(&refused, CheckpointError::MissingTensor { name, more: 17 } if name == first), "{refused}");
    assert!(refused.to_string().contains("and at least 17 more"), "{refused}");
    place.change_json("config.json", |config| config["num_experts"] = json!(i32::MAX));
    assert!(matches!(place.refusal(), CheckpointError::MissingTensor { name, .. } if name == first));
}

/// An entry whose numbers are all 0.
fn zeros(name: &str, shape: &[usize]) -> Entry {
    (name.into(), Dtype::F32, shape.into(), vec![0; 4 * shape.iter().product::<usize>()])
}

#[test]
fn experts_in_tensors_of_both_kinds_are_refused_with_one_of_each() {
    let place = Place::whole();
    let fused = "model.layers.1.mlp.experts.down_proj";
    place.change_tensors(SINGLE_FILE, |tensors| tensors.push(zeros(fused, &[3, 8, 6])));
    let refused = place.refusal();
    assert!(matches!(refused, CheckpointError::MixedExperts { .. }), "{refused}");
    assert!(refused.to_string().contains(fused) && refused.to_string().contains("experts.0."), "{refused}");
}

#[test]
fn tensors_of_all_experts_are_missing_or_misshapen_under_their_own_names() {
    let place = Place::whole();
    place.change_tensors(SINGLE_FILE, |tensors| {
        tensors.retain(|tensor| !tensor.0.contains(".experts."));
        for layer in 0..2 {
            tensors.push(zeros(&format!("model.layers.{layer}.mlp.experts.gate_up_proj"), &[3, 12, 8]));
            tensors.push(zeros(&format!("model.layers.{layer}.mlp.experts.down_proj"), &[3, 8, 6]));
        }
    });
    assert!(HfCheckpoint::open(&place.path).is_ok());
    place.change_json("config.json", |config| config["num_experts"] = json!(4));
    let refused = place.refusal();
    assert!(matches!(&refused, CheckpointError::Shape { expected, .. } if expected[0] == 4), "{refused}");
    let last = "model.layers.1.mlp.experts.down_proj";
    place.change_tensors(SINGLE_FILE, |tensors| tensors.retain(|tensor| tensor.0 != last));
    assert!(matches!(place.refusal(), CheckpointError::MissingTensor { name, more: 0 } if name == last));
}

#[test]
fn weights_of_both_half_precisions_are_f32() {
    let place = Place::whole();
    for (i, dtype) in [WeightDtype::Bf16, WeightDtype::F16].into_iter().enumerate() {
        place.change_tensors(SINGLE_FILE, |tensors| {
            for tensor in tensors.iter_mut().skip(i).step_by(2) {
                *tensor = (
                    tensor.0.clone(),
                    dtype.in_file(),
                    tensor.2.clone(),
                    dtype.encode(&WeightDtype::F32.decode(&tensor.3)),
                );
            }
        });
    }
    let mixed = HfCheckpoint::open(&place.path).expect("both are weights").dtype();
    assert_eq!(mixed, WeightDtype::F32);
}

#[test]
fn an_output_matrix_beside_tied_embeddings_is_unknown() {
    let place = Place::whole();
    place.change_tensors(SINGLE_FILE, |tensors| {
        let mut head = tensors.iter().find(|t| t.0 == "model.embed_tokens.weight").expect("it is there").clone();
        head.0 = "lm_head.weight".into();
        tensors.push(head);
    });
    assert!(matches!(place.refusal(), CheckpointError::UnknownTensor { name } if name == "lm_head.weight"));
}

/// A file may become unreadable after its header was read.
#[test]
fn a_file_that_shrinks_after_it_was_opened_is_an_error_of_the_file() {
    let place = Place::whole();
    let checkpoint = HfCheckpoint::open(&place.path).expect("it is whole");
    let file = fs::OpenOptions::new().write(true).open(place.path.join(SINGLE_FILE)).expect("writable");
    file.set_len(3000).expect("writable");
    let refused = checkpoint.load::<Flex>(&Default::default()).expect_err("its end is gone");
    assert!(matches!(refused, CheckpointError::Io { .. }) && refused.to_string().contains(SINGLE_FILE), "{refused}");
}

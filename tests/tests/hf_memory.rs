//! What loading a checkpoint takes beside the model: less than one shard, and of a file no more than is read at once. A
//! program of its own: it counts all memory.

#![cfg(feature = "flex")]

use std::path::Path;
use std::sync::Mutex;

use burn::backend::Flex;
use moe_models::checkpoint::{HfCheckpoint, HfExport, WeightDtype};
use moe_models::lm::{Lm, LmConfig, LmMoeConfig, MoeLayers};
use moe_tests::{CountingAllocator, live_bytes, take_peak_bytes};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// One test counts at a time.
static COUNTING: Mutex<()> = Mutex::new(());

/// Experts are nearly all of it, 3 MiB a layer in f32.
fn experts() -> LmConfig {
    let moe = LmMoeConfig::new(8, 2, 256).with_normalize_gates(true);
    LmConfig::new(256, 128, 6, 4, 256, 32).with_moe_layers(MoeLayers::All).with_moe(moe)
}

/// The embedding is nearly all of it, 8 MiB in f32.
fn vocabulary() -> LmConfig {
    let moe = LmMoeConfig::new(2, 1, 8).with_normalize_gates(true);
    LmConfig::new(1 << 15, 64, 1, 4, 8, 32).with_moe_layers(MoeLayers::All).with_moe(moe)
}

fn write(config: &LmConfig, largest_shard: isize, dir: &Path) {
    let export = HfExport::new().with_dtype(WeightDtype::Bf16).with_max_shard_bytes(largest_shard as usize);
    export.save(&config.init::<Flex>(&Default::default()), dir).expect("a new directory");
}

/// The most bytes beside the model while it is loaded.
fn bytes_beside(config: &LmConfig, dir: &Path) -> isize {
    let before = live_bytes();
    take_peak_bytes();
    let model: Lm<Flex> =
        HfCheckpoint::open(dir).expect("it was just written").load(&Default::default()).expect("whole");
    let (peak, model_bytes) = (take_peak_bytes() - before, live_bytes() - before);
    println!("model {model_bytes} bytes, beside it {} while loading", peak - model_bytes);
    assert!(model_bytes as u64 >= 4 * config.num_params());
    drop(model);
    peak - model_bytes
}

#[test]
fn loading_takes_less_than_a_shard_beside_the_model() {
    const SHARD: isize = 6 << 20;
    let _alone = COUNTING.lock();
    let place = tempfile::tempdir().expect("a temporary directory");
    let dir = place.path().join("model");
    write(&experts(), SHARD, &dir);
    assert!(dir.join("model-00002-of-00002.safetensors").exists(), "two shards");
    let beside = bytes_beside(&experts(), &dir);
    assert!(beside < SHARD, "{beside} bytes beside the model");
}

/// 1 MiB of a file, twice as much as numbers in f32, and headers.
#[test]
fn a_large_tensor_is_read_a_part_at_a_time() {
    const MOST: isize = (3 << 20) + (1 << 18);
    let _alone = COUNTING.lock();
    let place = tempfile::tempdir().expect("a temporary directory");
    let dir = place.path().join("model");
    write(&vocabulary(), isize::MAX, &dir);
    let beside = bytes_beside(&vocabulary(), &dir);
    assert!(beside < MOST, "{beside} bytes beside the model");
}

//! What loading a checkpoint takes beside the model: less than one shard. A program of its own: it counts all memory.

#![cfg(feature = "flex")]

use burn::backend::Flex;
use moe_models::checkpoint::{HfCheckpoint, HfExport, WeightDtype};
use moe_models::lm::{Lm, LmConfig, LmMoeConfig, MoeLayers};
use moe_tests::{CountingAllocator, live_bytes, take_peak_bytes};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Experts are nearly all of it, 3 MiB a layer in f32.
fn config() -> LmConfig {
    let moe = LmMoeConfig::new(8, 2, 256).with_normalize_gates(true);
    LmConfig::new(256, 128, 6, 4, 256, 32).with_moe_layers(MoeLayers::All).with_moe(moe)
}

#[test]
fn loading_takes_less_than_a_shard_beside_the_model() {
    const SHARD: isize = 6 << 20;
    let place = tempfile::tempdir().expect("a temporary directory");
    let dir = place.path().join("model");
    let export = HfExport::new().with_dtype(WeightDtype::Bf16).with_max_shard_bytes(SHARD as usize);
    export.save(&config().init::<Flex>(&Default::default()), &dir).expect("a new directory");
    assert!(dir.join("model-00002-of-00002.safetensors").exists(), "two shards");

    let before = live_bytes();
    take_peak_bytes();
    let model: Lm<Flex> =
        HfCheckpoint::open(&dir).expect("it was just written").load(&Default::default()).expect("whole");
    let (peak, model_bytes) = (take_peak_bytes() - before, live_bytes() - before);
    let beside = peak - model_bytes;
    println!("model {model_bytes} bytes, beside it {beside} while loading, a shard has at most {SHARD}");
    assert!(model_bytes as u64 >= 4 * config().num_params());
    assert!(beside < SHARD, "{beside} bytes beside the model");
    drop(model);
}

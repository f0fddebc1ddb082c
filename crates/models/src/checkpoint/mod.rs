//! Checkpoints of `transformers` (Hugging Face): `config.json` and weights in safetensors, in and out.
//!
//! Mixtral, OLMoE and Qwen3-MoE, and without experts Llama, Mistral (without its window) and Qwen3, in f32, bf16 or f16, in one file or in shards with an index, with tied embeddings or
//! without, with rotary positions as they are or scaled (`linear`, `llama3`, `yarn`). Experts are read as published
//! checkpoints have them, with three tensors for each (`experts.0.up_proj.weight`), and as `transformers` 5 has them in
//! memory and writes them with `save_original_format=False`, with two for all (`experts.gate_up_proj`). They are written in
//! the first way, which every version of `transformers` reads.
//!
//! ```
//! use burn::backend::Flex;
//! use burn::tensor::{Int, Tensor};
//! use moe_models::checkpoint::{HfCheckpoint, HfExport, WeightDtype};
//! use moe_models::lm::{Lm, LmConfig, LmMoeConfig, MoeLayers};
//!
//! # let temporary = tempfile::tempdir()?;
//! # let dir = temporary.path().join("model");
//! let device = Default::default();
//! let moe = LmMoeConfig::new(4, 2, 16).with_normalize_gates(true);
//! let config = LmConfig::new(256, 32, 2, 4, 32, 16).with_moe_layers(MoeLayers::All).with_moe(moe);
//! let model = config.init::<Flex>(&device);
//!
//! HfExport::new().with_dtype(WeightDtype::F32).save(&model, &dir)?; // `AutoModelForCausalLM.from_pretrained(dir)`
//!
//! let checkpoint = HfCheckpoint::open(&dir)?; // reads no weights yet
//! assert_eq!(checkpoint.config().moe.num_experts, 4);
//! let loaded: Lm<Flex> = checkpoint.load(&device)?;
//! let tokens = Tensor::<Flex, 2, Int>::from_ints([[1, 2, 3]], &device);
//! assert_eq!(loaded.forward(tokens.clone()).logits.into_data(), model.forward(tokens).logits.into_data());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Nothing is dropped in silence: every field of the configuration and every tensor is used, is known not to matter, or is
//! an error that names it. Numbers pass exactly: a checkpoint that is loaded and saved in its own dtype has the same bits.
//!
//! The auxiliary loss of `transformers` is [`BalanceConvention::HuggingFace`](moe_layers::BalanceConvention::HuggingFace),
//! with the weight `router_aux_loss_coef`, whether or not `output_router_logits` asks for it there.

mod config;
mod dtype;
mod error;
mod family;
mod fields;
mod layout;
mod load;
mod names;
mod rope;
mod save;
mod shards;
mod token_ids;
mod weights;

#[cfg(test)]
mod tests;

pub use config::HfConfig;
pub use dtype::{UnknownDtype, WeightDtype};
pub use error::CheckpointError;
pub use family::{Family, UnknownFamily};
pub use load::{HfCheckpoint, read_config};
pub use save::HfExport;
pub use token_ids::TokenIds;

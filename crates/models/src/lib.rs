//! Mixture-of-Experts models for [burn](https://burn.dev): a decoder-only language model, with the published ones as
//! presets, and a vision transformer, generic over the backend.
//!
//! # A model, its loss, a sample
//!
//! ```
//! use burn::backend::{Autodiff, Flex};
//! use burn::module::AutodiffModule;
//! use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
//! use burn::tensor::{Int, Tensor};
//! use moe_models::generate::{SamplingConfig, generate};
//! use moe_models::lm::{LmConfig, LmMoeConfig};
//!
//! type B = Autodiff<Flex>;
//! let device = Default::default();
//!
//! // vocab_size, d_model, num_layers, num_heads, d_hidden, max_seq_len; 4 experts, top 2, of width 16
//! let config = LmConfig::new(256, 32, 2, 4, 32, 16).with_moe(LmMoeConfig::new(4, 2, 16));
//! let model = config.init::<B>(&device);
//! assert!(config.num_active_params() < config.num_params());
//!
//! // Bytes are tokens; the target of a token is the one after it.
//! let text: Vec<i64> = b"to be or not to be".iter().map(|&byte| byte.into()).collect();
//! let tokens = Tensor::<B, 1, Int>::from_data(&text[..16], &device).unsqueeze::<2>();
//! let targets = Tensor::<B, 1, Int>::from_data(&text[1..17], &device).unsqueeze::<2>();
//!
//! let loss = model.loss(tokens, targets); // total = cross entropy + the routers' auxiliary losses
//! println!("{} nats per token", loss.cross_entropy.into_scalar());
//! let gradients = GradientsParams::from_grads(loss.total.backward(), &model);
//! let mut optimizer = AdamWConfig::new().init();
//! let model = optimizer.step(1e-3, model, gradients);
//!
//! let prompt: Vec<u32> = b"to ".iter().map(|&byte| byte.into()).collect();
//! let tokens = generate(&model.valid(), &prompt, 8, &SamplingConfig::new(), &device, |_| ())?;
//! assert_eq!(tokens.len(), 8);
//! # Ok::<(), moe_models::generate::GenerateError>(())
//! ```
//!
//! # Published models
//!
//! ```
//! use moe_models::lm::LmConfig;
//!
//! let mixtral = LmConfig::mixtral_8x7b();
//! assert_eq!(mixtral.num_params(), 46_702_792_704);
//! assert_eq!(mixtral.num_active_params(), 12_879_925_248);
//!
//! let mut config = LmConfig::preset("olmoe-1b-7b").expect("one of LmConfig::PRESETS");
//! config.moe.top_k = 65;
//! let error = config.validate().unwrap_err().to_string();
//! assert!(error.starts_with("moe.top_k = 65 is more than moe.num_experts = 64"));
//! ```
//!
//! # Where things are
//!
//! | you want | look at |
//! |---|---|
//! | what a model can be made of | [`lm::LmConfig`], [`lm::LmMoeConfig`] |
//! | a model by name | [`lm::LmConfig::preset`], [`lm::LmConfig::PRESETS`] |
//! | logits and what the routers did | [`lm::Lm::forward`] |
//! | a loss to minimise | [`lm::Lm::loss`] |
//! | bf16 activations over f32 parameters | [`lm::Lm::with_dtype`] |
//! | text | [`generate::generate`] |
//! | checkpoints of Hugging Face's `transformers` | [`checkpoint::HfCheckpoint`], [`checkpoint::HfExport`] |
//! | a dense model that goes on as one with experts | [`lm::LmConfig::upcycle`] |
//! | images | [`vit::Vit`] |
//! | a network whose hidden units are experts | [`mlp::TopKMlp`] |
//! | parameters, active ones, FLOPs | [`lm::count`] |
//!
//! The backend is any [`MoeBackend`](moe_kernels::MoeBackend); choose its implementation with the cargo features `flex`
//! (default), `ndarray` and `cube`.

#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod generate;
pub mod lm;
pub mod mlp;
pub mod vit;

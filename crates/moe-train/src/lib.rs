//! Trains, evaluates and samples Mixture-of-Experts models, of language and of images, on any burn backend.
//!
//! The program `moe-train` is a thin shell around this library: a [`TrainConfig`](config::TrainConfig) says everything
//! about a run, [`TextData`](data::TextData) holds its text, [`train`](trainer::train) runs it on a backend, and a
//! [`Run`](run::Run) is the directory where config, metrics, checkpoints and report are kept. For images these are
//! [`VitTrainConfig`](images::VitTrainConfig), [`ImageData`](images::ImageData) and [`train_vit`](trainer::train_vit).
//!
//! A run in code, of a model and a text so small that it takes a moment:
//!
//! ```
//! use burn::backend::{Autodiff, Flex};
//! use moe_train::config::TrainConfig;
//! use moe_train::data::{Split, TextData, Vocab};
//! use moe_train::overrides::Overrides;
//! use moe_train::progress::Plain;
//! use moe_train::run::{Run, Subject};
//! use moe_train::trainer::train;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut overrides = Overrides::default();
//! for setting in ["train.steps=3", "train.batch_size=2", "train.seq_len=16", "model.d_model=32", "moe.router=sigmoid"] {
//!     overrides.add_assignment(setting)?;
//! }
//! let config = TrainConfig::resolve("tiny", &overrides)?;
//! config.validate()?;
//!
//! let text = b"The router chooses two experts. ".repeat(20);
//! let split = Split { train: text.clone(), valid: text, description: "one sentence".into() };
//! let data = TextData::encode(split, Vocab::Bytes)?;
//!
//! # let parent = tempfile::tempdir()?;
//! # let dir = parent.path().join("run");
//! let mut run = Run::create(&dir, &config)?; // a directory that does not exist yet
//! let mut progress = Plain::new(std::io::stdout(), Subject::Text);
//! let summary = train::<Autodiff<Flex>>(&config, &data, &mut run, &mut progress, &Default::default())?;
//! assert_eq!(summary.steps, 3);
//! # Ok(())
//! # }
//! ```
//!
//! [`trainer::Trainee`] takes single steps, for loops of one's own; [`learner`] puts the language model into burn's `Learner`; a model of
//! another kind takes its steps when it implements [`model::Learns`]: what its batch is and what its loss. `README.md` of the crate
//! has every option, setting and file.
//!
//! The backend is chosen when the crate is built, by one of the features `flex`, `ndarray`, `wgpu` and `cuda`; see
//! [`backend`].

pub mod backend;
pub mod cli;
pub mod commands;
pub mod config;
pub mod data;
pub mod error;
pub mod evaluate;
pub mod images;
pub mod learner;
mod links;
pub mod memory;
pub mod model;
pub mod optim;
pub mod overrides;
pub mod parallel;
pub mod presets;
pub mod progress;
pub mod report;
pub mod run;
pub mod trainer;

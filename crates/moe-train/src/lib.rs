//! Trains, evaluates and samples Mixture-of-Experts models, of language and of images, on any burn backend.
//!
//! The program `moe-train` is a thin shell around this library: a [`TrainConfig`](config::TrainConfig) says everything
//! about a run, [`TextData`](data::TextData) holds its text, [`train`](trainer::train) runs it on a backend, and a
//! [`Run`](run::Run) is the directory where config, metrics, checkpoints and report are kept. For images these are
//! [`VitTrainConfig`](images::VitTrainConfig), [`ImageData`](images::ImageData) and [`train_vit`](trainer::train_vit).
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
pub mod memory;
pub mod model;
pub mod optim;
pub mod overrides;
pub mod presets;
pub mod progress;
pub mod report;
pub mod run;
pub mod trainer;

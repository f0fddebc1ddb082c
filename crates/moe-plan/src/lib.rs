//! What training a Mixture-of-Experts model on many devices takes: memory, traffic and a bound of the time of a step, each by a formula.
//!
//! No measurement and no simulation: sizes of a model, nominal rates of devices and links, and arithmetic. `docs/scaling.md` of the workspace has
//! the formulas in one place, what they assume and what they leave out. `cargo xtask plan` prints the results.
//!
//! ```
//! use moe_plan::{Device, Dtype, Layout, Link, Plan, Routing, Setting, preset};
//!
//! let setting = Setting {
//!     model: preset("olmoe-1b-7b")?,
//!     device: Device::named("h100", Dtype::Bf16)?,
//!     link: Link::parse("nvlink4")?,
//!     between: Link::parse("infiniband-ndr")?,
//!     node: 8,
//!     dtype: Dtype::Bf16,
//!     tokens: 8192,
//!     seq_len: 4096,
//!     accumulation: 1,
//!     routing: Routing::Balanced,
//! };
//! let plan = Plan::new(&setting, Layout::new(&setting.model, 16, 8)?)?;
//! assert!(plan.fits && plan.utilisation(&setting)[0] < 1.0);
//! # Ok::<(), String>(())
//! ```

#![forbid(unsafe_code)]

mod config;
mod hardware;
mod layout;
mod memory;
mod model;
mod names;
mod plan;
mod presets;
mod routing;
mod traffic;

pub use config::model_from_json;
pub use hardware::{Device, Dtype, Link};
pub use layout::{Layout, Setting};
pub use memory::Memory;
pub use model::{FeedForward, Model, Moe};
pub use names::unknown;
pub use plan::Plan;
pub use presets::{PRESETS, preset};
pub use routing::{Measured, Routing};
pub use traffic::{Traffic, exchange_bytes};

//! burn-flex.

use burn_flex::Flex;

use super::host::{fused_ops, host_ops};
use crate::MoeBackend;

impl MoeBackend for Flex {
    host_ops!();
    fused_ops!();
}

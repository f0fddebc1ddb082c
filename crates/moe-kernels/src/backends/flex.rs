//! burn-flex.

use burn_flex::Flex;

use super::host::host_ops;
use crate::MoeBackend;

impl MoeBackend for Flex {
    host_ops!();
}

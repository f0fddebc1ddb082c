//! burn-flex.

use burn_flex::Flex;

use crate::MoeBackend;

impl MoeBackend for Flex {}

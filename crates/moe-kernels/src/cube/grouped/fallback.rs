//! Says in the log that a slower kernel computes than the sizes ask for, once for every reason.

use std::collections::HashSet;
use std::sync::{LazyLock, Mutex};

use super::GroupedError;

pub(super) fn warn_once(reason: &GroupedError) {
    if is_new(reason) {
        log::warn!("a grouped product falls back to a slower kernel: {reason}");
    }
}

/// Whether this reason has not been given before in this process.
fn is_new(reason: &GroupedError) -> bool {
    static GIVEN: LazyLock<Mutex<HashSet<GroupedError>>> = LazyLock::new(Default::default);
    let mut given = GIVEN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    !given.contains(reason) && given.insert(reason.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_given_once() {
        let reason = |what: &str| GroupedError::Launch(what.into());
        let answers = ["few units", "little memory", "few units"].map(|what| is_new(&reason(what)));
        assert_eq!(answers, [true, true, false]);
    }
}

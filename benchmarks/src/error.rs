//! What ends a benchmark: one sentence for the person at the terminal.

use std::fmt::{self, Display};

/// Why there is no result.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Error(String);

/// The result of anything that can end a benchmark.
pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// `cause` put into one line.
    pub(crate) fn new(cause: impl Display) -> Self {
        Self(cause.to_string().split_whitespace().collect::<Vec<_>>().join(" "))
    }

    /// `what` could not be done because of `cause`.
    pub(crate) fn of(what: impl Display, cause: impl Display) -> Self {
        Self::new(format!("{what}: {cause}"))
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line() {
        assert_eq!(Error::of("no GPU", "driver\n  missing").to_string(), "no GPU: driver missing");
    }
}

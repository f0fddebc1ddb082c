//! The error of every comparison, in lines that `cargo xtask numerics` makes its table of.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::{Mutex, OnceLock};

use serde_json::json;

/// Names the file to add lines to. Without it nothing is noted.
const FILE_VARIABLE: &str = "MOE_TEST_ERRORS";

static FILE: OnceLock<Option<Mutex<File>>> = OnceLock::new();

/// `max |x - oracle| / max |oracle|` over a tensor: 0 for no numbers and for zeros that are zeros, infinite where only the oracle's are, NaN for NaN.
pub fn relative_error(actual: &[f64], oracle: &[f64]) -> f64 {
    let largest = oracle.iter().fold(0.0, |most: f64, value| most.max(value.abs()));
    let error = actual.iter().zip(oracle).map(|(value, oracle)| (value - oracle).abs());
    // Not `max`, which prefers any number to NaN.
    match error.fold(0.0, |most: f64, error| if error <= most || most.is_nan() { most } else { error }) {
        0.0 => 0.0,
        error => error / largest,
    }
}

/// Adds a line about the tensor whose name ends `what`, behind a comma: the running test, `dtype`, the error.
///
/// # Panics
///
/// Panics when the file that was asked for cannot be written.
pub fn note_error(what: &str, dtype: &str, actual: &[f64], oracle: &[f64]) {
    let Some(file) = FILE.get_or_init(open) else { return };
    let thread = std::thread::current();
    let tensor = what.rsplit(", ").next().unwrap_or(what);
    let line = json!({
        "test": thread.name().unwrap_or_default(),
        "tensor": tensor,
        "what": what,
        "dtype": dtype,
        "numbers": oracle.len(),
        "error": relative_error(actual, oracle),
    });
    let mut file = file.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    file.write_all(format!("{line}\n").as_bytes()).expect("the file that was asked for can be written");
}

fn open() -> Option<Mutex<File>> {
    let path = std::env::var_os(FILE_VARIABLE)?;
    let file = OpenOptions::new().create(true).append(true).open(path);
    Some(Mutex::new(file.expect("the file that was asked for can be written")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_relative_to_the_largest_number_of_the_oracle() {
        assert_eq!(relative_error(&[1.0, 3.0, -4.5], &[1.0, 2.5, -4.0]), 0.125);
        assert_eq!(relative_error(&[], &[]), 0.0);
        assert_eq!(relative_error(&[0.0], &[0.0]), 0.0);
        assert_eq!(relative_error(&[1e-9], &[0.0]), f64::INFINITY);
        assert!(relative_error(&[1.0, f64::NAN, 2.0], &[1.0, 1.0, 2.0]).is_nan());
    }
}

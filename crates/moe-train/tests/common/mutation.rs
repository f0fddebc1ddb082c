//! Files changed at random.

use std::fs::OpenOptions;
use std::io::Write;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

/// Changed files for each original. `MOE_MUTATIONS` asks for more.
const ROUNDS: u64 = 1500;
/// The first seed, 0 if it is not given: other seeds are other changes.
const SEED_VARIABLE: &str = "MOE_MUTATION_SEED";
/// Names a file that gets a line for every original, for `cargo xtask mutations`.
const NOTES_VARIABLE: &str = "MOE_MUTATION_NOTES";

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}

/// How a reader does with one original.
pub(crate) struct Reader {
    what: String,
    read: u64,
    refused: u64,
}

impl Reader {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), read: 0, refused: 0 }
    }

    /// One for each changed file.
    pub(crate) fn seeds(&self) -> std::ops::Range<u64> {
        let first = number(SEED_VARIABLE).unwrap_or(0);
        first..first + number("MOE_MUTATIONS").unwrap_or(ROUNDS)
    }

    /// What became of a changed file.
    pub(crate) fn add<T, E>(&mut self, result: &Result<T, E>) {
        self.read += 1;
        self.refused += u64::from(result.is_err());
    }

    /// Changed files that were taken.
    #[allow(dead_code, reason = "not every program that shares this file asks")]
    pub(crate) fn accepted(&self) -> u64 {
        self.read - self.refused
    }

    /// # Panics
    ///
    /// Panics when no change was ever noticed, and when the notes that were asked for cannot be written.
    pub(crate) fn end(self) {
        assert!(self.refused > 0, "{}: no change was ever noticed", self.what);
        let Some(path) = std::env::var_os(NOTES_VARIABLE) else { return };
        let line = json!({"reader": self.what, "changed_files": self.read, "refused": self.refused});
        let file = OpenOptions::new().create(true).append(true).open(path);
        let written = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
        written.expect("the file that was asked for can be written");
    }
}

/// A file that is a little, or completely, something else; of JSON every other time still JSON, since most changes of its bytes are noticed by
/// the first parser.
pub(crate) fn mutated(original: &[u8], random: &mut ChaCha8Rng) -> Vec<u8> {
    match serde_json::from_slice(original) {
        Ok(mut value) if random.random() => {
            (0..random.random_range(1..4)).for_each(|_| mutate_value(&mut value, random));
            value.to_string().into_bytes()
        }
        _ => mutated_bytes(original, random),
    }
}

/// Puts another value into a random place, or takes one away.
fn mutate_value(value: &mut Value, random: &mut ChaCha8Rng) {
    let below: Vec<&mut Value> = match value {
        Value::Array(items) if random.random_range(0..8) == 0 && !items.is_empty() => {
            items.remove(random.random_range(0..items.len() as u64) as usize);
            return;
        }
        Value::Object(fields) if random.random_range(0..8) == 0 && !fields.is_empty() => {
            let name = fields.keys().nth(random.random_range(0..fields.len() as u64) as usize).cloned();
            name.map(|name| fields.remove(&name));
            return;
        }
        Value::Array(items) => items.iter_mut().collect(),
        Value::Object(fields) => fields.values_mut().collect(),
        _ => Vec::new(),
    };
    let count = below.len() as u64;
    // Once in a while also where there is more below.
    let here = count == 0 || random.random_range(0..12) == 0;
    match below.into_iter().nth(if here { usize::MAX } else { random.random_range(0..count) as usize }) {
        Some(child) => mutate_value(child, random),
        None => *value = another(value, random),
    }
}

fn another(value: &Value, random: &mut ChaCha8Rng) -> Value {
    match (random.random_range(0..14), value) {
        (0, _) => Value::Null,
        (1, _) => json!(random.random::<bool>()),
        (2, _) => json!(0),
        (3, _) => json!(-1),
        (4, _) => json!(u64::MAX),
        (5, _) => json!(u32::MAX),
        (6, _) => json!(1e300),
        (7, _) => json!(""),
        (8, _) => json!([]),
        (9, _) => json!({}),
        (10, Value::Number(number)) => json!(number.as_f64().unwrap_or(1.0) * 2.0),
        (11, Value::Number(number)) => json!(number.as_u64().unwrap_or(1).saturating_add(1)),
        (10 | 11, Value::String(text)) => json!(text.chars().rev().collect::<String>()),
        (12, _) => json!([value, value]),
        _ => json!("\u{e9}\u{0}a"),
    }
}

/// Whatever the file is.
fn mutated_bytes(original: &[u8], random: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = original.to_vec();
    for _ in 0..random.random_range(1..4) {
        let at = if bytes.is_empty() { 0 } else { random.random_range(0..bytes.len() as u64) as usize };
        match random.random_range(0..8) {
            0 => bytes.truncate(at),
            1 if !bytes.is_empty() => bytes[at] ^= 1 << random.random_range(0..8),
            2 => bytes.insert(at, random.random()),
            3 => bytes.extend_from_within(at..),
            4 => {
                let end = bytes.len().min(at + random.random_range(1..9));
                bytes[at..end].fill(0xff);
            }
            // Numbers in texts that no memory holds.
            5 => {
                let end = bytes.len().min(at + 1);
                bytes.splice(at..end, *b"999999999999999999");
            }
            6 => {
                bytes.drain(at..bytes.len().min(at + 16));
            }
            _ if !bytes.is_empty() => bytes[at] = random.random(),
            _ => {}
        }
    }
    bytes
}

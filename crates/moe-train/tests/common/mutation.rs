//! Files changed at random.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// Changed files for each original. `MOE_MUTATIONS` asks for more.
const ROUNDS: u64 = 1500;

pub(crate) fn rounds() -> u64 {
    std::env::var("MOE_MUTATIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS)
}

/// A file that is a little, or completely, something else.
pub(crate) fn mutated(original: &[u8], random: &mut ChaCha8Rng) -> Vec<u8> {
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

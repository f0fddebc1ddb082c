//! JSON objects that hold their own checksum, so that a flipped bit is not taken for another setting.

use serde::Serialize;
use serde_json::{Map, Value};

/// The key of the checksum.
pub(crate) const SEAL: &str = "crc32";

#[derive(Serialize)]
struct Sealed<'a, T> {
    #[serde(flatten)]
    value: &'a T,
    crc32: u32,
}

/// `value`, which must be an object, as text with its checksum as the last entry.
pub(super) fn seal(value: &impl Serialize) -> Vec<u8> {
    let plain = serde_json::to_vec(value).expect("string keys only");
    let entries: Map<String, Value> = serde_json::from_slice(&plain).expect("an object");
    serde_json::to_vec_pretty(&Sealed { value, crc32: checksum(&entries) }).expect("string keys only")
}

/// Whether the object in `text` is what its checksum was taken of. One without a checksum is: somebody took it out, or it was written before there
/// was one. So is what is no object; whoever reads it finds out.
pub(super) fn is_whole(text: &[u8]) -> bool {
    let Ok(mut entries) = serde_json::from_slice::<Map<String, Value>>(text) else { return true };
    match entries.remove(SEAL) {
        Some(found) => found.as_u64() == Some(checksum(&entries).into()),
        None => true,
    }
}

/// CRC-32 of the entries as compact JSON, in the order of their keys.
fn checksum(entries: &Map<String, Value>) -> u32 {
    crc32fast::hash(&serde_json::to_vec(entries).expect("string keys only"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TrainConfig;
    use crate::images::VitTrainConfig;
    use crate::run::RunConfig;

    #[test]
    fn any_other_value_or_key_breaks_the_seal_and_white_space_does_not() {
        let lm = TrainConfig::preset("tiny").expect("a preset");
        let vit = VitTrainConfig::preset("tiny").expect("a preset");
        for config in [RunConfig::from(&lm), RunConfig::from(&vit)] {
            let text = String::from_utf8(seal(&config)).expect("text");
            assert!(is_whole(text.as_bytes()));
            assert!(is_whole(text.replace('\n', " ").as_bytes()));
            assert_eq!(RunConfig::parse(text.as_bytes()).expect("settings"), config);
            for line in text.lines().filter(|line| line.contains(':') && !line.ends_with(['{', '['])) {
                let (key, value) = line.split_once(':').expect("an entry");
                let renamed = format!("{}x\":{value}", key.trim_end_matches('"'));
                let digit = value.find(|c: char| c.is_ascii_digit()).map(|at| {
                    let mut value = value.as_bytes().to_vec();
                    // Another digit: 0 and 1, 2 and 3, ..
                    value[at] ^= 1;
                    format!("{key}:{}", String::from_utf8(value).expect("text"))
                });
                for changed in [Some(renamed), digit].into_iter().flatten() {
                    // Without its name the checksum is one entry more.
                    if !key.contains(SEAL) || changed.contains(&format!("\"{SEAL}\"")) {
                        let text = text.replacen(line, &changed, 1);
                        let is_refused = !is_whole(text.as_bytes()) || RunConfig::parse(text.as_bytes()).is_err();
                        assert!(is_refused, "{line} -> {changed}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_seal_can_be_taken_off() {
        let text = serde_json::to_string(&serde_json::json!({"a": 0.1f32, "b": [1.5, null]})).expect("plain data");
        assert!(is_whole(text.as_bytes()));
        assert!(is_whole(b"[1]") && is_whole(b"no JSON"));
        assert!(!is_whole(b"{\"a\": 1, \"crc32\": 7}") && !is_whole(b"{\"a\": 1, \"crc32\": \"seven\"}"));
    }
}

//! Numbers of a checkpoint as bytes: little-endian, in three widths.

use std::fmt;
use std::str::FromStr;

use half::{bf16, f16};
use safetensors::Dtype;
use thiserror::Error;

/// Dtype of the weights in a checkpoint; in text `"f32"`, `"bf16"`, `"f16"`. Parameters are f32 here always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightDtype {
    /// As parameters are.
    #[default]
    F32,
    /// The upper half of an f32, rounded to the nearest, to even in a tie.
    Bf16,
    /// Half precision, rounded likewise; at most 65,504.
    F16,
}

/// A text that names no [`WeightDtype`].
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("`{0}` is no dtype of weights; there are f32, bf16 and f16")]
pub struct UnknownDtype(String);

impl WeightDtype {
    /// `None` for a dtype that is not one of weights.
    pub(super) fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::F32),
            Dtype::BF16 => Some(Self::Bf16),
            Dtype::F16 => Some(Self::F16),
            _ => None,
        }
    }

    pub(super) fn in_file(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::Bf16 => Dtype::BF16,
            Self::F16 => Dtype::F16,
        }
    }

    pub(super) fn name_in_torch(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }

    /// Bytes of one number.
    pub(super) fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    /// The numbers, exactly.
    pub(super) fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F32 => numbers(bytes, f32::from_le_bytes),
            Self::Bf16 => numbers(bytes, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            Self::F16 => numbers(bytes, |bytes| f16::from_le_bytes(bytes).to_f32()),
        }
    }

    /// The bytes of the numbers, rounded.
    pub(super) fn encode(self, numbers: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => bytes(numbers, f32::to_le_bytes),
            Self::Bf16 => bytes(numbers, |number| bf16::from_f32(number).to_le_bytes()),
            Self::F16 => bytes(numbers, |number| f16::from_f32(number).to_le_bytes()),
        }
    }

    /// Whether rounding makes a finite number infinite.
    pub(super) fn overflows(self, number: f32) -> bool {
        number.is_finite()
            && match self {
                Self::F32 => false,
                Self::Bf16 => bf16::from_f32(number).is_infinite(),
                Self::F16 => f16::from_f32(number).is_infinite(),
            }
    }
}

fn numbers<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    let chunks = bytes.chunks_exact(N);
    chunks.map(|chunk| number(chunk.try_into().expect("a chunk has N bytes"))).collect()
}

fn bytes<const N: usize>(numbers: &[f32], bytes: impl Fn(f32) -> [u8; N]) -> Vec<u8> {
    let mut all = vec![0; N * numbers.len()];
    all.chunks_exact_mut(N).zip(numbers).for_each(|(chunk, &number)| chunk.copy_from_slice(&bytes(number)));
    all
}

impl fmt::Display for WeightDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for WeightDtype {
    type Err = UnknownDtype;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let all = [Self::F32, Self::Bf16, Self::F16];
        all.into_iter().find(|dtype| dtype.name() == text).ok_or_else(|| UnknownDtype(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [WeightDtype; 3] = [WeightDtype::F32, WeightDtype::Bf16, WeightDtype::F16];

    #[test]
    fn what_was_decoded_encodes_to_the_same_bytes() {
        for dtype in ALL {
            let bits = (0..=u16::MAX).step_by(7).flat_map(|bits| [bits, 0x3f80 ^ bits]);
            // NaNs keep being NaNs, but not their payload.
            let bytes: Vec<u8> = bits.filter(|bits| bits & 0x7c00 != 0x7c00).flat_map(u16::to_le_bytes).collect();
            let bytes = &bytes[..bytes.len() / 4 * 4];
            assert_eq!(dtype.encode(&dtype.decode(bytes)), bytes, "{dtype}");
        }
    }

    #[test]
    fn numbers_are_rounded_to_the_nearest_even() {
        let rounded = |dtype: WeightDtype, number: f32| dtype.decode(&dtype.encode(&[number]))[0];
        assert_eq!(rounded(WeightDtype::Bf16, 1.0 + 1.0 / 256.0), 1.0);
        assert_eq!(rounded(WeightDtype::Bf16, 1.0 + 3.0 / 256.0), 1.0 + 4.0 / 256.0);
        assert_eq!(rounded(WeightDtype::F16, 1.0 + 1.0 / 2048.0), 1.0);
        assert_eq!(rounded(WeightDtype::F32, 0.1), 0.1);
    }

    #[test]
    fn only_what_was_finite_can_overflow() {
        assert!(WeightDtype::F16.overflows(70_000.0) && !WeightDtype::F16.overflows(65_504.0));
        assert!(WeightDtype::Bf16.overflows(f32::MAX) && !WeightDtype::F32.overflows(f32::MAX));
        assert!(!WeightDtype::F16.overflows(f32::INFINITY));
    }

    #[test]
    fn names_round_trip() {
        for dtype in ALL {
            assert_eq!(dtype.to_string().parse(), Ok(dtype));
        }
        assert!("f64".parse::<WeightDtype>().expect_err("not one of them").to_string().contains("bf16"));
    }
}

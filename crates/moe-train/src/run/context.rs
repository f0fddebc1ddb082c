//! Figures that give the losses of a run a scale.

use serde::{Deserialize, Serialize};

use crate::images::{ImageData, Standard};

/// What the held-out text is, and how well methods without training do on it.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct Context {
    /// One line on the text, for the reader of the report.
    pub data: String,
    /// Bytes of held-out text per token: relates nats per token to bits per byte.
    pub bytes_per_token: f64,
    /// Lines to draw beside the loss.
    pub references: Vec<Reference>,
    /// CRC-32 of the training text and the held-out text in a row, to tell whether a resumed run still has its text.
    #[serde(default)]
    pub text_crc32: Option<u32>,
}

/// How well one method does on the held-out text.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Reference {
    /// The method, e.g. "unigram entropy" or "gzip -9".
    pub name: String,
    /// Its cross-entropy or compressed size.
    pub bits_per_byte: f64,
}

impl Context {
    /// The cross-entropy in nats per token that `bits_per_byte` amounts to.
    pub fn nats_per_token(&self, bits_per_byte: f64) -> f64 {
        bits_per_byte * std::f64::consts::LN_2 * self.bytes_per_token
    }
}

/// What the images of a run are, and how well a linear model does on those that are held out.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct ImageContext {
    /// One line on the images, for the reader of the report.
    pub data: String,
    /// Names of the classes, by label.
    pub classes: Vec<String>,
    /// What the numbers of an image are made by.
    pub standard: Standard,
    /// Part of the held-out images whose class a linear model on the pixels finds.
    pub linear_accuracy: f64,
    /// CRC-32 of all images, to tell whether a resumed run still has them.
    pub images_crc32: u32,
}

impl ImageContext {
    /// Of images on which a linear model has this accuracy.
    pub fn new(data: &ImageData, linear_accuracy: f64) -> Self {
        Self {
            data: data.description.clone(),
            classes: data.classes.clone(),
            standard: data.standard.clone(),
            linear_accuracy,
            images_crc32: data.checksum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bits_per_byte_are_log_256_nats_per_byte_token() {
        let context = Context { bytes_per_token: 1.0, ..Context::default() };
        assert!((context.nats_per_token(8.0) - 256f64.ln()).abs() < 1e-12);
    }
}

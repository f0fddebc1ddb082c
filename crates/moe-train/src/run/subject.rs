//! What a run counts, and how its model is judged beside the loss.

/// Text or images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Tokens of text are counted, and a model is judged by bits per byte.
    Text,
    /// Images are counted, and a model is judged by the part of them whose class it finds.
    Images {
        /// Tokens that a model makes of one image.
        tokens: usize,
    },
}

impl Subject {
    /// What is counted.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Text => "tokens",
            Self::Images { .. } => "images",
        }
    }

    /// What a speed is given in.
    pub fn per_second(self) -> &'static str {
        match self {
            Self::Text => "tokens per second",
            Self::Images { .. } => "images per second",
        }
    }

    /// One of what is counted.
    pub fn one(self) -> &'static str {
        match self {
            Self::Text => "token",
            Self::Images { .. } => "image",
        }
    }

    /// Tokens, or tokens per second, as a number of units.
    pub fn of_tokens(self, tokens: f64) -> f64 {
        match self {
            Self::Text => tokens,
            Self::Images { tokens: each } => tokens / each as f64,
        }
    }

    /// A score in words.
    pub fn score(self, score: f64) -> String {
        match self {
            Self::Text => format!("{score:.4} bits/byte"),
            Self::Images { .. } => format!("{:.2} % right", 100.0 * score),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_images_are_counted_by_the_image() {
        let images = Subject::Images { tokens: 64 };
        assert_eq!((images.of_tokens(640.0), Subject::Text.of_tokens(640.0)), (10.0, 640.0));
        assert_eq!((images.unit(), images.score(0.5)), ("images", "50.00 % right".to_string()));
    }
}

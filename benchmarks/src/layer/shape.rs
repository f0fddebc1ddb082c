//! Which layers are measured: those of the catalogue that the correctness suite shares, or any other.

use std::str::FromStr;

use moe_tests::{BENCHES, Case, GPU_BENCHES};

/// A layer's sizes under a name.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// A letter of the catalogue, or the five numbers.
    pub(crate) name: String,
    /// The sizes.
    pub(crate) case: Case,
}

impl Shape {
    /// The catalogue's shapes for a processor, or for a GPU.
    pub(crate) fn catalogue(gpu: bool) -> Vec<Self> {
        if gpu { GPU_BENCHES } else { BENCHES }.iter().map(Self::of_catalogue).collect()
    }

    fn of_catalogue(case: &Case) -> Self {
        Self { name: case.name.into(), case: *case }
    }

    /// Rows after dispatch, `R`.
    pub(crate) fn rows(&self) -> usize {
        self.case.tokens * self.case.top_k
    }

    /// Floating point operations of the matrix products of SwiGLU experts, forward: `6 T K D F`.
    pub(crate) fn forward_flops(&self) -> u64 {
        6 * self.rows() as u64 * self.case.d_model as u64 * self.case.d_hidden as u64
    }

    /// The same for forward and backward: `18 T K D F`.
    pub(crate) fn training_flops(&self) -> u64 {
        3 * self.forward_flops()
    }

    /// Bytes of the least that has to be kept for backward: the input `[T, D]` and the pre-activation `[R, 2F]`.
    pub(crate) fn least_saved_bytes(&self, bytes_per_number: usize) -> u64 {
        let numbers = self.case.tokens * self.case.d_model + self.rows() * 2 * self.case.d_hidden;
        (bytes_per_number * numbers) as u64
    }

    /// The same experts on no more tokens than keep `flops` below a limit.
    pub(crate) fn limited(&self, flops: impl Fn(&Self) -> u64, limit: u64) -> Self {
        let per_token = flops(self).div_ceil(self.case.tokens.max(1) as u64).max(1);
        let tokens = self.case.tokens.min((limit / per_token).max(1) as usize);
        Self { name: self.name.clone(), case: Case { tokens, ..self.case } }
    }
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(case) = BENCHES.iter().chain(GPU_BENCHES).find(|case| case.name == text) {
            return Ok(Self::of_catalogue(case));
        }
        let numbers: Option<Vec<usize>> = text.split(',').map(|word| word.trim().parse().ok()).collect();
        let numbers: Option<[usize; 5]> = numbers.and_then(|numbers| numbers.try_into().ok());
        let Some([tokens, d_model, d_hidden, experts, top_k]) = numbers else {
            return Err("expected five numbers T,D,F,E,K or a letter of the catalogue: A, B, C, D, G, H".into());
        };
        if [tokens, d_model, d_hidden, experts, top_k].contains(&0) {
            return Err("none of T, D, F, E and K may be 0".into());
        }
        if top_k > experts {
            return Err(format!("K {top_k} is more than E {experts}: a token has at most every expert"));
        }
        let case = Case { name: "own", tokens, experts, top_k, d_model, d_hidden, busy: experts };
        Ok(Self { name: text.into(), case })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(text: &str) -> Shape {
        text.parse().unwrap()
    }

    #[test]
    fn a_letter_means_the_catalogues_sizes() {
        let case = shape("B").case;
        let sizes = [case.tokens, case.d_model, case.d_hidden, case.experts, case.top_k];
        assert_eq!(sizes, [2048, 512, 128, 64, 8]);
        assert_eq!(Shape::catalogue(false).len(), 4);
    }

    #[test]
    fn odd_sizes_and_every_expert_chosen_are_fine() {
        let case = shape("1,3,5,7,7").case;
        assert_eq!((case.tokens, case.d_model, case.d_hidden, case.experts, case.top_k), (1, 3, 5, 7, 7));
    }

    #[test]
    fn what_is_no_shape_is_refused() {
        for text in
            ["", "E", "1,2,3,4", "1,2,3,4,5,6", "1,2,3,x,1", "-1,2,3,4,1", "0,2,3,4,1", "8,2,3,4,0", "8,2,3,4,5"]
        {
            assert!(text.parse::<Shape>().is_err(), "{text}");
        }
    }

    #[test]
    fn flops_are_those_of_the_floor() {
        // A: 4096 rows; 2 * (512 * 1280 + 640 * 512) a row and three times that with backward.
        let a = shape("A");
        assert_eq!(a.forward_flops(), 4096 * 2 * (512 * 1280 + 640 * 512));
        assert_eq!(a.training_flops(), 24_159_191_040);
    }

    #[test]
    fn the_least_that_is_saved_at_b_is_21_megabytes() {
        assert_eq!(shape("B").least_saved_bytes(4), 4 * (2048 * 512 + 2048 * 8 * 2 * 128));
    }

    #[test]
    fn fewer_tokens_keep_a_limit_and_none_are_added() {
        let limited = |limit| shape("A").limited(Shape::forward_flops, limit).case.tokens;
        assert_eq!(limited(shape("A").forward_flops() / 4), 512);
        assert_eq!((limited(u64::MAX), limited(1)), (2048, 1));
    }
}

//! One catalogue of routing situations feeds every suite and the benchmarks: what is timed large is tested small.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Sizes and the kind of load of one situation.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// What is special about it.
    pub name: &'static str,
    /// Tokens, `T`.
    pub tokens: usize,
    /// Experts, `E`.
    pub experts: usize,
    /// Experts per token, `K`.
    pub top_k: usize,
    /// Token width, `D`.
    pub d_model: usize,
    /// Expert width, `F`.
    pub d_hidden: usize,
    /// Experts `0..busy` are chosen from; the others stay idle.
    pub busy: usize,
}

const fn case(name: &'static str, sizes: [usize; 5], busy: usize) -> Case {
    let [tokens, experts, top_k, d_model, d_hidden] = sizes;
    Case { name, tokens, experts, top_k, d_model, d_hidden, busy }
}

/// The shapes of the layer benchmark on a CPU; the letter is the name in every record.
pub const BENCHES: &[Case] = &[
    case("A", [2048, 8, 2, 512, 640], 8),
    case("B", [2048, 64, 8, 512, 128], 64),
    case("C", [4096, 16, 2, 256, 256], 16),
    case("D", [3200, 8, 1, 192, 768], 8),
];

/// The shapes of the layer benchmark on a GPU: many small experts, and a few of Mixtral's size.
pub const GPU_BENCHES: &[Case] =
    &[case("G", [16_384, 64, 8, 2048, 1024], 64), case("H", [4096, 8, 2, 4096, 14_336], 8)];

/// A shape of [`BENCHES`] with the same experts, its other sizes divided so that an oracle is quick.
const fn relative(name: &'static str, of: &Case) -> Case {
    let (tokens, width) = (of.tokens / 64, 16);
    case(name, [tokens, of.experts, of.top_k, of.d_model / width, of.d_hidden / width], of.busy)
}

/// On CUDA one token: no operation of burn 0.21 takes an empty tensor there, since CUDA refuses a kernel of no blocks. That ours do shows
/// `no_tokens_need_no_kernel`.
const NO_TOKENS: Case = match takes_empty_tensors() {
    true => case("no tokens", [0, 4, 2, 3, 5], 4),
    false => case("one token of three", [1, 4, 2, 3, 5], 3),
};

/// Whether burn's own operations on the device of the suite take empty tensors.
pub const fn takes_empty_tensors() -> bool {
    !cfg!(feature = "cuda")
}

/// Every situation that has its own way to go wrong.
pub const CASES: &[Case] = &[
    case("regular", [16, 4, 2, 8, 12], 4),
    case("odd sizes", [13, 5, 3, 7, 9], 5),
    case("top-1", [11, 3, 1, 4, 6], 3),
    case("every expert", [6, 4, 4, 5, 3], 4),
    case("idle experts", [9, 6, 2, 4, 5], 3),
    case("one expert owns all", [8, 4, 1, 4, 5], 1),
    case("one token", [1, 4, 2, 3, 5], 4),
    NO_TOKENS,
    case("one expert", [5, 1, 1, 4, 3], 1),
    case("several blocks of rows", [2100, 2, 1, 3, 2], 1),
    case("many small experts", [24, 32, 6, 6, 2], 32),
    relative("bench A, small", &BENCHES[0]),
    relative("bench B, small", &BENCHES[1]),
    relative("bench C, small", &BENCHES[2]),
    relative("bench D, small", &BENCHES[3]),
];

/// [`CASES`], but only the first `few` on a software GPU, which compiles kernels for every new shape.
pub fn cases(few: usize) -> &'static [Case] {
    if crate::on_software_gpu() { &CASES[..few] } else { CASES }
}

/// Larger than what a GPU's kernels do at once: several blocks of slots, more experts than a block has units, several
/// tiles for an expert and a ragged last one, nearly all rows with one expert. The wide one is what CPU threads share: the
/// gradient of a weight in several pieces, of more rows than a piece has.
pub const LARGE_CASES: &[Case] = &[
    case("several blocks of slots", [301, 7, 3, 8, 12], 7),
    case("more experts than a block", [90, 300, 4, 4, 6], 290),
    case("several tiles each", [130, 3, 2, 36, 20], 3),
    case("two experts own all", [97, 9, 2, 19, 35], 2),
    case("wide", [40, 3, 2, 300, 140], 3),
];

impl Case {
    /// Distinct experts for every token, `[T * K]`, out of the busy ones.
    pub fn assignment(&self) -> Vec<usize> {
        let mut rng = StdRng::seed_from_u64(self.tokens as u64 * 31 + self.experts as u64);
        let mut chosen = Vec::new();
        for _ in 0..self.tokens {
            let mut pool: Vec<usize> = (0..self.busy).collect();
            for _ in 0..self.top_k {
                chosen.push(pool.swap_remove(rng.random_range(0..pool.len())));
            }
        }
        chosen
    }
}

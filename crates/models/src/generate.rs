//! Text from a model, one token at a time.
//!
//! The first pass encodes the prompt, every later one a single token, with a [key/value cache](crate::lm::KvCache).
//!
//! # When the context is full
//!
//! A model sees at most `max_seq_len` tokens. When the prompt and what has been generated would exceed that, the cache is
//! cleared and the last `max_seq_len / 2` tokens (at least 1) are encoded anew, as positions from 0 on. So every token
//! is predicted from at least half a context, and encoding anew costs about one more token's work per generated token at worst.
//! A prompt that is too long is cut by the same rule.

use burn::config::Config;
use burn::tensor::{DType, Int, Tensor, TensorData};
use moe_kernels::MoeBackend;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use thiserror::Error;

use crate::lm::{KvCache, Lm};

/// How the next token is chosen from its probabilities, and which one ends the text.
#[derive(Config, Debug, PartialEq)]
pub struct SamplingConfig {
    /// Divides the logits; 0 always takes the most probable token (the lower one on a tie).
    #[config(default = 1.0)]
    pub temperature: f64,
    /// Only the most probable tokens are kept that together reach this probability, in (0, 1]. 1 keeps all
    /// ([Holtzman et al., 2020](https://arxiv.org/abs/1904.09751)).
    #[config(default = 1.0)]
    pub top_p: f64,
    /// Seed of the choices: the same model, prompt and seed give the same tokens.
    #[config(default = 0)]
    pub seed: u64,
    /// Tokens that end the text, each of them; none unless given. One outside the vocabulary is never chosen.
    #[config(default = "Vec::new()")]
    pub stop: Vec<u32>,
}

/// Why nothing can be generated.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum GenerateError {
    /// There is no token to predict from.
    #[error("the prompt is empty; give at least one token, for instance a line break")]
    EmptyPrompt,
    /// The prompt was made with another vocabulary.
    #[error(
        "token {token} of the prompt is outside the model's vocabulary of {vocab_size}; use the tokenizer that the \
         model was trained with"
    )]
    TokenOutOfRange {
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// The temperature is negative or not a number.
    #[error("temperature is {0}; it must be a finite number, 0 (always the most probable token) or above")]
    Temperature(f64),
    /// The nucleus would be empty.
    #[error("top_p is {0}; it must be above 0 and at most 1")]
    TopP(f64),
}

impl SamplingConfig {
    /// # Errors
    ///
    /// Returns an error when `temperature` or `top_p` is out of its range.
    pub fn validate(&self) -> Result<(), GenerateError> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(GenerateError::Temperature(self.temperature));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(GenerateError::TopP(self.top_p));
        }
        Ok(())
    }
}

/// Continues `prompt` by at most `max_new_tokens` tokens; `on_token` sees each as soon as it is chosen.
///
/// Returns the new tokens, without the prompt. A token of [`SamplingConfig::stop`] ends the text before that; it is neither
/// seen nor returned. See the [module](self) for what happens when the context is full.
///
/// # Errors
///
/// Returns an error, before any work, for an empty prompt, a token outside the vocabulary, or sampling settings out
/// of range.
pub fn generate<B: MoeBackend>(
    model: &Lm<B>,
    prompt: &[u32],
    max_new_tokens: usize,
    sampling: &SamplingConfig,
    device: &B::Device,
    mut on_token: impl FnMut(u32),
) -> Result<Vec<u32>, GenerateError> {
    sampling.validate()?;
    check_prompt(prompt, model.config().vocab_size)?;
    let mut context = Context::new(model, prompt, max_new_tokens, device);
    let mut rng = StdRng::seed_from_u64(sampling.seed);
    for _ in 0..max_new_tokens {
        let token = choose(&context.next_logits(), sampling, &mut rng);
        if sampling.stop.contains(&token) {
            break;
        }
        on_token(token);
        context.tokens.push(token);
    }
    Ok(context.tokens.split_off(prompt.len()))
}

fn check_prompt(prompt: &[u32], vocab_size: usize) -> Result<(), GenerateError> {
    if prompt.is_empty() {
        return Err(GenerateError::EmptyPrompt);
    }
    match prompt.iter().find(|&&token| token as usize >= vocab_size) {
        Some(&token) => Err(GenerateError::TokenOutOfRange { token, vocab_size }),
        None => Ok(()),
    }
}

/// The text so far and what the model remembers of it.
struct Context<'a, B: MoeBackend> {
    model: &'a Lm<B>,
    device: &'a B::Device,
    /// Holds a run of `tokens` that ends where the unseen ones begin.
    cache: KvCache<B>,
    tokens: Vec<u32>,
}

impl<'a, B: MoeBackend> Context<'a, B> {
    /// With room for the whole text, or for a full context where that is less.
    fn new(model: &'a Lm<B>, prompt: &[u32], max_new_tokens: usize, device: &'a B::Device) -> Self {
        let cache = model.new_cache().with_capacity(prompt.len().saturating_add(max_new_tokens));
        Self { model, device, cache, tokens: prompt.to_vec() }
    }

    /// Logits `[V]` of the token after the last.
    fn next_logits(&mut self) -> Vec<f32> {
        let unseen = self.unseen();
        let ids: Vec<i64> = self.tokens[self.tokens.len() - unseen..].iter().map(|&token| i64::from(token)).collect();
        let ids = Tensor::<B, 2, Int>::from_data(TensorData::new(ids, [1, unseen]), self.device);
        let logits = self.model.forward_cached(ids, &mut self.cache);
        let vocab_size = logits.dims()[2];
        let last = logits.slice([0..1, unseen - 1..unseen, 0..vocab_size]).cast(DType::F32);
        last.into_data().to_vec().expect("logits are f32")
    }

    /// How many tokens at the end to encode now; clears the cache when they do not fit behind it.
    fn unseen(&mut self) -> usize {
        let unseen = if self.cache.is_empty() { self.tokens.len() } else { 1 };
        let capacity = self.cache.capacity();
        if self.cache.len() + unseen <= capacity {
            return unseen;
        }
        self.cache.clear();
        (capacity / 2).max(1)
    }
}

/// The index of the chosen token.
fn choose(logits: &[f32], sampling: &SamplingConfig, rng: &mut StdRng) -> u32 {
    let ranked = rank(logits);
    if sampling.temperature == 0.0 {
        return ranked[0] as u32;
    }
    let weights = weights(logits, &ranked, sampling.temperature);
    let nucleus = nucleus(&weights, sampling.top_p);
    let mut remaining = rng.random::<f64>() * weights[..nucleus].iter().sum::<f64>();
    let chosen = weights[..nucleus].iter().position(|weight| {
        remaining -= weight;
        remaining < 0.0
    });
    ranked[chosen.unwrap_or(nucleus - 1)] as u32
}

/// Tokens from the most to the least probable; the lower index first on a tie, NaN last.
fn rank(logits: &[f32]) -> Vec<usize> {
    let key = |i: usize| if logits[i].is_nan() { f32::NEG_INFINITY } else { logits[i] };
    let mut ranked: Vec<usize> = (0..logits.len()).collect();
    ranked.sort_by(|&a, &b| key(b).total_cmp(&key(a)));
    ranked
}

/// Probabilities in ranked order, up to a factor: the first is 1.
fn weights(logits: &[f32], ranked: &[usize], temperature: f64) -> Vec<f64> {
    let largest = f64::from(logits[ranked[0]]);
    let weight = |&i: &usize| ((f64::from(logits[i]) - largest) / temperature).exp();
    ranked.iter().map(weight).map(|weight| if weight.is_nan() { 0.0 } else { weight }).collect()
}

/// Length of the shortest beginning of `weights` that holds the share `top_p` of their sum; at least 1.
fn nucleus(weights: &[f64], top_p: f64) -> usize {
    let wanted = top_p * weights.iter().sum::<f64>();
    let mut sum = 0.0;
    let reached = weights.iter().position(|weight| {
        sum += weight;
        sum >= wanted
    });
    reached.map_or(weights.len(), |last| last + 1)
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::backend::Backend;

    use super::*;
    use crate::lm::{LmConfig, LmMoeConfig};

    const VOCAB: usize = 17;

    fn model(max_seq_len: usize) -> Lm<Flex> {
        let device = Default::default();
        Flex::seed(&device, 3);
        let moe = LmMoeConfig::new(4, 2, 8);
        LmConfig::new(VOCAB, 16, 2, 2, 16, max_seq_len).with_moe(moe).with_init_std(0.5).init(&device)
    }

    fn run(model: &Lm<Flex>, prompt: &[u32], count: usize, sampling: &SamplingConfig) -> Vec<u32> {
        generate(model, prompt, count, sampling, &Default::default(), |_| ()).expect("a valid request")
    }

    /// The most probable token after `tokens`, without a cache.
    fn greedy(model: &Lm<Flex>, tokens: &[u32]) -> u32 {
        let ids: Vec<i64> = tokens.iter().map(|&token| i64::from(token)).collect();
        let ids = Tensor::from_data(TensorData::new(ids, [1, tokens.len()]), &Default::default());
        let logits: Vec<f32> = model.forward(ids).logits.into_data().to_vec().expect("f32");
        rank(&logits[logits.len() - VOCAB..])[0] as u32
    }

    #[test]
    fn temperature_zero_is_greedy_and_slides_when_the_context_is_full() {
        let model = model(8);
        let prompt = [1, 2, 3];
        let tokens = run(&model, &prompt, 20, &SamplingConfig::new().with_temperature(0.0));
        let mut text = prompt.to_vec();
        let mut start = 0;
        for token in tokens {
            if text.len() - start > 8 {
                start = text.len() - 4;
            }
            assert_eq!(token, greedy(&model, &text[start..]), "after {} tokens", text.len());
            text.push(token);
        }
        assert!(start > 8, "the context was full more than once");
    }

    #[test]
    fn memory_is_taken_for_the_text_and_never_for_more_than_the_context() {
        let model = model(32);
        let capacity =
            |max_new_tokens| Context::new(&model, &[1, 2, 3], max_new_tokens, &Default::default()).cache.capacity();
        assert_eq!([0, 5, 29, 30, usize::MAX].map(capacity), [3, 8, 32, 32, 32]);
    }

    #[test]
    fn a_text_that_fits_is_predicted_from_all_of_it() {
        let sampling = SamplingConfig::new().with_temperature(0.0);
        for max_seq_len in [8, 9, 32] {
            let model = model(max_seq_len);
            let mut text = vec![1, 2, 3];
            for token in run(&model, &[1, 2, 3], 5, &sampling) {
                assert_eq!(token, greedy(&model, &text), "after {} of {max_seq_len} tokens", text.len());
                text.push(token);
            }
        }
    }

    #[test]
    fn a_prompt_longer_than_the_context_is_cut_to_its_last_half() {
        let model = model(8);
        let prompt: Vec<u32> = (0..13).collect();
        let greedy_sampling = SamplingConfig::new().with_temperature(0.0);
        assert_eq!(run(&model, &prompt, 5, &greedy_sampling), run(&model, &prompt[9..], 5, &greedy_sampling));
    }

    #[test]
    fn a_context_of_one_token_works() {
        assert_eq!(run(&model(1), &[1, 2], 3, &SamplingConfig::new()).len(), 3);
    }

    #[test]
    fn the_seed_decides() {
        let model = model(32);
        let sample = |seed| run(&model, &[5], 24, &SamplingConfig::new().with_seed(seed));
        assert_eq!(sample(7), sample(7));
        assert_ne!(sample(7), sample(8));
    }

    #[test]
    fn a_stop_token_ends_the_text_before_it() {
        let model = model(32);
        let sampling = SamplingConfig::new().with_seed(7);
        let all = run(&model, &[5], 24, &sampling);
        for stop in [vec![all[4]], vec![all[20], all[9]], vec![5], vec![u32::MAX]] {
            let expected: Vec<u32> = all.iter().copied().take_while(|token| !stop.contains(token)).collect();
            let sampling = sampling.clone().with_stop(stop);
            let mut streamed = Vec::new();
            let tokens = generate(&model, &[5], 24, &sampling, &Default::default(), |token| streamed.push(token));
            assert_eq!((tokens.as_ref(), &streamed), (Ok(&expected), &expected), "{:?}", sampling.stop);
        }
    }

    #[test]
    fn tokens_are_streamed_in_order() {
        let mut streamed = Vec::new();
        let sampling = SamplingConfig::new();
        let tokens = generate(&model(8), &[0], 6, &sampling, &Default::default(), |token| streamed.push(token));
        assert_eq!(tokens, Ok(streamed));
    }

    #[test]
    fn impossible_requests_are_errors() {
        let model = model(8);
        let request = |prompt: &[u32], sampling| generate(&model, prompt, 1, &sampling, &Default::default(), |_| ());
        assert_eq!(request(&[], SamplingConfig::new()), Err(GenerateError::EmptyPrompt));
        let outside = GenerateError::TokenOutOfRange { token: 17, vocab_size: VOCAB };
        assert_eq!(request(&[1, 17], SamplingConfig::new()), Err(outside));
        let cold = SamplingConfig::new().with_temperature(-0.5);
        assert_eq!(request(&[1], cold), Err(GenerateError::Temperature(-0.5)));
        for top_p in [0.0, 1.1, -1.0] {
            assert_eq!(request(&[1], SamplingConfig::new().with_top_p(top_p)), Err(GenerateError::TopP(top_p)));
        }
        assert!(matches!(
            request(&[1], SamplingConfig::new().with_top_p(f64::NAN)),
            Err(GenerateError::TopP(top_p)) if top_p.is_nan()
        ));
    }

    #[test]
    fn top_p_keeps_the_shortest_sufficient_beginning() {
        let weights = [0.5, 0.25, 0.125, 0.125];
        assert_eq!(nucleus(&weights, 0.5), 1);
        assert_eq!(nucleus(&weights, 0.51), 2);
        assert_eq!(nucleus(&weights, 0.75), 2);
        assert_eq!(nucleus(&weights, 1.0), 4);
        assert_eq!(nucleus(&weights, 1e-9), 1);
    }

    #[test]
    fn samples_follow_the_probabilities() {
        const DRAWS: usize = 20_000;
        /// Five standard deviations of a share of 1/2 over `DRAWS` draws.
        const TOLERANCE: f64 = 0.018;
        let logits = [0.25f32.ln(), 0.125f32.ln(), 0.5f32.ln(), 0.125f32.ln()];
        let mut rng = StdRng::seed_from_u64(1);
        let mut counts = [0usize; 4];
        for _ in 0..DRAWS {
            counts[choose(&logits, &SamplingConfig::new(), &mut rng) as usize] += 1;
        }
        for (count, expected) in counts.into_iter().zip([0.25, 0.125, 0.5, 0.125]) {
            let share = count as f64 / DRAWS as f64;
            assert!((share - expected).abs() < TOLERANCE, "{share} instead of {expected}");
        }
    }

    #[test]
    fn a_low_top_p_excludes_the_rest() {
        let logits = [0.0f32, 3.0, 1.0];
        let mut rng = StdRng::seed_from_u64(1);
        let sampling = SamplingConfig::new().with_top_p(0.5);
        assert!((0..1000).all(|_| choose(&logits, &sampling, &mut rng) == 1));
    }

    #[test]
    fn ties_go_to_the_lower_token_and_nan_is_never_chosen() {
        let mut rng = StdRng::seed_from_u64(1);
        let greedy = SamplingConfig::new().with_temperature(0.0);
        assert_eq!(choose(&[1.0, 2.0, 2.0], &greedy, &mut rng), 1);
        assert_eq!(choose(&[f32::NAN, -1.0, -2.0], &greedy, &mut rng), 1);
        assert!((0..100).all(|_| choose(&[f32::NAN, -1.0, -2.0], &SamplingConfig::new(), &mut rng) != 0));
    }
}

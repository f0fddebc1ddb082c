//! Causal self-attention with grouped queries: projections around [`moe_kernels::causal_attention`].
//!
//! Not `burn::tensor::module::attention`, which under autodiff keeps every score, and which would make validation
//! (fused) differ from training (not fused) in the last bits.

use burn::module::{Initializer, Module, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use moe_kernels::{MoeBackend, causal_attention};
use moe_layers::project;

use super::cache::LayerCache;
use super::norm::Norm;
use super::rotary::{Rotary, RotaryTable};
use super::{LmConfig, QkNorm};

/// Queries of `H` heads look at keys and values of `C` heads; query head `h` uses key/value head `h * C / H`
/// ([Ainslie et al., 2023](https://arxiv.org/abs/2305.13245)).
#[derive(Module, Debug)]
pub struct Attention<B: Backend> {
    /// `[D, H * A]`.
    pub query: Param<Tensor<B, 2>>,
    /// `[D, C * A]`.
    pub key: Param<Tensor<B, 2>>,
    /// `[D, C * A]`.
    pub value: Param<Tensor<B, 2>>,
    /// `[H * A, D]`.
    pub output: Param<Tensor<B, 2>>,
    /// Over `A` or `H * A` channels, the gain's width says which.
    pub query_norm: Option<Norm<B>>,
    /// Over `A` or `C * A` channels.
    pub key_norm: Option<Norm<B>>,
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
}

/// What all layers of one forward pass share.
#[derive(Debug, Clone)]
pub(crate) struct Positions<B: Backend> {
    /// `B`.
    batch: usize,
    /// `S`.
    len: usize,
    /// Position of the first token; those before it are in the cache.
    start: usize,
    /// The tokens, `[B, S]`.
    tokens: Tensor<B, 2, Int>,
    rotary: RotaryTable<B>,
}

impl<B: Backend> Positions<B> {
    /// Those of `tokens` `[B, S]`, which continue `start` earlier ones.
    pub(crate) fn new(rotary: &Rotary<B>, tokens: Tensor<B, 2, Int>, start: usize) -> Self {
        let [batch, len] = tokens.dims();
        Self { batch, len, start, tokens, rotary: rotary.table(start, len) }
    }

    /// `[B, S]`.
    pub(crate) fn shape(&self) -> [usize; 2] {
        [self.batch, self.len]
    }

    /// Ids of the tokens, `[B * S]`.
    pub(crate) fn ids(&self) -> Tensor<B, 1, Int> {
        self.tokens.clone().reshape([self.batch * self.len])
    }
}

impl<B: Backend> Attention<B> {
    pub(crate) fn new(config: &LmConfig, device: &B::Device) -> Self {
        let (heads, kv_heads, head_dim) = (config.num_heads, config.kv_heads(), config.head_width());
        let (d_model, epsilon) = (config.d_model, config.norm_eps);
        let matrix = |rows, columns, std| Initializer::Normal { mean: 0.0, std }.init([rows, columns], device);
        let norm = |heads: usize| match config.qk_norm {
            QkNorm::None => None,
            QkNorm::PerHead => Some(Norm::rms(head_dim, epsilon, device)),
            QkNorm::Full => Some(Norm::rms(heads * head_dim, epsilon, device)),
        };
        Self {
            query: matrix(d_model, heads * head_dim, config.init_std),
            key: matrix(d_model, kv_heads * head_dim, config.init_std),
            value: matrix(d_model, kv_heads * head_dim, config.init_std),
            output: matrix(heads * head_dim, d_model, config.residual_std()),
            query_norm: norm(heads),
            key_norm: norm(kv_heads),
            num_heads: heads,
            num_kv_heads: kv_heads,
            head_dim,
        }
    }
}

impl<B: MoeBackend> Attention<B> {
    /// The layer by itself: whole sequences, each from position 0.
    ///
    /// # Shapes
    ///
    /// - x: `[B, S, D]`
    /// - output: `[B, S, D]`, dtype of the input; norms and softmax are computed in f32
    ///
    /// # Panics
    ///
    /// Panics when the last dimension is not `D`, and when `S` is more than the positions of `rotary`.
    pub fn forward_sequences(&self, x: Tensor<B, 3>, rotary: &Rotary<B>) -> Tensor<B, 3> {
        let ([batch, len, width], d_model) = (x.dims(), self.query.dims()[0]);
        assert_eq!(width, d_model, "Attention: x [B, S, D] must have D = {d_model}");
        let positions = Positions::new(rotary, Tensor::zeros([batch, len], &x.device()), 0);
        self.forward(x.reshape([batch * len, width]), &positions, None).reshape([batch, len, width])
    }

    /// # Shapes
    ///
    /// - x: `[B * S, D]`
    /// - output: `[B * S, D]`
    pub(crate) fn forward(
        &self,
        x: Tensor<B, 2>,
        positions: &Positions<B>,
        cache: Option<&mut LayerCache<B>>,
    ) -> Tensor<B, 2> {
        let query = normalize(&self.query_norm, project(x.clone(), &self.query));
        let key = normalize(&self.key_norm, project(x.clone(), &self.key));
        let query = positions.rotary.apply(self.heads(query, self.num_heads, positions));
        let key = positions.rotary.apply(self.heads(key, self.num_kv_heads, positions));
        let value = self.heads(project(x, &self.value), self.num_kv_heads, positions);

        let [keys, values] = match cache {
            Some(cache) => cache.extend(positions.start, [key, value]),
            None => [key, value],
        };
        let mixed = causal_attention(query, keys, values, (self.head_dim as f64).sqrt().recip());
        let tokens = positions.batch * positions.len;
        project(mixed.reshape([tokens, self.num_heads * self.head_dim]), &self.output)
    }

    /// `[B * S, heads * A]` to `[B, S, heads, A]`.
    fn heads(&self, x: Tensor<B, 2>, heads: usize, positions: &Positions<B>) -> Tensor<B, 4> {
        x.reshape([positions.batch, positions.len, heads, self.head_dim])
    }
}

/// Normalises groups of as many channels as the norm has.
fn normalize<B: MoeBackend>(norm: &Option<Norm<B>>, x: Tensor<B, 2>) -> Tensor<B, 2> {
    let Some(norm) = norm else { return x };
    let [tokens, channels] = x.dims();
    let [width] = norm.gamma.dims();
    norm.forward(x.reshape([tokens * channels / width, width])).reshape([tokens, channels])
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;

    use super::super::MoeLayers;
    use super::*;

    fn attend(shape: [usize; 3]) -> [usize; 3] {
        let config = LmConfig::new(8, 16, 1, 4, 24, 6).with_moe_layers(MoeLayers::None);
        let model = config.init::<Flex>(&Default::default());
        let x = Tensor::zeros(shape, &Default::default());
        model.blocks[0].attention.forward_sequences(x, &model.rotary).dims()
    }

    #[test]
    #[should_panic(expected = "must have D = 16")]
    fn another_width_panics() {
        attend([2, 6, 15]);
    }

    #[test]
    #[should_panic(expected = "a table must be [S, A / 2]")]
    fn more_positions_than_there_are_panic() {
        assert_eq!(attend([2, 6, 16]), [2, 6, 16]);
        attend([2, 7, 16]);
    }
}

//! The decoder-only transformer.

use burn::module::{Initializer, Module, ModuleVisitor, Param};
use burn::tensor::backend::Backend;
use burn::tensor::module::embedding;
use burn::tensor::{DType, Int, Tensor};
use moe_kernels::{MoeBackend, linear_transposed};
use moe_layers::project;

use super::attention::Positions;
use super::loss::cross_entropy;
use super::rotary::Rotary;
use super::{Block, KvCache, LmConfig, LmLoss, LmOutput, MoeLayerOutput, Norm};

/// A decoder-only language model; created by [`LmConfig::init`].
///
/// Parameters are f32. Activations are f32 too unless [`with_dtype`](Self::with_dtype) says otherwise; routers,
/// normalisation, softmax and losses are f32 always.
#[derive(Module, Debug)]
pub struct Lm<B: Backend> {
    /// `[V, D]`.
    pub embedding: Param<Tensor<B, 2>>,
    /// The layers, first to last.
    pub blocks: Vec<Block<B>>,
    /// Before the output matrix.
    pub final_norm: Norm<B>,
    /// `[D, V]`; `None` when the embedding is used for it.
    pub lm_head: Option<Param<Tensor<B, 2>>>,
    /// The rotations of all positions.
    pub rotary: Rotary<B>,
    #[module(skip)]
    pub(super) config: LmConfig,
    #[module(skip)]
    pub(super) dtype: DType,
}

impl LmConfig {
    /// Draws the initial weights from the device's random generator, all of them now, in a fixed order: after
    /// `B::seed(device, seed)` they are a function of the seed.
    ///
    /// # Panics
    ///
    /// Panics with the message of [`validate`](Self::validate) when that returns an error.
    pub fn init<B: MoeBackend>(&self, device: &B::Device) -> Lm<B> {
        if let Err(error) = self.validate() {
            panic!("not a model: {error}");
        }
        let model = self.undrawn(device);
        model.visit(&mut DrawNow);
        model
    }

    /// A model whose parameters are drawn when they are first read, for who replaces them; of a valid configuration.
    pub(crate) fn undrawn<B: MoeBackend>(&self, device: &B::Device) -> Lm<B> {
        let matrix = |shape| Initializer::Normal { mean: 0.0, std: self.init_std }.init(shape, device);
        Lm {
            embedding: matrix([self.vocab_size, self.d_model]),
            blocks: (0..self.num_layers).map(|layer| Block::new(self, layer, device)).collect(),
            final_norm: Norm::new(self, device),
            lm_head: (!self.tie_embeddings).then(|| matrix([self.d_model, self.vocab_size])),
            rotary: Rotary::new(self, device),
            config: self.clone(),
            dtype: DType::F32,
        }
    }
}

/// burn draws a parameter when it is first read; this reads all of them.
pub(crate) struct DrawNow;

impl<B: Backend> ModuleVisitor<B> for DrawNow {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let _ = param.val();
    }
}

impl<B: MoeBackend> Lm<B> {
    /// Sets the dtype of activations and of the operands of matrix products.
    ///
    /// # Panics
    ///
    /// Panics when `dtype` is not a float.
    pub fn with_dtype(mut self, dtype: DType) -> Self {
        assert!(dtype.is_float(), "activations must be floats, got {dtype:?}");
        self.dtype = dtype;
        self
    }

    /// What this model was made from.
    pub fn config(&self) -> &LmConfig {
        &self.config
    }

    /// An empty cache for [`forward_cached`](Self::forward_cached).
    pub fn new_cache(&self) -> KvCache<B> {
        KvCache::new(self.blocks.len(), self.config.max_seq_len)
    }

    /// Logits of the token after each position, which depend on the tokens up to there only.
    ///
    /// # Shapes
    ///
    /// - tokens: `[B, S]`, values in `0..V`
    /// - output: logits `[B, S, V]`
    ///
    /// # Panics
    ///
    /// Panics when `S` is more than `max_seq_len`, or `B` or `S` is 0.
    pub fn forward(&self, tokens: Tensor<B, 2, Int>) -> LmOutput<B> {
        let [batch, len] = tokens.dims();
        let (logits, layers) = self.run(tokens, None);
        LmOutput { logits: logits.reshape([batch, len, self.config.vocab_size]), layers }
    }

    /// Like [`forward`](Self::forward) for tokens that continue those in `cache`, which it adds them to.
    ///
    /// # Shapes
    ///
    /// - tokens: `[B, S]`, the new ones only; `B` must stay the same for a cache
    /// - output: logits `[B, S, V]` of the new positions
    ///
    /// # Panics
    ///
    /// Panics when the cache has no room for `S` more positions or holds a batch of another size, or `B` or `S` is 0.
    pub fn forward_cached(&self, tokens: Tensor<B, 2, Int>, cache: &mut KvCache<B>) -> Tensor<B, 3> {
        let [batch, len] = tokens.dims();
        let (logits, _) = self.run(tokens, Some(cache));
        logits.reshape([batch, len, self.config.vocab_size])
    }

    /// The training loss of predicting `targets`, usually `tokens` shifted by one.
    ///
    /// # Shapes
    ///
    /// - tokens, targets: `[B, S]`, values in `0..V`
    ///
    /// # Panics
    ///
    /// Panics when the shapes differ, `S` is more than `max_seq_len`, or `B` or `S` is 0.
    pub fn loss(&self, tokens: Tensor<B, 2, Int>, targets: Tensor<B, 2, Int>) -> LmLoss<B> {
        assert_eq!(tokens.dims(), targets.dims(), "every token needs one target");
        let [batch, len] = tokens.dims();
        let (logits, layers) = self.run(tokens, None);
        LmLoss::new(cross_entropy(logits, targets.reshape([batch * len])), layers, &self.config.moe)
    }

    /// Logits `[B * S, V]` in f32.
    fn run(
        &self,
        tokens: Tensor<B, 2, Int>,
        mut cache: Option<&mut KvCache<B>>,
    ) -> (Tensor<B, 2>, Vec<MoeLayerOutput<B>>) {
        let shape = tokens.dims();
        let start = cache.as_ref().map_or(0, |cache| cache.len());
        self.check_shape(shape, start);
        let positions = Positions::new(&self.rotary, tokens.clone(), start);
        let mut x = self.embed(tokens);
        let mut layers = Vec::new();
        for (layer, block) in self.blocks.iter().enumerate() {
            let layer_cache = cache.as_mut().map(|cache| &mut cache.layers[layer]);
            let (output, routed) = block.forward(x, layer, &positions, layer_cache);
            x = output;
            layers.extend(routed);
        }
        if let Some(cache) = cache {
            cache.len = start + shape[1];
        }
        (self.unembed(self.final_norm.forward(x)), layers)
    }

    fn check_shape(&self, [batch, len]: [usize; 2], start: usize) {
        let max = self.config.max_seq_len;
        assert!(batch > 0 && len > 0, "tokens [B, S] must not be empty, got [{batch}, {len}]");
        assert!(start + len <= max, "{start} cached and {len} new tokens are more than max_seq_len = {max}");
    }

    /// `[B, S]` to `[B * S, D]`.
    fn embed(&self, tokens: Tensor<B, 2, Int>) -> Tensor<B, 2> {
        let [batch, len] = tokens.dims();
        let x = self.without_padding_gradient(embedding(self.embedding.val(), tokens.clone()), tokens);
        x.cast(self.dtype).reshape([batch * len, self.config.d_model])
    }

    /// The same numbers `[B, S, D]`, through which nothing flows back to the row of the padding token.
    fn without_padding_gradient(&self, x: Tensor<B, 3>, tokens: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        match self.config.padding_id.filter(|_| B::ad_enabled(&x.device())) {
            Some(id) => {
                let padding = tokens.equal_elem(id as i64).unsqueeze_dim::<3>(2).expand(x.shape());
                x.clone().mask_where(padding, x.detach())
            }
            None => x,
        }
    }

    /// `[T, D]` to `[T, V]`, f32.
    fn unembed(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let logits = match &self.lm_head {
            Some(head) => project(x, head),
            None => {
                let weight = self.embedding.val().cast(x.dtype());
                linear_transposed(x, weight)
            }
        };
        logits.cast(DType::F32)
    }
}

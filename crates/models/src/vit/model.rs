//! The vision transformer.

use burn::module::{Initializer, Module, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use default_moe::DefaultVectors;
use default_moe::optimizer::HasDefaultVectors;
use moe_kernels::{MoeBackend, linear, sum_dim};
use moe_layers::router::optimizer::HasRouters;
use moe_layers::{Router, project};

use super::{Pooling, VitBlock, VitConfig};
use crate::lm::model::DrawNow;
use crate::lm::{LmLoss, MoeLayerOutput, Norm, cross_entropy};

/// Result of [`Vit::forward`].
#[derive(Debug, Clone)]
pub struct VitOutput<B: MoeBackend> {
    /// Unnormalised log-probabilities of the classes, `[B, classes]`.
    pub logits: Tensor<B, 2>,
    /// One entry for every layer with routed experts, in order.
    pub layers: Vec<MoeLayerOutput<B>>,
}

/// Result of [`Vit::loss`]: cross-entropy in nats per image, and what the routers add.
pub type VitLoss<B> = LmLoss<B>;

/// A vision transformer; created by [`VitConfig::init`].
#[derive(Module, Debug)]
pub struct Vit<B: Backend> {
    /// From a patch to a token, `[C P P, D]`.
    pub patches: Param<Tensor<B, 2>>,
    /// Added to each token of an image, `[S, D]`.
    pub positions: Param<Tensor<B, 2>>,
    /// Before the tokens of the patches, `[1, D]`, where there is one.
    pub class_token: Option<Param<Tensor<B, 2>>>,
    /// The layers, first to last.
    pub blocks: Vec<VitBlock<B>>,
    /// Before the classes.
    pub final_norm: Norm<B>,
    /// `[D, classes]`, zero at the start.
    pub head: Param<Tensor<B, 2>>,
    /// `[1, classes]`, zero at the start.
    pub head_bias: Param<Tensor<B, 2>>,
    #[module(skip)]
    config: VitConfig,
}

impl VitConfig {
    /// Draws the initial weights from the device's random generator, all of them now, in a fixed order.
    ///
    /// # Panics
    ///
    /// Panics with the message of [`validate`](Self::validate) when that returns an error.
    pub fn init<B: MoeBackend>(&self, device: &B::Device) -> Vit<B> {
        if let Err(error) = self.validate() {
            panic!("not a model: {error}");
        }
        let matrix = |shape| Initializer::Normal { mean: 0.0, std: self.init_std }.init(shape, device);
        let (d, classes) = (self.d_model, self.num_classes);
        let model = Vit {
            patches: matrix([self.patch_numbers(), d]),
            positions: matrix([self.num_tokens(), d]),
            class_token: (self.pooling == Pooling::ClassToken).then(|| matrix([1, d])),
            blocks: (0..self.num_layers).map(|layer| VitBlock::new(self, layer, device)).collect(),
            final_norm: Norm::layer(d, self.norm_eps, device),
            head: Initializer::Zeros.init([d, classes], device),
            head_bias: Initializer::Zeros.init([1, classes], device),
            config: self.clone(),
        };
        model.visit(&mut DrawNow);
        model
    }
}

impl<B: MoeBackend> Vit<B> {
    /// Logits of the classes of each image.
    ///
    /// # Shapes
    ///
    /// - images: `[B, C, height, width]`, f32; normalise them as the training data was
    /// - output: logits `[B, classes]`
    ///
    /// # Panics
    ///
    /// Panics when the images are not of the configured size, or there are none.
    pub fn forward(&self, images: Tensor<B, 4>) -> VitOutput<B> {
        let batch = images.dims()[0];
        let mut x = self.embed(images);
        let mut layers = Vec::new();
        for (layer, block) in self.blocks.iter().enumerate() {
            let (output, routed) = block.forward(x, layer);
            x = output;
            layers.extend(routed);
        }
        let pooled = self.pool(self.final_norm.forward(x));
        let bias = linear(ones::<B>(batch, &pooled), self.head_bias.val());
        VitOutput { logits: project(pooled, &self.head) + bias, layers }
    }

    /// The training loss.
    ///
    /// # Shapes
    ///
    /// - images: `[B, C, height, width]`
    /// - labels: `[B]`, values in `0..classes`
    ///
    /// # Panics
    ///
    /// Panics when there are not as many labels as images, and as [`forward`](Self::forward).
    pub fn loss(&self, images: Tensor<B, 4>, labels: Tensor<B, 1, Int>) -> VitLoss<B> {
        assert_eq!(images.dims()[0], labels.dims()[0], "every image needs one label");
        let VitOutput { logits, layers } = self.forward(images);
        LmLoss::new(cross_entropy(logits, labels), layers, &self.config.moe)
    }

    /// What this model was made from.
    pub fn config(&self) -> &VitConfig {
        &self.config
    }

    /// `[B, C, height, width]` to `[B, S, D]`.
    pub(super) fn embed(&self, images: Tensor<B, 4>) -> Tensor<B, 3> {
        let ([batch, channels, height, width], config) = (images.dims(), &self.config);
        let (expected, p) = ([config.channels, config.image_size, config.image_size], config.patch_size);
        assert!(
            batch > 0 && [channels, height, width] == expected,
            "Vit: images [B, C, height, width] must be [1 or more, {}, {}, {}], got {:?}",
            expected[0],
            expected[1],
            expected[2],
            images.dims()
        );
        let (side, d) = (height / p, config.d_model);
        let patches = images.reshape([batch, channels, side, p, side, p]).permute([0, 2, 4, 1, 3, 5]);
        let tokens = project(patches.reshape([batch * side * side, channels * p * p]), &self.patches);
        let tokens = tokens.reshape([batch, side * side, d]);
        let tokens = match &self.class_token {
            Some(class) => {
                let class = linear(ones::<B>(batch, &class.val()), class.val()).reshape([batch, 1, d]);
                Tensor::cat(vec![class, tokens], 1)
            }
            None => tokens,
        };
        // As a product, so that its gradient is one too.
        let positions = self.positions.val().reshape([1, config.num_tokens() * d]);
        tokens + linear(ones::<B>(batch, &positions), positions).reshape([batch, config.num_tokens(), d])
    }

    /// `[B, S, D]` to `[B, D]`.
    fn pool(&self, x: Tensor<B, 3>) -> Tensor<B, 2> {
        let [batch, len, width] = x.dims();
        match self.config.pooling {
            Pooling::Mean => sum_dim(x, 1).reshape([batch, width]) / len as f64,
            Pooling::ClassToken => x.slice([0..batch, 0..1]).reshape([batch, width]),
        }
    }
}

/// A column of `rows` ones, on the device and in the dtype of `like`.
fn ones<B: Backend>(rows: usize, like: &Tensor<B, 2>) -> Tensor<B, 2> {
    Tensor::ones([rows, 1], (&like.device(), like.dtype()))
}

impl<B: Backend> HasRouters<B> for Vit<B> {
    fn routers(&self) -> Vec<&Router<B>> {
        let blocks = self.blocks.iter();
        blocks.filter_map(|block| Some(&block.feed_forward.as_ref()?.moe.as_ref()?.router)).collect()
    }

    fn routers_mut(&mut self) -> Vec<&mut Router<B>> {
        let blocks = self.blocks.iter_mut();
        blocks.filter_map(|block| Some(&mut block.feed_forward.as_mut()?.moe.as_mut()?.router)).collect()
    }
}

impl<B: Backend> HasDefaultVectors<B> for Vit<B> {
    fn default_vectors(&self) -> Vec<&DefaultVectors<B>> {
        let blocks = self.blocks.iter();
        blocks.filter_map(|block| block.feed_forward.as_ref()?.default_vectors.as_ref()).collect()
    }

    fn default_vectors_mut(&mut self) -> Vec<&mut DefaultVectors<B>> {
        let blocks = self.blocks.iter_mut();
        blocks.filter_map(|block| block.feed_forward.as_mut()?.default_vectors.as_mut()).collect()
    }
}

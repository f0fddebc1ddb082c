//! What the trainer asks of a model, and the two kinds it trains.

use burn::module::{AutodiffModule, Module};
use burn::tensor::backend::Backend;
use default_moe::optimizer::HasDefaultVectors;
use moe_kernels::{AutodiffMoeBackend, MoeBackend};
use moe_layers::Moe;
use moe_layers::router::optimizer::HasRouters;
use moe_models::lm::{Lm, LmLoss};
use moe_models::vit::Vit;

use crate::data::Batch;
use crate::images::ImageBatch;

/// A module with layers of experts, which can be found.
pub trait HasExperts<B: Backend>: Module<B> {
    /// The layers with routed experts, in order, each with its index in the model.
    fn moe_layers(&self) -> Vec<(usize, &Moe<B>)>;
}

/// A model that has a loss on a batch.
pub trait Learns<B: MoeBackend>: HasExperts<B> + HasDefaultVectors<B> + HasRouters<B> {
    /// A batch on the host.
    type Batch;

    /// The rows of `batch` that the `part`-th of `parts` ranks has.
    ///
    /// # Panics
    ///
    /// Panics when there is no such part, or the rows cannot be split so.
    fn part_of(batch: &Self::Batch, part: usize, parts: usize) -> Self::Batch;

    /// The training loss of a batch, cross-entropy and what the routers add to it.
    ///
    /// # Panics
    ///
    /// Panics when the batch is not of the shape that the model takes.
    fn loss_of(&self, batch: &Self::Batch, device: &B::Device) -> LmLoss<B>;
}

/// A model that can be trained: with gradients, and without them the same model.
pub trait Trainable<B: AutodiffMoeBackend>:
    Learns<B> + AutodiffModule<B, InnerModule: Learns<B::InnerBackend, Batch = <Self as Learns<B>>::Batch>>
{
}

impl<B, M> Trainable<B> for M
where
    B: AutodiffMoeBackend,
    M: Learns<B> + AutodiffModule<B>,
    M::InnerModule: Learns<B::InnerBackend, Batch = <M as Learns<B>>::Batch>,
{
}

impl<B: Backend> HasExperts<B> for Lm<B> {
    fn moe_layers(&self) -> Vec<(usize, &Moe<B>)> {
        let blocks = self.blocks.iter().enumerate();
        blocks.filter_map(|(layer, block)| Some((layer, block.feed_forward.moe.as_ref()?))).collect()
    }
}

impl<B: Backend> HasExperts<B> for Vit<B> {
    fn moe_layers(&self) -> Vec<(usize, &Moe<B>)> {
        let blocks = self.blocks.iter().enumerate();
        blocks.filter_map(|(layer, block)| Some((layer, block.feed_forward.as_ref()?.moe.as_ref()?))).collect()
    }
}

impl<B: MoeBackend> Learns<B> for Lm<B> {
    type Batch = Batch;

    fn part_of(batch: &Batch, part: usize, parts: usize) -> Batch {
        batch.part(part, parts)
    }

    fn loss_of(&self, batch: &Batch, device: &B::Device) -> LmLoss<B> {
        let (inputs, targets) = batch.to_tensors::<B>(device);
        self.loss(inputs, targets)
    }
}

impl<B: MoeBackend> Learns<B> for Vit<B> {
    type Batch = ImageBatch;

    fn part_of(batch: &ImageBatch, part: usize, parts: usize) -> ImageBatch {
        batch.part(part, parts)
    }

    fn loss_of(&self, batch: &ImageBatch, device: &B::Device) -> LmLoss<B> {
        let (images, labels) = batch.to_tensors::<B>(device);
        self.loss(images, labels)
    }
}

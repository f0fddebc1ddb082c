//! The experts of a layer, some on each rank.

use std::ops::Range;

use burn::module::{Module, Param, ParamId};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::ExpertPlacement;
use crate::Experts;

/// [`Experts`] in contiguous ranges, those of the ranks that this process speaks for, each range on its own device.
///
/// `Module::to_device` and `fork` would bring all of them to one device; a record of it holds the shards in order.
#[derive(Module, Debug)]
pub struct ShardedExperts<B: Backend> {
    /// Experts of each local rank.
    pub shards: Vec<Experts<B>>,
    first_rank: usize,
    #[module(skip)]
    placement: ExpertPlacement,
}

impl<B: Backend> ShardedExperts<B> {
    /// Copies `experts` to the devices of all ranks, `devices[rank]`.
    ///
    /// The parameters are new ones, of the same values; those that are frozen stay so.
    ///
    /// # Panics
    ///
    /// Panics unless there is a device for every rank, and when the placement is of another number of experts.
    pub fn split(experts: &Experts<B>, placement: &ExpertPlacement, devices: &[B::Device]) -> Self {
        let (ranks, count) = (placement.num_ranks(), devices.len());
        assert_eq!(ranks, count, "ShardedExperts: a placement on {ranks} ranks needs as many devices, got {count}");
        Self::local(experts, placement, 0, devices)
    }

    /// [`split`](Self::split) for a process that speaks for one rank: copies that rank's experts to its device.
    ///
    /// # Panics
    ///
    /// Panics when there is no such rank, and when the placement is of another number of experts.
    pub fn shard(experts: &Experts<B>, placement: &ExpertPlacement, rank: usize, device: &B::Device) -> Self {
        Self::local(experts, placement, rank, std::slice::from_ref(device))
    }

    fn local(experts: &Experts<B>, placement: &ExpertPlacement, first_rank: usize, devices: &[B::Device]) -> Self {
        let (given, placed) = (experts.num_experts(), placement.num_experts());
        assert_eq!(given, placed, "ShardedExperts: {given} experts do not fit a placement of {placed}");
        let shard = |(i, device)| part(experts, placement.experts_of(first_rank + i), device);
        let shards = devices.iter().enumerate().map(shard).collect();
        Self { shards, first_rank, placement: placement.clone() }
    }

    /// The experts together again on `device`, of the same bits.
    ///
    /// # Panics
    ///
    /// Panics unless the shards of all ranks are here.
    pub fn join(&self, device: &B::Device) -> Experts<B> {
        let (here, ranks) = (self.shards.len(), self.placement.num_ranks());
        assert_eq!(here, ranks, "ShardedExperts: {here} of {ranks} shards are here; joining takes all");
        let shards = &self.shards;
        let bias = |of: fn(&Experts<B>) -> Option<&Param<Tensor<B, 2>>>| {
            let parts: Option<Vec<_>> = shards.iter().map(of).collect();
            parts.map(|parts| joined(&parts, device))
        };
        Experts {
            w_in: joined(&shards.iter().map(|shard| &shard.w_in).collect::<Vec<_>>(), device),
            w_out: joined(&shards.iter().map(|shard| &shard.w_out).collect::<Vec<_>>(), device),
            b_in: bias(|shard| shard.b_in.as_ref()),
            b_out: bias(|shard| shard.b_out.as_ref()),
            activation: shards[0].activation,
        }
    }

    /// Who owns which experts.
    pub fn placement(&self) -> &ExpertPlacement {
        &self.placement
    }

    /// The ranks whose experts are here.
    pub fn local_ranks(&self) -> Range<usize> {
        self.first_rank..self.first_rank + self.shards.len()
    }
}

fn part<B: Backend>(experts: &Experts<B>, range: Range<usize>, device: &B::Device) -> Experts<B> {
    Experts {
        w_in: rows(&experts.w_in, range.clone(), device),
        w_out: rows(&experts.w_out, range.clone(), device),
        b_in: experts.b_in.as_ref().map(|bias| rows(bias, range.clone(), device)),
        b_out: experts.b_out.as_ref().map(|bias| rows(bias, range.clone(), device)),
        activation: experts.activation,
    }
}

fn rows<B: Backend, const D: usize>(
    stack: &Param<Tensor<B, D>>,
    range: Range<usize>,
    device: &B::Device,
) -> Param<Tensor<B, D>> {
    let tracked = stack.val().is_require_grad();
    parameter(stack.val().slice(range).to_device(device), tracked)
}

fn joined<B: Backend, const D: usize>(parts: &[&Param<Tensor<B, D>>], device: &B::Device) -> Param<Tensor<B, D>> {
    let tracked = parts[0].val().is_require_grad();
    let parts = parts.iter().map(|part| part.val().to_device(device)).collect();
    parameter(Tensor::cat(parts, 0), tracked)
}

/// A parameter of its own, without the history of the tensors that it was made of.
fn parameter<B: Backend, const D: usize>(tensor: Tensor<B, D>, tracked: bool) -> Param<Tensor<B, D>> {
    Param::initialized(ParamId::new(), tensor.detach().set_require_grad(tracked))
}

#[cfg(test)]
mod tests {
    use burn::backend::{Autodiff, Flex};

    use super::*;
    use crate::ExpertsConfig;

    type B = Autodiff<Flex>;

    fn experts(count: usize) -> Experts<B> {
        ExpertsConfig::new(count, 3, 4).with_bias(true).init(&Default::default())
    }

    fn split(count: usize, sizes: &[usize], devices: usize) -> (Experts<B>, ShardedExperts<B>) {
        let (experts, placement) = (experts(count), ExpertPlacement::from_sizes(sizes).expect("no rank is idle"));
        let sharded = ShardedExperts::split(&experts, &placement, &vec![Default::default(); devices]);
        (experts, sharded)
    }

    #[test]
    fn join_after_split_gives_the_same_bits() {
        let (experts, sharded) = split(7, &[1, 4, 2], 3);
        assert_eq!(sharded.shards.iter().map(Experts::num_experts).collect::<Vec<_>>(), [1, 4, 2]);
        let joined = sharded.join(&Default::default());
        let same = |a: &Param<Tensor<B, 3>>, b: &Param<Tensor<B, 3>>| a.to_data().assert_eq(&b.to_data(), true);
        same(&joined.w_in, &experts.w_in);
        same(&joined.w_out, &experts.w_out);
        let bias = |bias: &Option<Param<Tensor<B, 2>>>| bias.as_ref().expect("biases are on").to_data();
        bias(&joined.b_in).assert_eq(&bias(&experts.b_in), true);
        bias(&joined.b_out).assert_eq(&bias(&experts.b_out), true);
    }

    #[test]
    fn what_is_frozen_stays_frozen() {
        let experts = experts(4);
        let frozen = Experts { w_in: experts.w_in.clone().set_require_grad(false), ..experts };
        let placement = ExpertPlacement::even(4, 2).expect("enough experts");
        let sharded = ShardedExperts::split(&frozen, &placement, &[Default::default(); 2]);
        let joined = sharded.join(&Default::default());
        for experts in sharded.shards.iter().chain([&joined]) {
            assert!(!experts.w_in.val().is_require_grad() && experts.w_out.val().is_require_grad());
        }
    }

    #[test]
    fn one_rank_has_its_own_experts() {
        let (experts, placement) = (experts(5), ExpertPlacement::even(5, 2).expect("enough experts"));
        let sharded = ShardedExperts::shard(&experts, &placement, 1, &Default::default());
        assert_eq!(sharded.local_ranks(), 1..2);
        sharded.shards[0].w_in.to_data().assert_eq(&experts.w_in.val().slice(3..5).into_data(), true);
    }

    #[test]
    #[should_panic(expected = "1 of 2 shards are here; joining takes all")]
    fn one_shard_does_not_join() {
        let placement = ExpertPlacement::even(5, 2).expect("enough experts");
        ShardedExperts::shard(&experts(5), &placement, 1, &Default::default()).join(&Default::default());
    }

    #[test]
    #[should_panic(expected = "a placement on 3 ranks needs as many devices, got 2")]
    fn too_few_devices_panic() {
        split(6, &[2, 2, 2], 2);
    }

    #[test]
    #[should_panic(expected = "6 experts do not fit a placement of 7")]
    fn a_placement_of_other_experts_panics() {
        split(6, &[2, 5], 2);
    }
}

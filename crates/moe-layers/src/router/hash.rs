//! Hash routing: the id of a token decides, nothing is learned.

use burn::config::Config;
use burn::module::Module;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use moe_kernels::{MoeBackend, unchosen};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::RouterConfig;
use crate::Routing;

/// What only a [`HashRouter`] has.
#[derive(Config, Debug, PartialEq)]
pub struct HashOptions {
    /// Number of ids, `V`. A language model sets it. Default: 0
    #[config(default = 0)]
    pub vocab_size: usize,
    /// Decides the table. Default: 0
    #[config(default = 0)]
    pub seed: u64,
}

/// Looks up a token's experts by its id; nothing is learned ([Roller et al., 2021](https://arxiv.org/abs/2106.04426)). Created by
/// [`RouterConfig`].
///
/// Every id of the vocabulary has `K` distinct experts, drawn once from a seed: each expert is the first of as many ids as any other, up to
/// one, and the others of an id are random. Gates are `1 / K`, f32 always. Loads follow the frequencies of the ids, which no table here
/// knows.
#[derive(Module, Debug)]
pub struct HashRouter<B: Backend> {
    /// `[V, K]`: a function of the configuration, so not saved.
    table: Tensor<B, 2, Int>,
    num_experts: usize,
}

impl HashOptions {
    pub(super) fn init<B: Backend>(&self, base: &RouterConfig, device: &B::Device) -> HashRouter<B> {
        assert!(self.vocab_size > 0, "HashOptions: vocab_size must be the number of ids, got 0");
        let table = self.table(base.num_experts, base.top_k);
        HashRouter {
            table: Tensor::from_data(TensorData::new(table, [self.vocab_size, base.top_k]), device),
            num_experts: base.num_experts,
        }
    }

    /// `[V, K]`: ids are dealt to the experts at random, and the further experts of an id stand at random distances from the first.
    fn table(&self, num_experts: usize, top_k: usize) -> Vec<i32> {
        let mut rng = StdRng::seed_from_u64(self.seed);
        let mut first: Vec<usize> = (0..self.vocab_size).map(|id| id % num_experts).collect();
        first.shuffle(&mut rng);
        let mut distances: Vec<usize> = (1..num_experts).collect();
        let mut table = Vec::with_capacity(self.vocab_size * top_k);
        for expert in first {
            table.push(expert as i32);
            for k in 1..top_k {
                let other = rng.random_range(k - 1..distances.len());
                distances.swap(k - 1, other);
                table.push(((expert + distances[k - 1]) % num_experts) as i32);
            }
        }
        table
    }
}

impl<B: MoeBackend> HashRouter<B> {
    /// # Shapes
    ///
    /// - ids: `[T]`, values in `0..V`
    /// - output: logits are zero, [`probs`](Routing::probs) and gates `1 / K` for the chosen; f32
    ///
    /// # Panics
    ///
    /// Panics when an id is not below `V`, on backends that check indices.
    pub fn forward(&self, ids: Tensor<B, 1, Int>) -> Routing<B> {
        let (device, [num_tokens], [_, top_k]) = (ids.device(), ids.dims(), self.table.dims());
        let dtype = burn::tensor::DType::F32;
        if num_tokens == 0 {
            return Routing::empty(self.num_experts, top_k, dtype, &device);
        }
        let experts = self.table.clone().select(0, ids);
        let gate = 1.0 / top_k as f64;
        let ones = Tensor::<B, 2>::ones([num_tokens, self.num_experts], (&device, dtype));
        let probs = (ones.clone() - unchosen(ones.clone(), experts.clone())) * gate;
        let gates = Tensor::full([num_tokens, top_k], gate, (&device, dtype));
        Routing::new(ones.zeros_like(), probs, gates, experts)
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;

    use super::*;
    use crate::router::{Router, RouterRule};

    fn router(vocab_size: usize, num_experts: usize, top_k: usize, seed: u64) -> HashRouter<Flex> {
        let rule = RouterRule::Hash(HashOptions { vocab_size, seed });
        match RouterConfig::new(4, num_experts, top_k).with_rule(rule).init(&Default::default()) {
            Router::Hash(router) => router,
            other => panic!("not the router that was asked for: {other:?}"),
        }
    }

    fn experts(router: &HashRouter<Flex>, ids: &[i64]) -> Vec<i64> {
        let ids = Tensor::from_data(TensorData::from(ids), &Default::default());
        router.forward(ids).experts.into_data().iter::<i64>().collect()
    }

    #[test]
    fn the_id_decides() {
        let router = router(40, 8, 3, 5);
        let found = experts(&router, &[7, 3, 7, 39]);
        assert_eq!(found[..3], found[6..9]);
    }

    #[test]
    fn every_expert_has_as_many_ids_and_no_id_an_expert_twice() {
        let ids: Vec<i64> = (0..40).collect();
        for seed in 0..5 {
            let found = experts(&router(40, 8, 3, seed), &ids);
            let first = |e| found.chunks(3).filter(|row| row[0] == e).count();
            assert!((0..8).all(|e| first(e) == 5), "seed {seed}");
            let distinct = |row: &[i64]| row[0] != row[1] && row[0] != row[2] && row[1] != row[2];
            assert!(found.chunks(3).all(distinct), "seed {seed}");
        }
    }

    #[test]
    fn gates_are_one_over_k() {
        let routing = router(5, 4, 2, 0).forward(Tensor::from_data([4i64, 0], &Default::default()));
        routing.gates.into_data().assert_eq(&[[0.5; 2]; 2].into(), false);
        let sums = routing.probs.sum_dim(1).into_data();
        sums.assert_eq(&[[1.0f32]; 2].into(), false);
    }

    #[test]
    #[should_panic(expected = "vocab_size must be the number of ids")]
    fn no_vocabulary_panics() {
        router(0, 4, 1, 0);
    }
}

//! What a forward pass keeps for backward, in bytes of this process.

use burn::tensor::Tensor;
use moe_kernels::AutodiffMoeBackend;
use moe_layers::dispatch;
use moe_tests::live_bytes;
use serde::Serialize;

use super::problem::Problem;

/// Bytes kept between forward and backward, weights and output apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct SavedBytes {
    /// By the experts alone: tokens, gates and indices included.
    pub(crate) experts: u64,
    /// By the whole layer, losses included.
    pub(crate) layer: u64,
}

/// Measures both. Only backends whose tensors live in this process's memory can be measured this way.
pub(crate) fn saved_bytes<B: AutodiffMoeBackend>(problem: &Problem<B>) -> SavedBytes {
    let experts = || dispatch::grouped(problem.tokens(), problem.experts(), &problem.routing());
    let layer = || {
        let out = problem.moe.forward(problem.tokens());
        (out.output.clone(), out.losses.weighted())
    };
    SavedBytes { experts: kept(experts, |output| output), layer: kept(layer, |(output, _)| output) }
}

/// Bytes that are alive because of what `forward` returned, without the output's own numbers. The first call pays for
/// what is made once, so the second is measured.
pub(crate) fn kept<B: AutodiffMoeBackend, T>(forward: impl Fn() -> T, output: impl Fn(&T) -> &Tensor<B, 2>) -> u64 {
    drop(forward());
    let before = live_bytes();
    let result = forward();
    let kept = live_bytes() - before;
    let tensor = output(&result);
    let own = tensor.dims().iter().product::<usize>() * tensor.dtype().size();
    (kept - own as isize).max(0) as u64
}

#[cfg(test)]
mod tests {
    use moe_train::backend::Training;
    use moe_train::config::Dtype;

    use super::super::Shape;
    use super::*;

    /// Other tests of this program allocate meanwhile: the most frequent of many counts, as undisturbed ones are all the same.
    #[test]
    fn the_experts_keep_input_and_pre_activation_and_the_layer_its_scores_besides() {
        let shape: Shape = "4096,64,64,4,2".parse().unwrap();
        let problem = Problem::<Training>::new(&shape, 0.0, Dtype::F32, &Default::default());
        let counts: Vec<_> = (0..40).map(|_| saved_bytes(&problem)).collect();
        let most_frequent = |of: fn(&SavedBytes) -> u64| {
            let times = |count: u64| counts.iter().filter(|other| of(other) == count).count();
            counts.iter().map(of).max_by_key(|&count| times(count)).expect("there are counts")
        };
        let (experts, layer) = (most_frequent(|saved| saved.experts), most_frequent(|saved| saved.layer));
        let (least, scores) = (shape.least_saved_bytes(4), 2 * 4 * 4096 * 4);
        assert!((least..least + least / 5).contains(&experts), "{experts}, at least {least}");
        assert!(
            (least + scores..least + scores + least / 5).contains(&layer),
            "{layer}, at least {least} and {scores}"
        );
    }
}

//! One layer with plain top-K and with default vectors, the same weights and tokens, gates as the softmax gives them.

use burn::module::{AutodiffModule, Param};
use burn::tensor::{Int, Tensor};
use default_moe::{DefaultMoe, DefaultOptions, DefaultUpdate};
use moe_kernels::AutodiffMoeBackend;
use moe_layers::{Moe, MoeConfig, Routing, dispatch};
use moe_train::backend::{Device, Training};
use moe_train::config::Dtype;

use super::Comparison;
use crate::args::CommonArgs;
use crate::clock::{Clock, Time, timed};
use crate::error::{Error, Result};
use crate::layer::Shape;
use crate::layer::contest::{Contestant, Pass, Side, contest};
use crate::layer::problem::Problem;
use crate::layer::saved::kept;
use crate::session::{ON_GPU, wait};

/// Tokens on which the sums of the experts' outputs are compared with those of every expert on every token.
const VERIFIED_TOKENS: usize = 256;

/// Forward, and forward and backward.
pub(super) fn compare(shape: &Shape, clock: Clock, args: &CommonArgs, device: &Device) -> Result<[Comparison; 2]> {
    let problem = Problem::<Training>::new(shape, 0.0, Dtype::F32, device);
    let layer = layer(&problem);
    verify(&layer, problem.tokens())?;
    let tokens = problem.tokens();
    let top_k = || layer.moe.forward(tokens.clone()).output;
    let default = || {
        let out = layer.forward(tokens.clone());
        (out.output, out.update)
    };
    let mut arms: [Box<dyn Contestant + '_>; 2] = [
        Box::new(Arm { name: "top-K", device, forward: Box::new(|| (top_k(), None)) }),
        Box::new(Arm { name: "default", device, forward: Box::new(default) }),
    ];
    let times = contest(&mut arms, args.warm_up(), args.rounds())?;
    let saved = (!ON_GPU).then(|| {
        let fresh = || problem.tokens();
        [
            kept(|| layer.moe.forward(fresh()).output, |output| output),
            kept(
                || {
                    let out = layer.forward(fresh());
                    (out.output, out.update)
                },
                |(output, _)| output,
            ),
        ]
    });
    let state = Some(4 * (shape.case.experts * shape.case.d_model) as u64);
    let of = |pass: Pass, name: &str| {
        let what = format!("layer {}, {name}", shape.name);
        let comparison = Comparison::new(what, clock, times[0].of(pass), times[1].of(pass));
        Comparison { saved_bytes: saved, state_bytes: state, ..comparison }
    };
    Ok([of(Pass::Forward, "forward"), of(Pass::Training, "forward and backward")])
}

/// The problem's weights in a layer whose gates are not renormalised, as in the paper.
fn layer<B: AutodiffMoeBackend>(problem: &Problem<B>) -> DefaultMoe<B> {
    let case = &problem.case;
    let config = MoeConfig::new(case.d_model, case.d_hidden, case.experts, case.top_k);
    let mut moe: Moe<B> = config.init(&problem.device);
    *moe.router.weight_mut().expect("a learned router") =
        Param::from_tensor(problem.moe.router.weight().expect("a learned router").val().detach());
    moe.experts = problem.moe.experts.clone();
    DefaultMoe { moe, vectors: DefaultOptions::new().init(case.experts, case.d_model, &problem.device) }
}

/// The means that the vectors move towards against `dispatch::dense`, one expert at a time.
fn verify(layer: &DefaultMoe<Training>, tokens: Tensor<Training, 2>) -> Result<()> {
    let [all, width] = tokens.dims();
    let tokens = tokens.slice([0..all.min(VERIFIED_TOKENS), 0..width]);
    let out = layer.forward(tokens.clone());
    let update: DefaultUpdate<Training> = out.update.expect("a training pass leaves an update");
    let plain = layer.valid().moe;
    let (routing, tokens) = (plain.router.forward(tokens.clone().inner()), tokens.inner());
    for expert in 0..plain.experts.num_experts() {
        let chosen = routing.experts.clone().equal_elem(expert as i64).float();
        let share = (routing.gates.clone() * chosen).sum_dim(1);
        let only = Tensor::<_, 2, Int>::full([tokens.dims()[0], 1], expert as i64, &tokens.device());
        let one = Routing::new(routing.logits.clone(), routing.probs.clone(), share, only);
        let expected = dispatch::dense(tokens.clone(), &plain.experts, &one).sum_dim(0);
        let found = update.sums.clone().inner().slice([expert..expert + 1, 0..width]);
        let scale = expected.clone().abs().max().into_scalar().max(1.0);
        let error = (found - expected).abs().max().into_scalar() / scale;
        if error.is_nan() || f64::from(error) > moe_tests::RELATIVE {
            let message = format!("the sum of expert {expert} has a relative error of {error:e}");
            return Err(Error::of("wrong result, so nothing is timed", message));
        }
    }
    Ok(())
}

type Forwarded = (Tensor<Training, 2>, Option<DefaultUpdate<Training>>);

struct Arm<'a> {
    name: &'static str,
    device: &'a Device,
    forward: Box<dyn Fn() -> Forwarded + 'a>,
}

impl Contestant for Arm<'_> {
    fn name(&self) -> String {
        self.name.into()
    }

    fn side(&self) -> Side {
        Side::Ours
    }

    fn run(&mut self, pass: Pass) -> Result<Time> {
        wait::<Training>(self.device)?;
        let (results, time) = timed(|| {
            let (output, update) = (self.forward)();
            let gradients = (pass == Pass::Training).then(|| output.backward());
            wait::<Training>(self.device).map(|()| (output, update, gradients))
        });
        results.map(|_| time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_arms_are_verified_and_timed() {
        let shape: Shape = "70,16,12,4,2".parse().unwrap();
        let args =
            CommonArgs { threads: 1, device: Default::default(), rounds: 2, quick: false, json: None, torch: None };
        let [forward, training] = compare(&shape, Clock::Wall, &args, &Default::default()).unwrap();
        assert!(forward.top_k_seconds.median > 0.0 && training.default_seconds.median > 0.0);
        assert_eq!(forward.state_bytes, Some(4 * 4 * 16));
    }

    #[test]
    fn a_wrong_sum_is_an_error() {
        let shape: Shape = "70,16,12,4,2".parse().unwrap();
        let problem = Problem::<Training>::new(&shape, 0.0, Dtype::F32, &Default::default());
        let mut layer = layer(&problem);
        let options = DefaultOptions::new().with_rule(default_moe::UpdateRule::Mean);
        layer.vectors = options.init(4, 16, &Default::default());
        assert!(verify(&layer, problem.tokens()).is_err());
    }
}

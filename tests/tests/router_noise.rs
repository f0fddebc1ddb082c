//! Routers with noise. A program of one test: the random generator of a device is that of the whole process.

#![cfg(feature = "flex")]

use burn::module::Param;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use default_moe::DefaultOptions;
use moe_layers::router::NoisyTopKOptions;
use moe_layers::{ImportanceConvention, Moe, MoeConfig, RouterRule, load_loss};
use moe_tests::{Flex, host, random, tensor};

/// Length of a step along a direction, and the error allowed for the slope in f32, relative to the sum of its terms' sizes.
const STEP: f64 = 1e-3;
const SLOPE_TOLERANCE: f64 = 5e-3;

/// Tokens, width, experts, experts per token.
const SIZES: [usize; 4] = [12, 6, 4, 2];

type Case = (Option<f64>, ImportanceConvention);

fn layer((noise_std, convention): Case, router: &[f64], noise: &[f64]) -> Moe<Flex> {
    let ([_, d, e, k], device) = (SIZES, Default::default());
    let rule = RouterRule::NoisyTopK(NoisyTopKOptions { noise_std });
    let config = MoeConfig::new(d, 5, e, k).with_router(rule).with_load_coef(0.5).with_balance_coef(0.0);
    let config = config.with_importance(convention).with_importance_coef(0.5);
    let mut moe: Moe<Flex> = config.init(&device);
    *moe.router.weight_mut().expect("a learned router") = Param::from_tensor(tensor(router, [d, e], &device));
    if let moe_layers::Router::NoisyTopK(router) = &mut moe.router {
        router.noise_weight = router.noise_weight.take().map(|_| Param::from_tensor(tensor(noise, [d, e], &device)));
    }
    moe.experts.w_in = Param::from_tensor(tensor(&random(e * d * 10, 2), [e, d, 10], &device));
    moe.experts.w_out = Param::from_tensor(tensor(&random(e * 5 * d, 3), [e, 5, d], &device));
    moe
}

/// Of the output, the importance and the load loss, under the noise of one seed.
fn loss(moe: &Moe<Flex>) -> (Tensor<Flex, 1>, Vec<f64>) {
    let ([t, d, ..], device) = (SIZES, Default::default());
    Flex::seed(&device, 5);
    let out = moe.forward(tensor::<Flex, 2>(&random(t * d, 4), [t, d], &device));
    let loss = (out.output * tensor(&random(t * d, 9), [t, d], &device)).sum() + out.losses.weighted();
    (loss, host(out.routing.experts.float()))
}

/// Under the same noise, the load loss among them.
fn assert_default_vectors_leave_the_losses(moe: &Moe<Flex>) {
    let ([t, d, e, _], device) = (SIZES, Default::default());
    let tokens = tensor::<Flex, 2>(&random(t * d, 4), [t, d], &device);
    let vectors = DefaultOptions::new().init::<Flex>(e, d, &device);
    Flex::seed(&device, 5);
    let with = vectors.forward(moe, tokens.clone()).losses;
    Flex::seed(&device, 5);
    let without = moe.forward(tokens).losses;
    assert_eq!(host(with.other.expect("it has coefficients")), host(without.other.expect("it has coefficients")));
    assert_eq!(host(with.balance), host(without.balance));
}

#[test]
fn noise_is_that_of_the_seed_and_its_gradient_is_the_slope_along_a_direction() {
    let ([_, d, e, _], device) = (SIZES, Default::default());
    let (router, noise) = (random(d * e, 1), random(d * e, 6));
    let conventions = [ImportanceConvention::VMoe, ImportanceConvention::Shazeer];
    for case in conventions.into_iter().flat_map(|convention| [(None, convention), (Some(1.0), convention)]) {
        let moe = layer(case, &router, &noise);
        let (at, chosen) = loss(&moe);
        assert_eq!(host(loss(&moe).0), host(at.clone()), "the same seed");
        let drawn = |moe: &Moe<Flex>| {
            let tokens = tensor::<Flex, 2>(&random(SIZES[0] * d, 4), [SIZES[0], d], &device);
            moe.router.forward(tokens)
        };
        let (first, second) = (drawn(&moe), drawn(&moe));
        assert_ne!(host(first.scores.clone()), host(second.scores), "one pass after the other");
        assert!(host(load_loss(&first, case.1))[0] > 0.0);
        assert_default_vectors_leave_the_losses(&moe);

        let directions = [random(d * e, 12), random(d * e, 13)];
        let moved = |by: f64| {
            let along = |start: &[f64], i: usize| -> Vec<f64> {
                start.iter().zip(&directions[i]).map(|(x, v)| x + by * v).collect()
            };
            let (loss, now) = loss(&layer(case, &along(&router, 0), &along(&noise, 1)));
            assert_eq!(now, chosen, "the choice must stay for the loss to be smooth");
            host(loss)[0]
        };
        let slope = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
        let grads = at.backward();
        let mut terms: Vec<f64> = Vec::new();
        let mut add = |weight: &Param<Tensor<Flex, 2>>, direction: &[f64]| {
            let grad = host(weight.grad(&grads).expect("tracked"));
            terms.extend(grad.iter().zip(direction).map(|(g, v)| g * v));
        };
        add(moe.router.weight().expect("a learned router"), &directions[0]);
        if let moe_layers::Router::NoisyTopK(router) = &moe.router {
            router.noise_weight.iter().for_each(|weight| add(weight, &directions[1]));
        }
        let (sum, size) = terms.iter().fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
        assert!((slope - sum).abs() <= SLOPE_TOLERANCE * size, "{case:?}: {slope} against {sum}, terms {size}");
    }
}

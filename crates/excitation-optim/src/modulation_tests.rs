use burn::backend::Flex;

use super::*;

/// Relative, f32.
const TOLERANCE: f64 = 1e-6;

const DRAW: Draw = Draw { step: 0, layer: 0 };

fn utilization(counts: &[f64], tokens: f64) -> Utilization<Flex> {
    let device = Default::default();
    let counts: Vec<f32> = counts.iter().map(|&n| n as f32).collect();
    Utilization {
        counts: Tensor::from_data(counts.as_slice(), &device),
        tokens: Some(Tensor::from_data([tokens as f32], &device)),
    }
}

fn config(variant: Variant) -> ExcitationConfig {
    ExcitationConfig::new().with_variant(variant)
}

fn factors(config: &ExcitationConfig, counts: &[f64], tokens: f64) -> Vec<f64> {
    config.factors(utilization(counts, tokens), DRAW).into_data().iter::<f64>().collect()
}

/// The formulas on slices, in f64.
fn oracle(variant: Variant, gamma: f64, counts: &[f64], tokens: f64) -> Vec<f64> {
    let u: Vec<f64> = counts.iter().map(|n| n / tokens).collect();
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let powers: Vec<f64> = u.iter().map(|u| u.powf(gamma)).collect();
    let zero_sum = |i: usize| powers[i] / mean(&powers);
    let phi = |i: usize| match variant {
        Variant::ZeroSum => zero_sum(i),
        Variant::PositiveSum => zero_sum(i).max(1.0),
        Variant::ExpDiff => (gamma * (u[i] - mean(&u))).exp(),
    };
    (0..u.len()).map(phi).collect()
}

fn assert_close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= TOLERANCE * expected.abs(), "{found} != {expected}");
    }
}

const VARIANTS: [Variant; 3] = [Variant::ZeroSum, Variant::PositiveSum, Variant::ExpDiff];

#[test]
fn the_vectors_of_the_specification_hold() {
    let zero_sum = |counts: &[f64]| factors(&config(Variant::ZeroSum), counts, 4.0);
    let positive_sum = |counts: &[f64]| factors(&config(Variant::PositiveSum), counts, 4.0);
    assert_eq!(zero_sum(&[3.0, 1.0]), [1.5, 0.5]);
    assert_eq!(positive_sum(&[3.0, 1.0]), [1.5, 1.0]);
    assert_eq!(zero_sum(&[4.0, 0.0, 0.0, 0.0]), [4.0, 0.0, 0.0, 0.0]);
    assert_eq!(positive_sum(&[4.0, 0.0, 0.0, 0.0]), [4.0, 1.0, 1.0, 1.0]);
}

#[test]
fn a_uniform_load_gives_exactly_one() {
    for variant in VARIANTS {
        for num_experts in [1, 3, 7, 64, 100] {
            let ones = vec![1.0; num_experts];
            assert_eq!(factors(&config(variant), &vec![17.0; num_experts], 123.0), ones, "{variant:?}");
        }
    }
}

#[test]
fn gamma_zero_gives_exactly_one() {
    for variant in VARIANTS {
        let config = config(variant).with_gamma(0.0);
        assert_eq!(factors(&config, &[5.0, 0.0, 2.0], 7.0), [1.0; 3], "{variant:?}");
    }
}

#[test]
fn every_variant_matches_the_formula_on_slices() {
    let loads: [&[f64]; 4] = [&[5.0, 2.0, 1.0], &[0.0, 9.0, 4.0, 3.0], &[1.0], &[300.0, 1.0, 80.0, 0.0, 3.0]];
    for variant in VARIANTS {
        for gamma in [0.5, 1.0, 2.0, 3.7] {
            for counts in loads {
                let tokens = counts.iter().sum::<f64>() / 2.0;
                let found = factors(&config(variant).with_gamma(gamma), counts, tokens);
                assert_close(&found, &oracle(variant, gamma, counts, tokens));
            }
        }
    }
}

#[test]
fn zero_sum_has_mean_one_and_positive_sum_never_suppresses() {
    for gamma in [0.5, 1.0, 4.0] {
        let counts = [50.0, 20.0, 1.0, 0.0, 29.0];
        let zero_sum = factors(&config(Variant::ZeroSum).with_gamma(gamma), &counts, 100.0);
        assert_close(&[zero_sum.iter().sum::<f64>() / 5.0], &[1.0]);
        let positive_sum = factors(&config(Variant::PositiveSum).with_gamma(gamma), &counts, 100.0);
        assert!(positive_sum.iter().all(|&phi| phi >= 1.0));
    }
}

#[test]
fn statistics_that_say_nothing_give_exactly_one() {
    let bad = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0];
    for variant in VARIANTS {
        let config = config(variant);
        assert_eq!(factors(&config, &[0.0; 3], 0.0), [1.0; 3], "{variant:?}");
        for bad in bad {
            assert_eq!(factors(&config, &[2.0, bad, 1.0], 3.0), [1.0; 3], "{variant:?} of {bad}");
        }
    }
    assert_eq!(factors(&config(Variant::ExpDiff), &[2.0, 1.0], f64::NAN), [1.0; 2]);
}

#[test]
fn factors_that_overflow_give_one_and_large_counts_do_not_overflow() {
    let steep = config(Variant::ExpDiff).with_gamma(1e4);
    assert_eq!(factors(&steep, &[4.0, 0.0], 4.0), [1.0; 2]);
    let counts = [1.6e7, 8e6];
    let found = factors(&config(Variant::ZeroSum).with_gamma(16.0), &counts, 2.4e7);
    assert_close(&found, &oracle(Variant::ZeroSum, 16.0, &counts, 2.4e7));
}

#[test]
fn only_the_ratio_of_counts_and_tokens_matters() {
    for variant in VARIANTS {
        let once = factors(&config(variant), &[5.0, 2.0, 1.0], 4.0);
        let mean_of_eight = factors(&config(variant), &[5.0 / 8.0, 2.0 / 8.0, 1.0 / 8.0], 4.0 / 8.0);
        assert_close(&mean_of_eight, &once);
    }
}

#[test]
fn relabelling_the_experts_relabels_the_factors() {
    for variant in VARIANTS {
        let found = factors(&config(variant), &[5.0, 2.0, 1.0, 0.0], 8.0);
        let mut reversed = factors(&config(variant), &[0.0, 1.0, 2.0, 5.0], 8.0);
        reversed.reverse();
        assert_close(&reversed, &found);
    }
}

#[test]
fn global_exp_gives_all_experts_the_mean_factor() {
    let config = config(Variant::PositiveSum).with_control(Some(Control::GlobalExp));
    assert_close(&factors(&config, &[3.0, 1.0], 4.0), &[1.25, 1.25]);
}

#[test]
fn inverted_gives_the_least_used_expert_the_largest_factor() {
    let config = config(Variant::ZeroSum).with_control(Some(Control::Inverted));
    assert_close(&factors(&config, &[5.0, 2.0, 1.0], 8.0), &oracle(Variant::ZeroSum, 1.0, &[1.0, 4.0, 5.0], 8.0));
}

#[test]
fn random_boost_deals_the_same_factors_out_anew_in_every_step_and_layer() {
    let counts = [50.0, 20.0, 11.0, 3.0, 9.0, 1.0, 2.0, 4.0];
    let plain = factors(&config(Variant::ZeroSum), &counts, 100.0);
    let config = config(Variant::ZeroSum).with_control(Some(Control::RandomBoost));
    let dealt =
        |draw| -> Vec<f64> { config.factors(utilization(&counts, 100.0), draw).into_data().iter::<f64>().collect() };
    let sorted = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values
    };
    let here = dealt(Draw { step: 3, layer: 1 });
    assert_eq!(sorted(here.clone()), sorted(plain));
    assert_eq!(dealt(Draw { step: 3, layer: 1 }), here);
    assert_ne!(dealt(Draw { step: 4, layer: 1 }), here);
    assert_ne!(dealt(Draw { step: 3, layer: 2 }), here);
}

#[test]
fn the_cap_bounds_and_the_warm_up_weakens() {
    let counts = [4.0, 0.0, 0.0, 0.0];
    let capped = config(Variant::ZeroSum).with_cap(Some(2.5));
    assert_eq!(factors(&capped, &counts, 4.0), [2.5, 0.0, 0.0, 0.0]);
    let warming = config(Variant::ZeroSum).with_warmup_steps(2);
    assert_eq!(factors(&warming, &counts, 4.0), [2.5, 0.5, 0.5, 0.5]);
}

#[test]
fn counts_with_and_without_tokens_are_told_apart_by_their_length() {
    let registered = || Tensor::<Flex, 1>::from([5.0, 2.0, 1.0]);
    let with = Utilization::from_registered(registered(), 2, "moe");
    assert_eq!(with.counts.into_data(), TensorData::from([5.0f32, 2.0]));
    assert_eq!(with.tokens.map(Tensor::into_data), Some(TensorData::from([1.0f32])));
    let without = Utilization::from_registered(registered(), 3, "moe");
    assert!(without.tokens.is_none());
}

#[test]
#[should_panic(expected = "the counts of expert layer `moe` must be [E] or [E + 1]")]
fn counts_of_another_length_panic() {
    Utilization::from_registered(Tensor::<Flex, 1>::ones([5], &Default::default()), 3, "moe");
}

#[test]
#[should_panic(expected = "ExpDiff needs the number of tokens")]
fn exp_diff_without_the_number_of_tokens_panics() {
    let counts = Utilization { tokens: None, ..utilization(&[1.0, 2.0], 3.0) };
    config(Variant::ExpDiff).factors(counts, DRAW);
}

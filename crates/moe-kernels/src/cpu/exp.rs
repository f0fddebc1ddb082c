//! The exponential function for loops that the compiler vectorises: no branch, no call, no table.

const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// `ln 2` in two parts, the first with few enough digits that its product with a small integer is exact (Cody and
/// Waite, 1980).
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;
/// `1.5 * 2^23`: adding it rounds to the nearest integer, which then stands in the low bits.
const ROUND: f32 = 12_582_912.0;
/// Where `exp` still is a normal number.
const RANGE: (f32, f32) = (-87.0, 88.0);

/// `e^x` with a relative error of at most 2e-7 where that is a normal number; 0 below, `e^88` above. A NaN stays one.
///
/// `e^x = 2^n e^r` with `n` the integer nearest to `x / ln 2`; `e^r` for `|r| <= ln 2 / 2` by its Taylor polynomial
/// of degree 7, whose remainder is below 6e-9.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    let below = x < RANGE.0;
    let x = x.clamp(RANGE.0, RANGE.1);
    let shifted = x * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;

    let mut p = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + coefficient;
    }
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    // Both values are there, so that this is a choice between numbers and not a branch.
    let power = p * f32::from_bits(exponent << 23);
    if below { 0.0 } else { power }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Distribution function and density of the standard normal distribution, with absolute errors of at most 3e-7.
///
/// `cdf(-x) = erfc(x / sqrt 2) / 2 = t P(t) e^(-x^2 / 2) / 2` with `t = 1 / (1 + 0.4 x / sqrt 2)` for `x >= 0`: the
/// exponential serves both results. `P` is a least-squares fit of the relative error over `x / sqrt 2` in `0..10`, of
/// degree 8, off by at most 6.2e-8.
#[inline(always)]
pub(super) fn normal(x: f32) -> (f32, f32) {
    const P: [f32; 9] = [
        0.041_253_332,
        -0.140_320_63,
        0.083_990_104,
        0.087_961_2,
        0.079_758_59,
        0.193_392_34,
        0.201_887_8,
        0.226_443_08,
        0.225_634_23,
    ];
    const INV_SQRT_TAU: f32 = 0.398_942_3;
    let bell = exp(-0.5 * x * x);
    let t = 1.0 / (1.0 + (0.4 * std::f32::consts::FRAC_1_SQRT_2) * x.abs());
    let mut p = P[0];
    for &coefficient in &P[1..] {
        p = p * t + coefficient;
    }
    let tail = 0.5 * t * p * bell;
    (if x < 0.0 { tail } else { 1.0 - tail }, INV_SQRT_TAU * bell)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELATIVE: f64 = 2e-7;

    #[test]
    fn agrees_with_the_standard_library_in_f64() {
        for i in -87_000..=88_000 {
            let x = i as f32 / 1000.0;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(error < RELATIVE, "exp({x}): relative error {error:e}");
        }
    }

    #[test]
    fn vanishes_below_its_range_saturates_above_and_keeps_nan() {
        assert!([f32::NEG_INFINITY, -1e9, -87.01].iter().all(|&x| exp(x) == 0.0));
        assert!(exp(-87.0) > f32::MIN_POSITIVE);
        assert_eq!(exp(f32::INFINITY), exp(88.0));
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(sigmoid(1e9), 1.0);
        assert!(sigmoid(-1e9) < 1e-37);
    }

    /// Distribution function by its series in f64; density from the standard library.
    #[test]
    fn the_normal_distribution_agrees_with_its_series() {
        const ABSOLUTE: f64 = 3e-7;
        for i in -6000..=6000 {
            let x = i as f32 / 1000.0;
            let exact = f64::from(x);
            let density = (-exact * exact / 2.0).exp() / std::f64::consts::TAU.sqrt();
            let (mut term, mut sum) = (exact, exact);
            for n in 1..200 {
                term *= exact * exact / f64::from(2 * n + 1);
                sum += term;
            }
            let (cdf, bell) = normal(x);
            assert!((f64::from(cdf) - 0.5 - density * sum).abs() < ABSOLUTE, "cdf({x}) = {cdf}");
            assert!((f64::from(bell) - density).abs() < ABSOLUTE, "density({x}) = {bell}");
        }
        assert!(normal(f32::NAN).0.is_nan());
    }
}

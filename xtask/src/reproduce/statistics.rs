//! Paired differences: mean, interval, and what so many pairs could have shown.

/// Quantiles of Student's t for 1, 2, .. degrees of freedom: 0.975 for the interval, 0.8 for the power.
const T_975: [f64; 15] =
    [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131];
const T_800: [f64; 15] =
    [1.376, 1.061, 0.978, 0.941, 0.920, 0.906, 0.896, 0.889, 0.883, 0.879, 0.876, 0.873, 0.870, 0.868, 0.866];

/// What some paired differences come to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Paired {
    pub(crate) pairs: usize,
    pub(crate) mean: f64,
    /// Standard deviation of a difference.
    pub(crate) deviation: f64,
    /// Half the width of the 95 % interval of the mean.
    pub(crate) half_width: f64,
    /// The smallest true difference that so many pairs, of this deviation, find in 4 of 5 studies: a two-sided test at
    /// 5 % with a power of 80 %.
    pub(crate) smallest_effect: f64,
}

impl Paired {
    /// Of at least two differences.
    pub(crate) fn of(differences: &[f64]) -> Option<Self> {
        let pairs = differences.len();
        let freedom = pairs.checked_sub(2)?;
        let mean = mean(differences);
        let squares: f64 = differences.iter().map(|d| (d - mean).powi(2)).sum();
        let deviation = (squares / (pairs - 1) as f64).sqrt();
        let error = deviation / (pairs as f64).sqrt();
        let t = |table: &[f64; 15]| table[freedom.min(table.len() - 1)];
        let (half_width, smallest_effect) = (t(&T_975) * error, (t(&T_975) + t(&T_800)) * error);
        Some(Self { pairs, mean, deviation, half_width, smallest_effect })
    }

    /// The 95 % interval of the mean.
    pub(crate) fn interval(&self) -> [f64; 2] {
        [self.mean - self.half_width, self.mean + self.half_width]
    }

    /// In words, for a difference of losses: one side minus the other.
    pub(crate) fn verdict(&self) -> &'static str {
        match self.interval() {
            [_, high] if high < 0.0 => "better",
            [low, _] if low > 0.0 => "worse",
            _ => "no difference shown",
        }
    }
}

/// Not a number without any.
pub(crate) fn mean(numbers: &[f64]) -> f64 {
    numbers.iter().sum::<f64>() / numbers.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_example_matches_a_computation_by_hand() {
        // Mean 2, variance (1 + 0 + 1) / 2 = 1, error 1 / sqrt 3, two degrees of freedom.
        let found = Paired::of(&[1.0, 2.0, 3.0]).unwrap();
        let error = 1.0 / 3f64.sqrt();
        assert_eq!((found.pairs, found.mean, found.deviation), (3, 2.0, 1.0));
        assert!((found.half_width - 4.303 * error).abs() < 1e-12);
        assert!((found.smallest_effect - (4.303 + 1.061) * error).abs() < 1e-12);
        assert_eq!(found.verdict(), "no difference shown");
    }

    #[test]
    fn an_interval_on_one_side_of_zero_is_a_finding() {
        assert_eq!(Paired::of(&[-1.0, -1.1, -0.9, -1.0]).unwrap().verdict(), "better");
        assert_eq!(Paired::of(&[1.0, 1.1, 0.9, 1.0]).unwrap().verdict(), "worse");
    }

    #[test]
    fn one_pair_shows_nothing() {
        assert_eq!(Paired::of(&[1.0]), None);
        assert_eq!(Paired::of(&[]), None);
    }
}

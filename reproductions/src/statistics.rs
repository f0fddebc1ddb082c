//! Means over seeds, their intervals, and what counts as confusion.

/// Accuracy at most this close to chance, 10 %, is structural confusion \[D\]; in points.
const CONFUSED: f64 = 2.0;

/// Whether a run learned next to nothing; one that diverged guesses one class for ever.
pub(crate) fn is_confused(accuracy: f64) -> bool {
    (accuracy - 10.0).abs() <= CONFUSED
}

/// NaN without any.
pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Two-sided 95 % quantiles of Student's t for 1 to 9 degrees of freedom.
const T_95: [f64; 9] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262];

/// Half the width of the 95 % interval of the mean, of 2 to 10 values.
pub(crate) fn half_width(values: &[f64]) -> Option<f64> {
    let t = T_95.get(values.len().checked_sub(2)?)?;
    let (mean, n) = (mean(values), values.len() as f64);
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
    Some(t * (variance / n).sqrt())
}

/// `mean +- half width`; the mean alone for one value.
pub(crate) fn interval(values: &[f64]) -> String {
    match half_width(values) {
        Some(half) => format!("{:.2} ± {half:.2}", mean(values)),
        None => format!("{:.2}", mean(values)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_that_of_student() {
        // Standard deviation sqrt(2), over sqrt(2), times 12.706.
        assert_eq!(interval(&[40.0, 42.0]), "41.00 ± 12.71");
        assert_eq!(interval(&[40.0]), "40.00");
    }

    #[test]
    fn confusion_is_within_two_points_of_chance() {
        assert!([8.0, 10.0, 12.0].into_iter().all(is_confused));
        assert!(!is_confused(12.1) && !is_confused(f64::NAN));
    }
}

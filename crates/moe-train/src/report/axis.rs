//! Ranges, round ticks and their labels.

/// What the values of a chart are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scale {
    /// Numbers of one magnitude.
    Linear,
    /// Positive numbers: logarithmic if they span more than two decades.
    Magnitudes,
    /// Whole numbers from 0.
    Counts,
}

/// A mapping of values to pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    log: bool,
    /// Smallest distance of two ticks.
    min_step: f64,
    /// Pixel of `low` and of `high`.
    pixels: (f64, f64),
}

impl Axis {
    /// A linear axis over `low..high`.
    pub(super) fn linear(low: f64, high: f64, pixels: (f64, f64)) -> Self {
        let high = if high > low { high } else { low + 1.0 };
        Self { low, high, log: false, min_step: 0.0, pixels }
    }

    /// An axis for whole numbers from 0 to `high`.
    pub(super) fn counts(high: f64, pixels: (f64, f64)) -> Self {
        Self { min_step: 1.0, ..Self::linear(0.0, high, pixels) }
    }

    /// An axis with a margin around all finite `values`.
    pub(super) fn around(values: impl Iterator<Item = f64> + Clone, scale: Scale, pixels: (f64, f64)) -> Self {
        let finite = values.filter(|value| value.is_finite());
        let low = finite.clone().fold(f64::INFINITY, f64::min);
        let high = finite.fold(f64::NEG_INFINITY, f64::max);
        match scale {
            Scale::Counts => Self::counts((high * 1.06).max(1.0), pixels),
            _ if low > high => Self::linear(0.0, 1.0, pixels),
            Scale::Magnitudes if low > 0.0 && high / low > 100.0 => {
                Self { log: true, ..Self::linear(low / 1.2, high * 1.2, pixels) }
            }
            Scale::Linear | Scale::Magnitudes => Self::with_margin(low, high, pixels),
        }
    }

    fn with_margin(low: f64, high: f64, pixels: (f64, f64)) -> Self {
        let margin = match high - low {
            0.0 => high.abs().max(1e-12) * 0.5,
            span => span * 0.06,
        };
        // A curve above zero needs no room below it.
        let floor = if low >= 0.0 { 0.0 } else { f64::NEG_INFINITY };
        Self::linear((low - margin).max(floor), high + margin, pixels)
    }

    /// Where `value` lies.
    pub(super) fn pixel(&self, value: f64) -> f64 {
        let position = |value: f64| if self.log { value.ln() } else { value };
        let part = (position(value) - position(self.low)) / (position(self.high) - position(self.low));
        self.pixels.0 + part * (self.pixels.1 - self.pixels.0)
    }

    /// The same axis in another unit: a value is `factor` times as large.
    pub(super) fn scaled(&self, factor: f64) -> Self {
        Self { low: self.low * factor, high: self.high * factor, ..*self }
    }

    /// Round values inside the range, about `count` of them, with their labels.
    pub(super) fn ticks(&self, count: usize) -> Vec<(f64, String)> {
        if self.log {
            return self.log_ticks();
        }
        let step = round_step((self.high - self.low) / count.max(1) as f64).max(self.min_step);
        let (first, last) = ((self.low / step).ceil() as i64, (self.high / step).floor() as i64);
        let value = |index: i64| index as f64 * step;
        (first..=last).map(|index| (value(index), label(value(index), step))).collect()
    }

    fn log_ticks(&self) -> Vec<(f64, String)> {
        let decades = (self.low.log10().floor() as i32)..=(self.high.log10().ceil() as i32);
        let every = decades.clone().count().div_ceil(7);
        let ticks = decades.step_by(every).map(|decade| 10f64.powi(decade));
        let inside = ticks.filter(|value| (self.low..=self.high).contains(value));
        inside.map(|value| (value, label(value, value))).collect()
    }
}

/// 1, 2 or 5 times a power of ten, the nearest to `step` in ratio.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let factor = match step / power {
        part if part < 1.5 => 1.0,
        part if part < 3.2 => 2.0,
        part if part < 7.1 => 5.0,
        _ => 10.0,
    };
    factor * power
}

/// `value` with as many digits as ticks `step` apart need.
fn label(value: f64, step: f64) -> String {
    let zero = value.abs() < step / 2.0;
    if zero {
        return "0".into();
    }
    if step >= 1e6 {
        return format!("{}M", trim(value / 1e6, step / 1e6));
    }
    if step >= 1e3 {
        return format!("{}k", trim(value / 1e3, step / 1e3));
    }
    if step < 1e-3 {
        let power = value.abs().log10().floor() as i32;
        let mantissa = trim(value / 10f64.powi(power), step / 10f64.powi(power));
        let mantissa = mantissa.strip_suffix(".0").unwrap_or(&mantissa);
        return format!("{mantissa}e{power}");
    }
    trim(value, step)
}

fn trim(value: f64, step: f64) -> String {
    let decimals = (-step.log10() - 1e-9).ceil().clamp(0.0, 6.0) as usize;
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: Axis) -> Vec<String> {
        axis.ticks(5).into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_are_round_and_inside() {
        let labels = |low, high| labels(Axis::linear(low, high, (0.0, 100.0)));
        assert_eq!(labels(0.0, 2000.0), ["0", "500", "1000", "1500", "2000"]);
        assert_eq!(labels(0.0, 50_000.0), ["0", "10k", "20k", "30k", "40k", "50k"]);
        assert_eq!(labels(1.23, 2.34), ["1.4", "1.6", "1.8", "2.0", "2.2"]);
        assert_eq!(labels(0.0, 1e-3), ["0", "2e-4", "4e-4", "6e-4", "8e-4", "1e-3"]);
        assert_eq!(labels(0.0, 4.0), ["0", "1", "2", "3", "4"]);
    }

    #[test]
    fn ends_of_the_range_are_ends_in_pixels() {
        let axis = Axis::linear(2.0, 4.0, (100.0, 0.0));
        assert_eq!([2.0, 3.0, 4.0].map(|value| axis.pixel(value)), [100.0, 50.0, 0.0]);
    }

    #[test]
    fn one_value_or_none_still_makes_an_axis() {
        for values in [vec![], vec![3.0], vec![0.0], vec![f64::NAN]] {
            for scale in [Scale::Linear, Scale::Magnitudes, Scale::Counts] {
                let axis = Axis::around(values.iter().copied(), scale, (0.0, 10.0));
                assert!(!axis.ticks(4).is_empty(), "{values:?} {scale:?}");
                assert!(values.iter().all(|value| value.is_nan() || axis.pixel(*value).is_finite()));
            }
        }
    }

    #[test]
    fn a_wide_span_is_logarithmic_only_where_allowed() {
        let values = [0.1, 1000.0].into_iter();
        let log = Axis::around(values.clone(), Scale::Magnitudes, (0.0, 100.0));
        assert_eq!(labels(log), ["0.1", "1", "10", "100", "1k"]);
        assert!(!Axis::around(values, Scale::Linear, (0.0, 100.0)).log);
    }

    #[test]
    fn counts_have_whole_ticks_from_zero() {
        let axis = |high: f64| Axis::around([1.0, high].into_iter(), Scale::Counts, (0.0, 100.0));
        assert_eq!(labels(axis(1.0)), ["0", "1"]);
        assert_eq!(labels(axis(9.0)), ["0", "2", "4", "6", "8"]);
    }

    #[test]
    fn another_unit_moves_the_ticks_not_the_pixels() {
        let axis = Axis::linear(0.0, 10.0, (0.0, 100.0));
        assert_eq!(axis.scaled(2.0).pixel(20.0), axis.pixel(10.0));
    }
}

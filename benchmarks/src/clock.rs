//! Time of one repetition and what many repetitions come to.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// What one repetition took, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Time {
    /// On the clock on the wall.
    pub(crate) wall: f64,
    /// Of the processor, summed over the threads of the process.
    pub(crate) cpu: f64,
}

/// Which of the two times ratios are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Clock {
    /// Several threads, or a GPU.
    Wall,
    /// One thread: other programs on the machine disturb it less.
    Cpu,
}

impl Clock {
    /// The clock for this many threads of a processor, or for a GPU.
    pub(crate) fn choose(threads: usize, on_gpu: bool) -> Self {
        if threads == 1 && !on_gpu { Self::Cpu } else { Self::Wall }
    }

    /// The time this clock shows.
    pub(crate) fn of(self, time: &Time) -> f64 {
        match self {
            Self::Wall => time.wall,
            Self::Cpu => time.cpu,
        }
    }

    /// The name in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Wall => "wall time",
            Self::Cpu => "process CPU time",
        }
    }
}

/// Runs `action` and says how long it took.
pub(crate) fn timed<T>(action: impl FnOnce() -> T) -> (T, Time) {
    let (wall, cpu) = (Instant::now(), process_time());
    let value = action();
    let cpu = process_time().saturating_sub(cpu).as_secs_f64();
    (value, Time { wall: wall.elapsed().as_secs_f64(), cpu })
}

#[expect(unsafe_code, reason = "the clock of the process is not in std")]
fn process_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock is one of POSIX and `time` is ours.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    assert_eq!(failed, 0, "the clock of the process answers");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The middle of some numbers and how far they lie apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    /// A quarter of the numbers is smaller.
    pub(crate) lower_quartile: f64,
    /// A quarter of the numbers is larger.
    pub(crate) upper_quartile: f64,
    pub(crate) min: f64,
}

impl Spread {
    /// Of at least one number.
    pub(crate) fn of(numbers: impl IntoIterator<Item = f64>) -> Self {
        let mut numbers: Vec<f64> = numbers.into_iter().collect();
        numbers.sort_by(f64::total_cmp);
        let at = |part| quantile(&numbers, part);
        Self { median: at(0.5), lower_quartile: at(0.25), upper_quartile: at(0.75), min: at(0.0) }
    }

    /// Half the distance between the quartiles, as a part of the median.
    pub(crate) fn relative(&self) -> f64 {
        (self.upper_quartile - self.lower_quartile) / (2.0 * self.median)
    }
}

/// Where the true median of what these numbers are drawn from lies, in 95 of 100 studies: by their ranks alone, whatever their
/// distribution. All of them for fewer than six.
pub(crate) fn median_interval(numbers: impl IntoIterator<Item = f64>) -> [f64; 2] {
    let mut sorted: Vec<f64> = numbers.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len() as f64;
    // How many of them are below the median is binomial, with mean n / 2 and deviation sqrt(n) / 2; 1 corrects for continuity.
    let below = ((n - 1.0 - 1.96 * n.sqrt()) / 2.0).floor().max(0.0) as usize;
    [sorted[below], sorted[sorted.len() - 1 - below]]
}

/// The number that `part` of the sorted numbers lie below, between two of them where need be.
fn quantile(sorted: &[f64], part: f64) -> f64 {
    let place = part * (sorted.len() - 1) as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_of_five_numbers_are_three_of_them() {
        let spread = Spread::of([4.0, 1.0, 5.0, 2.0, 3.0]);
        assert_eq!(spread, Spread { median: 3.0, lower_quartile: 2.0, upper_quartile: 4.0, min: 1.0 });
        assert_eq!(spread.relative(), 1.0 / 3.0);
    }

    #[test]
    fn an_interval_of_the_median_is_between_two_of_the_numbers() {
        let to = |n: u32| (1..=n).rev().map(f64::from);
        assert_eq!(median_interval(to(1)), [1.0, 1.0]);
        assert_eq!(median_interval(to(4)), [1.0, 4.0]);
        // Of 100 coins, 40 to 60 show heads with probability 0.965, 41 to 59 with 0.943.
        assert_eq!(median_interval(to(100)), [40.0, 61.0]);
    }

    #[test]
    fn between_two_numbers_the_median_lies_in_the_middle() {
        assert_eq!(Spread::of([2.0, 1.0]).median, 1.5);
        assert_eq!(Spread::of([7.0]).relative(), 0.0);
    }

    /// The processor's time is that of the process, so other tests add to it.
    #[test]
    fn work_takes_time_on_both_clocks_and_sleep_on_the_wall() {
        let (sum, busy) = timed(|| (0..20_000_000_u64).fold(0, |sum: u64, i| sum ^ i.wrapping_mul(sum | 1)));
        std::hint::black_box(sum);
        assert!(busy.wall > 0.0 && busy.cpu > 1e-3, "{busy:?}");
        let ((), asleep) = timed(|| std::thread::sleep(Duration::from_millis(20)));
        assert!(asleep.wall >= 0.02, "{asleep:?}");
    }

    #[test]
    fn one_thread_of_a_processor_is_measured_by_its_own_time() {
        let time = Time { wall: 2.0, cpu: 1.0 };
        assert_eq!(Clock::choose(1, false).of(&time), 1.0);
        assert_eq!(Clock::choose(2, false).of(&time), 2.0);
        assert_eq!(Clock::choose(1, true).of(&time), 2.0);
    }
}

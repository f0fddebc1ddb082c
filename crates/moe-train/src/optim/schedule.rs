//! Learning rate of every step: linear warm-up, then a cosine down to the floor.
//!
//! A pure function of the step, so that a resumed run needs no scheduler state to continue exactly.

use std::f64::consts::PI;

use crate::config::OptimConfig;

/// Learning rate of optimizer step `step` (0-based) in a run of `steps` steps.
///
/// - Warm-up: the `warmup_steps` first steps rise linearly, `lr * (step + 1) / (warmup_steps + 1)`, never 0.
/// - Step `warmup_steps` is the peak, `lr`.
/// - From there half a cosine falls to exactly `min_lr` at the last step, `steps - 1`, and stays there beyond it.
///
/// A run that ends at its peak or before (`steps <= warmup_steps + 1`) has no decay.
pub fn lr_at(config: &OptimConfig, steps: usize, step: usize) -> f64 {
    let peak = config.warmup_steps;
    if step < peak {
        return config.lr * (step + 1) as f64 / (peak + 1) as f64;
    }
    let last = steps.saturating_sub(1);
    if step == peak || last <= peak {
        return config.lr;
    }
    if step >= last {
        return config.min_lr;
    }
    let progress = (step - peak) as f64 / (last - peak) as f64;
    let height = 0.5 * (1.0 + (PI * progress).cos());
    config.min_lr + height * (config.lr - config.min_lr)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LR: f64 = 1e-3;
    const MIN_LR: f64 = 1e-4;
    const RELATIVE: f64 = 1e-12;

    fn config(warmup_steps: usize) -> OptimConfig {
        OptimConfig {
            lr: LR,
            min_lr: MIN_LR,
            warmup_steps,
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.1,
            clip_norm: 1.0,
            excitation: None,
            gamma: 1.0,
            control: None,
            freeze: Vec::new(),
        }
    }

    #[test]
    fn without_warm_up_the_first_step_has_the_peak_rate() {
        assert_eq!(lr_at(&config(0), 100, 0), LR);
    }

    #[test]
    fn the_first_warm_up_step_is_not_zero() {
        let lr = lr_at(&config(9), 100, 0);
        assert!((lr - LR / 10.0).abs() < RELATIVE * LR, "{lr}");
    }

    #[test]
    fn warm_up_rises_to_the_peak_and_the_cosine_falls_to_the_floor() {
        let config = config(10);
        let rates: Vec<f64> = (0..100).map(|step| lr_at(&config, 100, step)).collect();
        assert!(rates[..=10].windows(2).all(|pair| pair[0] < pair[1]));
        assert!(rates[10..].windows(2).all(|pair| pair[0] > pair[1]));
        assert_eq!(rates[10], LR);
        assert_eq!(rates[99], MIN_LR);
    }

    #[test]
    fn half_way_down_the_rate_is_the_mean_of_peak_and_floor() {
        let lr = lr_at(&config(0), 101, 50);
        assert!((lr - (LR + MIN_LR) / 2.0).abs() < RELATIVE * LR, "{lr}");
    }

    #[test]
    fn beyond_the_last_step_the_rate_stays_at_the_floor() {
        assert_eq!(lr_at(&config(10), 100, 100), MIN_LR);
        assert_eq!(lr_at(&config(10), 100, usize::MAX), MIN_LR);
    }

    #[test]
    fn a_run_of_one_step_trains_at_the_peak() {
        assert_eq!(lr_at(&config(0), 1, 0), LR);
    }

    #[test]
    fn a_run_shorter_than_its_warm_up_only_rises() {
        let config = config(50);
        assert!(lr_at(&config, 20, 19) < LR);
        assert!(lr_at(&config, 20, 18) < lr_at(&config, 20, 19));
    }
}

//! The same training with and without excitation, in turns, the optimizer's part timed by itself.

use burn::tensor::backend::AutodiffBackend;
use excitation_optim::LayerFactors;
use moe_tests::{live_bytes, take_peak_bytes};
use moe_train::backend::{Device, Training};

use crate::clock::{Time, timed};
use crate::error::{Error, Result};
use crate::session::wait;

/// A model in training.
pub(super) trait Side {
    /// Tokens, or samples, of a step.
    fn tokens(&self) -> usize;
    /// Bytes of the parameters that an excitation scales.
    fn expert_bytes(&self) -> u64;
    /// Everything up to the gradients.
    fn gradients(&mut self);
    /// What the optimizer makes of them: returns the factors, none without excitation.
    fn optimize(&mut self) -> Factors;
}

/// Of every layer with experts.
pub(super) type Factors = Vec<LayerFactors<<Training as AutodiffBackend>::InnerBackend>>;

/// Of one side: a time for every round.
#[derive(Debug, Default)]
pub(super) struct Measured {
    pub(super) rest: Vec<Time>,
    pub(super) optimizer: Vec<Time>,
    /// Bytes alive at most during the optimizer's step, beyond those at its start; the largest of the rounds.
    pub(super) peak: u64,
}

/// All sides step by step in turns.
///
/// # Errors
///
/// What the device reports, a plain side with factors, and an excited one whose factors change nothing.
pub(super) fn measure<S: Side>(
    mut sides: [S; 3],
    warm_up: usize,
    rounds: usize,
    device: &Device,
) -> Result<[Measured; 3]> {
    let mut measured: [Measured; 3] = Default::default();
    for round in 0..warm_up + rounds {
        for (index, (side, measured)) in sides.iter_mut().zip(&mut measured).enumerate() {
            let (done, rest) = timed(|| {
                side.gradients();
                wait::<Training>(device)
            });
            done?;
            let before = live_bytes();
            take_peak_bytes();
            let (factors, optimizer) = timed(|| {
                let factors = side.optimize();
                wait::<Training>(device).map(|()| factors)
            });
            let peak = take_peak_bytes() - before;
            verify(index, factors?)?;
            if round >= warm_up {
                measured.rest.push(rest);
                measured.optimizer.push(optimizer);
                measured.peak = measured.peak.max(peak.try_into().unwrap_or(0));
            }
        }
    }
    Ok(measured)
}

/// The first side is plain; in every layer of the others, some expert's change was amplified.
fn verify(side: usize, factors: Factors) -> Result<()> {
    let amplifies = |layer: LayerFactors<_>| layer.factors.max().into_data().iter::<f64>().all(|largest| largest > 1.0);
    let excited = !factors.is_empty() && factors.into_iter().all(amplifies);
    if excited == (side > 0) {
        return Ok(());
    }
    Err(Error::of("wrong result, so nothing is timed", format!("side {side} is excited: {excited}")))
}

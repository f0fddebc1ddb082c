//! One run: a network, an optimizer, some epochs, and what came out.

use std::time::Instant;

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module, ModuleVisitor, Param, ParamId};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::{AdaGradConfig, AdamConfig, GradientsParams, Optimizer, RmsPropConfig, SgdConfig};
use burn::tensor::backend::Backend;
use burn::tensor::{Device, ElementConversion, Int, Tensor};
use excitation_optim::{Exciter, ExpertLayers, FindExperts, LayerFactors, register_counts};
use moe_models::mlp::{TopKMlp, TopKMlpOutput};

use crate::Chosen;
use crate::cell::{Base, Cell, Outcome};
use crate::cifar::{CLASSES, Cifar, Pictures};
use crate::order::shuffled;

type Training = Autodiff<Chosen>;

/// Pictures of the test set at once.
const TEST_BATCH: usize = 1000;
/// Steps of a run whose factors and norms are looked at, spread evenly.
const PROBES: usize = 20;

/// Where the counts of each hidden layer are registered. One device, no accumulation: any id will do.
#[derive(Clone)]
struct Units {
    counts: Vec<ParamId>,
}

impl FindExperts<TopKMlp<Training>> for Units {
    fn find(&self, network: &TopKMlp<Training>, found: &mut ExpertLayers) {
        for (layer, (linear, &counts)) in network.hidden.iter().zip(&self.counts).enumerate() {
            found.layer(format!("hidden.{layer}"), counts).neurons(linear);
        }
    }
}

/// Runs `cell` on `cifar`.
pub(crate) fn run(cell: &Cell, cifar: &Cifar) -> Outcome {
    match cell.base {
        Base::Sgd => Run::new(cell, cifar).train(SgdConfig::new().init()),
        Base::Adam => Run::new(cell, cifar).train(AdamConfig::new().init()),
        Base::RmsProp => Run::new(cell, cifar).train(RmsPropConfig::new().init()),
        Base::AdaGrad => Run::new(cell, cifar).train(AdaGradConfig::new().init()),
    }
}

struct Run<'a> {
    cell: &'a Cell,
    cifar: &'a Cifar,
    device: Device<Chosen>,
    probes: Vec<Probe>,
}

/// What a looked-at step did.
struct Probe {
    mean_factor: f64,
    weighted_factor: f64,
    step_ratio: f64,
}

impl<'a> Run<'a> {
    fn new(cell: &'a Cell, cifar: &'a Cifar) -> Self {
        Self { cell, cifar, device: Default::default(), probes: Vec::new() }
    }

    fn train(mut self, mut inner: impl Optimizer<TopKMlp<Training>, Training>) -> Outcome {
        let started = Instant::now();
        Training::seed(&self.device, self.cell.seed);
        let mut network = self.cell.network().init::<Training>(&self.device);
        let units = Units { counts: network.hidden.iter().map(|_| ParamId::new()).collect() };
        let mut exciter = Exciter::new(self.cell.excitation(), units.clone());
        let steps = self.cifar.train.len() / self.cell.batch;
        let every = (steps * self.cell.epochs).div_ceil(PROBES).max(1);
        let (mut train_loss, mut by_epoch, mut untimed) = (f64::NAN, Vec::new(), 0.0);
        for epoch in 0..self.cell.epochs {
            let order = shuffled(self.cifar.train.len(), self.cell.seed, epoch as u64);
            let mut sum = 0.0;
            for (index, batch) in order.chunks_exact(self.cell.batch).enumerate() {
                let (loss, grads, counts) = self.gradients(&network, &units, batch);
                sum += loss;
                let probed = (epoch * steps + index).is_multiple_of(every);
                let before = probed.then(|| (network.clone(), inner.clone(), copy(&network, &grads)));
                let factors;
                (network, factors) = exciter.step(&mut inner, self.cell.lr, network, grads);
                if let Some((old, mut bare, grads)) = before {
                    let bare = bare.step(self.cell.lr, old.clone(), grads);
                    let step_ratio = distance(&old, &network) / distance(&old, &bare);
                    self.probes.push(probe(&factors, &counts, step_ratio));
                }
            }
            train_loss = sum / steps as f64;
            let trained = Instant::now();
            by_epoch.push(test(&network.valid(), &self.cifar.test, self.cifar, &self.device));
            untimed += trained.elapsed().as_secs_f64();
        }
        self.outcome(&by_epoch, train_loss, started.elapsed().as_secs_f64() - untimed)
    }

    /// Loss and gradients of a batch, the counts registered, and the counts of each layer on the host.
    fn gradients(
        &self,
        network: &TopKMlp<Training>,
        units: &Units,
        batch: &[usize],
    ) -> (f64, GradientsParams, Vec<Tensor<Chosen, 1>>) {
        let (pictures, labels) = self.cifar.train.batch::<Training>(batch, &self.cifar.colours, &self.device);
        let output = network.forward(pictures);
        let counts: Vec<_> = output.counts().into_iter().map(Tensor::inner).collect();
        let loss = CrossEntropyLossConfig::new().init(&self.device).forward(output.logits, labels);
        let value = loss.clone().into_scalar().elem::<f64>();
        let mut grads = GradientsParams::from_grads(loss.backward(), network);
        for (&id, counts) in units.counts.iter().zip(&counts) {
            register_counts(&mut grads, id, counts.clone(), batch.len());
        }
        (value, grads, counts)
    }

    fn outcome(&self, by_epoch: &[Tested], train_loss: f64, seconds: f64) -> Outcome {
        let tested = by_epoch.last().expect("a run has at least one epoch");
        let mean = |value: fn(&Probe) -> f64| self.probes.iter().map(value).sum::<f64>() / self.probes.len() as f64;
        Outcome {
            accuracy: tested.accuracy,
            accuracy_by_epoch: by_epoch.iter().map(|tested| tested.accuracy).collect(),
            train_loss,
            mean_factor: mean(|probe| probe.mean_factor),
            weighted_factor: mean(|probe| probe.weighted_factor),
            step_ratio: mean(|probe| probe.step_ratio),
            gini_simpson: tested.use_of_units.iter().map(|layer| gini_simpson(layer)).collect(),
            dead_units: tested.use_of_units.iter().map(|layer| dead_units(layer)).collect(),
            load_ratio: tested.use_of_units.iter().map(|layer| load_ratio(layer)).collect(),
            seconds,
        }
    }
}

/// The gradients of the parameters once more, without the counts.
fn copy(network: &TopKMlp<Training>, grads: &GradientsParams) -> GradientsParams {
    struct Copy<'a>(&'a GradientsParams, GradientsParams);
    impl ModuleVisitor<Training> for Copy<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Training, D>>) {
            if let Some(grad) = self.0.get::<Chosen, D>(param.id) {
                self.1.register(param.id, grad);
            }
        }
    }
    let mut copy = Copy(grads, GradientsParams::new());
    network.visit(&mut copy);
    copy.1
}

/// Euclidean distance of all parameters.
fn distance(from: &TopKMlp<Training>, to: &TopKMlp<Training>) -> f64 {
    let (from, to) = (parameters(from), parameters(to));
    from.iter().zip(&to).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt()
}

fn parameters(network: &TopKMlp<Training>) -> Vec<f64> {
    struct Collect(Vec<f64>);
    impl ModuleVisitor<Training> for Collect {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Training, D>>) {
            self.0.extend(param.val().into_data().iter::<f64>());
        }
    }
    let mut collect = Collect(Vec::new());
    network.visit(&mut collect);
    collect.0
}

fn probe(factors: &[LayerFactors<Chosen>], counts: &[Tensor<Chosen, 1>], step_ratio: f64) -> Probe {
    let host = |tensor: &Tensor<Chosen, 1>| tensor.to_data().iter::<f64>().collect::<Vec<f64>>();
    let (mut mean_factor, mut weighted_factor) = (0.0, 0.0);
    for (layer, counts) in factors.iter().zip(counts) {
        let (phi, u) = (host(&layer.factors), host(counts));
        mean_factor += phi.iter().sum::<f64>() / phi.len() as f64;
        weighted_factor += phi.iter().zip(&u).map(|(phi, u)| phi * u).sum::<f64>() / u.iter().sum::<f64>();
    }
    let layers = factors.len() as f64;
    Probe { mean_factor: mean_factor / layers, weighted_factor: weighted_factor / layers, step_ratio }
}

struct Tested {
    accuracy: f64,
    /// For every hidden layer and unit, for how many pictures of each class the unit survived.
    use_of_units: Vec<Vec<[f64; CLASSES]>>,
}

fn test(network: &TopKMlp<Chosen>, pictures: &Pictures, cifar: &Cifar, device: &Device<Chosen>) -> Tested {
    let mut right = 0.0;
    let mut sums: Vec<Tensor<Chosen, 2>> = Vec::new();
    let all: Vec<usize> = (0..pictures.len()).collect();
    for batch in all.chunks(TEST_BATCH) {
        let (samples, labels) = pictures.batch::<Chosen>(batch, &cifar.colours, device);
        let TopKMlpOutput { logits, survived } = network.forward(samples);
        let guessed: Tensor<Chosen, 1, Int> = logits.argmax(1).squeeze_dim(1);
        right += guessed.equal(labels.clone()).float().sum().into_scalar().elem::<f64>();
        let classes = labels.one_hot::<2>(CLASSES).float().transpose();
        let uses = survived.into_iter().map(|layer| classes.clone().matmul(layer.float()));
        sums = if sums.is_empty() { uses.collect() } else { sums.into_iter().zip(uses).map(|(a, b)| a + b).collect() };
    }
    Tested { accuracy: 100.0 * right / pictures.len() as f64, use_of_units: sums.into_iter().map(by_unit).collect() }
}

/// `[classes, E]` to one row per unit.
fn by_unit(uses: Tensor<Chosen, 2>) -> Vec<[f64; CLASSES]> {
    let values: Vec<f64> = uses.transpose().into_data().iter::<f64>().collect();
    values.chunks_exact(CLASSES).map(|row| row.try_into().expect("a row has one number per class")).collect()
}

fn total(unit: &[f64; CLASSES]) -> f64 {
    unit.iter().sum()
}

/// Mean over the units in use; NaN if there is none.
fn gini_simpson(layer: &[[f64; CLASSES]]) -> f64 {
    let used: Vec<_> = layer.iter().filter(|unit| total(unit) > 0.0).collect();
    let index = |unit: &[f64; CLASSES]| 1.0 - unit.iter().map(|n| (n / total(unit)).powi(2)).sum::<f64>();
    used.iter().map(|unit| index(unit)).sum::<f64>() / used.len() as f64
}

fn dead_units(layer: &[[f64; CLASSES]]) -> usize {
    layer.iter().filter(|unit| total(unit) == 0.0).count()
}

fn load_ratio(layer: &[[f64; CLASSES]]) -> f64 {
    let loads: Vec<f64> = layer.iter().map(total).collect();
    loads.iter().copied().fold(0.0, f64::max) * loads.len() as f64 / loads.iter().sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::Method;
    use crate::{cifar, grid};

    fn small(method: Method, lr: f64) -> Outcome {
        let dir = tempfile::tempdir().expect("a directory");
        cifar::tests::write(dir.path(), 40);
        let data = Cifar::load(dir.path()).expect("it is whole");
        let cell = Cell { method, epochs: 12, batch: 20, lr, ..grid::headline(grid::tests::SETTING) };
        run(&cell, &data)
    }

    #[test]
    fn a_plain_run_learns_has_factors_of_one_and_steps_of_its_own_length() {
        let outcome = small(Method::Plain, 0.2);
        assert!(outcome.accuracy > 60.0, "{outcome:?}");
        assert_eq!((outcome.mean_factor, outcome.weighted_factor, outcome.step_ratio), (1.0, 1.0, 1.0));
        assert_eq!(outcome.dead_units.len(), 4);
        assert_eq!((outcome.accuracy_by_epoch.len(), outcome.accuracy_by_epoch[11]), (12, outcome.accuracy));
        assert!(outcome.accuracy_by_epoch[0] < outcome.accuracy);
    }

    #[test]
    fn an_excited_run_has_the_mean_factor_of_its_variant_and_longer_steps() {
        let outcome = small(Method::Excited(excitation_optim::Variant::ZeroSum), 0.05);
        assert!((outcome.mean_factor - 1.0).abs() < 1e-5, "{outcome:?}");
        assert!(outcome.weighted_factor > 1.2 && outcome.step_ratio > 1.1, "{outcome:?}");
    }

    #[test]
    fn statistics_of_units_are_those_of_the_formulas() {
        let (mut one, mut even, dead) = ([0.0; CLASSES], [2.0; CLASSES], [0.0; CLASSES]);
        one[3] = 20.0;
        assert!((gini_simpson(&[one, even, dead]) - 0.45).abs() < 1e-12);
        assert_eq!(dead_units(&[one, even, dead]), 1);
        even = [0.0; CLASSES];
        assert_eq!(load_ratio(&[one, even]), 2.0);
    }
}

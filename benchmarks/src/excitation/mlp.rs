//! The network of the CIFAR-10 study, every hidden unit an expert, trained by SGD on random pictures.

use burn::module::ParamId;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::adaptor::OptimizerAdaptor;
use burn::optim::{GradientsParams, Optimizer, Sgd, SgdConfig};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Int, Tensor, TensorData};
use excitation_optim::{ExcitationConfig, Exciter, ExpertLayers, FindExperts, register_counts};
use moe_models::mlp::{TopKMlp, TopKMlpConfig, TopKMlpOutput};
use moe_train::backend::{Device, Training};

use super::sides::{Factors, Side};
use super::{LR, excitations, seeded};
use crate::data::{mixed, tensor};

/// Seeds of pictures and labels.
const PICTURES: u64 = 2;
const LABELS: u64 = 3;

type Inner = <Training as AutodiffBackend>::InnerBackend;

/// Without excitation, with it, and with it in low-memory mode.
pub(super) fn sides(config: &TopKMlpConfig, batch: usize, device: &Device) -> [MlpSide; 3] {
    excitations().map(|excitation| MlpSide::new(config, batch, excitation, device))
}

/// Where the counts of each hidden layer are registered.
#[derive(Clone)]
struct Units(Vec<ParamId>);

impl FindExperts<TopKMlp<Training>> for Units {
    fn find(&self, network: &TopKMlp<Training>, found: &mut ExpertLayers) {
        for (layer, (linear, &counts)) in network.hidden.iter().zip(&self.0).enumerate() {
            found.layer(format!("hidden.{layer}"), counts).neurons(linear);
        }
    }
}

pub(super) struct MlpSide {
    /// Empty only while a step is taken.
    network: Option<TopKMlp<Training>>,
    optimizer: OptimizerAdaptor<Sgd<Inner>, TopKMlp<Training>, Training>,
    units: Units,
    exciter: Option<Exciter<Units>>,
    /// Those of the step, and which units survived.
    gradients: Option<(GradientsParams, TopKMlpOutput<Training>)>,
    pictures: Tensor<Training, 2>,
    labels: Tensor<Training, 1, Int>,
}

impl MlpSide {
    fn new(config: &TopKMlpConfig, batch: usize, excitation: Option<ExcitationConfig>, device: &Device) -> Self {
        seeded(device);
        let network: TopKMlp<Training> = config.init(device);
        let units = Units(network.hidden.iter().map(|_| ParamId::new()).collect());
        let labels: Vec<i64> = (0..batch).map(|i| i64::from(mixed(i, LABELS)) % config.num_classes as i64).collect();
        Self {
            network: Some(network),
            optimizer: SgdConfig::new().init(),
            exciter: excitation.map(|excitation| Exciter::new(excitation, units.clone())),
            units,
            gradients: None,
            pictures: tensor([batch, config.d_input], PICTURES, 1.0, device),
            labels: Tensor::from_data(TensorData::new(labels, [batch]), device),
        }
    }

    fn network(&self) -> &TopKMlp<Training> {
        self.network.as_ref().expect("a network between steps")
    }
}

impl Side for MlpSide {
    fn tokens(&self) -> usize {
        self.pictures.dims()[0]
    }

    fn expert_bytes(&self) -> u64 {
        let numbers = self.network().hidden.iter().map(|linear| {
            let [inputs, units] = linear.weight.dims();
            (inputs + 1) * units
        });
        4 * numbers.sum::<usize>() as u64
    }

    fn gradients(&mut self) {
        let output = self.network().forward(self.pictures.clone());
        let loss = CrossEntropyLossConfig::new()
            .init(&self.pictures.device())
            .forward(output.logits.clone(), self.labels.clone());
        self.gradients = Some((GradientsParams::from_grads(loss.backward(), self.network()), output));
    }

    fn optimize(&mut self) -> Factors {
        let network = self.network.take().expect("a network between steps");
        let (mut grads, output) = self.gradients.take().expect("gradients were made");
        let (network, factors) = match &mut self.exciter {
            None => (self.optimizer.step(LR, network, grads), Vec::new()),
            Some(exciter) => {
                for (&id, counts) in self.units.0.iter().zip(output.counts()) {
                    register_counts(&mut grads, id, counts.inner(), self.pictures.dims()[0]);
                }
                exciter.step(&mut self.optimizer, LR, network, grads)
            }
        };
        self.network = Some(network);
        factors
    }
}

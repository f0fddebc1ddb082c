//! The layer: a router, its experts and the auxiliary losses.

use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use moe_kernels::{MoeBackend, linear};

use crate::dispatch::{self, Capacity};
use crate::router::scores::sigmoid;
use crate::{
    Activation, BalanceConvention, DenseFeedForward, DenseFeedForwardConfig, Experts, ExpertsConfig,
    ImportanceConvention, Router, RouterConfig, RouterRule, Routing, importance_loss, load_balance_loss, load_loss,
    project, router_z_loss, sequence_balance_loss,
};

/// Configuration to create a [`Moe`] using the [init function](MoeConfig::init).
#[derive(Config, Debug)]
pub struct MoeConfig {
    /// Width of a token, `D`.
    pub d_model: usize,
    /// Width inside an expert, `F`.
    pub d_hidden: usize,
    /// Number of experts, `E`.
    pub num_experts: usize,
    /// Experts per token, `K`.
    pub top_k: usize,
    /// Divide the gates of a token by their sum. Default: false
    #[config(default = false)]
    pub normalize_gates: bool,
    /// Who chooses. Default: softmax top-K
    #[config(default = "RouterRule::TopK")]
    pub router: RouterRule,
    /// How many slots an expert serves at most. Default: `None`, any number
    #[config(default = "None")]
    pub capacity: Option<Capacity>,
    /// Inside the experts, shared ones too. Default: SwiGLU
    #[config(default = "Activation::SwiGlu")]
    pub activation: Activation,
    /// Whether the routed experts have biases. Default: false
    #[config(default = false)]
    pub bias: bool,
    /// Width of the shared experts together, which no router chooses: `n` of them of width `F` are one network of width `n F`
    /// (DeepSeekMoE, [Dai et al., 2024](https://arxiv.org/abs/2401.06066)). Default: 0, there are none
    #[config(default = 0)]
    pub shared_d_hidden: usize,
    /// Whether a token weighs its shared experts by a sigmoid of its own (Qwen2-MoE,
    /// [Yang et al., 2024](https://arxiv.org/abs/2407.10671)). Default: false
    #[config(default = false)]
    pub shared_gate: bool,
    /// What the load-balance loss counts. Default: Switch
    #[config(default = "BalanceConvention::Switch")]
    pub balance: BalanceConvention,
    /// Weight of the load-balance loss. Default: 0.01
    #[config(default = 0.01)]
    pub balance_coef: f64,
    /// Weight of the router z-loss. Default: 0 (ST-MoE uses 0.001)
    #[config(default = 0.0)]
    pub z_coef: f64,
    /// What the importance and the load loss sum. Default: V-MoE's
    #[config(default = "ImportanceConvention::VMoe")]
    pub importance: ImportanceConvention,
    /// Weight of the [importance loss](importance_loss). Default: 0 (V-MoE: 0.005)
    #[config(default = 0.0)]
    pub importance_coef: f64,
    /// Weight of the [load loss](load_loss) of a noisy router. Default: 0 (V-MoE: 0.005)
    #[config(default = 0.0)]
    pub load_coef: f64,
    /// How router and experts start. Default: uniform in `+-1 / sqrt(fan in)`, as burn's `Linear`
    #[config(default = "crate::experts::default_initializer()")]
    pub initializer: Initializer,
}

impl MoeConfig {
    /// What contradicts itself.
    ///
    /// # Errors
    ///
    /// Says which field is wrong, and what it may be.
    pub fn validate(&self) -> Result<(), String> {
        match &self.router {
            RouterRule::Sigmoid(options) => options.validate(self.num_experts, self.top_k)?,
            RouterRule::Relu(options) => options.validate()?,
            _ => {}
        }
        if !self.router.chooses_k() && self.balance == BalanceConvention::Sequence {
            return Err(
                "the balance of sequences needs tokens with K experts each, which this router does not give".into()
            );
        }
        if self.load_coef != 0.0 && !matches!(self.router, RouterRule::NoisyTopK(_)) {
            return Err(format!("load_coef = {} needs a router with noise, noisy-top-k", self.load_coef));
        }
        if self.load_coef != 0.0 && matches!(&self.router, RouterRule::NoisyTopK(noisy) if noisy.noise_std == Some(0.0))
        {
            return Err(format!("load_coef = {} needs noise, but noise_std is 0", self.load_coef));
        }
        if self.shared_gate && self.shared_d_hidden == 0 {
            return Err("shared_gate is set, but shared_d_hidden = 0: there are no shared experts".into());
        }
        match &self.capacity {
            Some(Capacity { factor, .. }) if !(*factor > 0.0 && factor.is_finite()) => {
                Err(format!("the factor of the capacity is {factor}; it must be a finite number above 0"))
            }
            _ => Ok(()),
        }
    }

    /// Creates the layer on `device`.
    ///
    /// # Panics
    ///
    /// Panics unless `1 <= top_k <= num_experts` and no size but `shared_d_hidden` is zero, and with the message of
    /// [`validate`](Self::validate).
    pub fn init<B: Backend>(&self, device: &B::Device) -> Moe<B> {
        if let Err(error) = self.validate() {
            panic!("MoeConfig: {error}");
        }
        let router = RouterConfig::new(self.d_model, self.num_experts, self.top_k)
            .with_normalize_gates(self.normalize_gates)
            .with_rule(self.router.clone())
            .with_initializer(self.initializer.clone());
        let experts = ExpertsConfig::new(self.num_experts, self.d_model, self.d_hidden)
            .with_activation(self.activation)
            .with_bias(self.bias)
            .with_initializer(self.initializer.clone());
        Moe {
            router: router.init(device),
            experts: experts.init(device),
            shared: self.init_shared(device),
            shared_gate: self.init_shared_gate(device),
            top_k: self.top_k,
            capacity: self.capacity.clone(),
            balance: self.balance,
            balance_coef: self.balance_coef,
            z_coef: self.z_coef,
            importance: self.importance,
            importance_coef: self.importance_coef,
            load_coef: self.load_coef,
        }
    }

    fn init_shared<B: Backend>(&self, device: &B::Device) -> Option<DenseFeedForward<B>> {
        let shared = DenseFeedForwardConfig::new(self.d_model, self.shared_d_hidden)
            .with_activation(self.activation)
            .with_initializer(self.initializer.clone());
        (self.shared_d_hidden > 0).then(|| shared.init(device))
    }

    fn init_shared_gate<B: Backend>(&self, device: &B::Device) -> Option<Param<Tensor<B, 2>>> {
        let d = self.d_model;
        self.shared_gate.then(|| self.initializer.init_with([d, 1], Some(d), Some(1), device))
    }
}

/// A Mixture-of-Experts feed-forward layer. Created by [`MoeConfig`].
#[derive(Module, Debug)]
pub struct Moe<B: Backend> {
    /// Chooses the experts.
    pub router: Router<B>,
    /// The feed-forward networks.
    pub experts: Experts<B>,
    /// Those that every token passes through, where there are any.
    pub shared: Option<DenseFeedForward<B>>,
    /// Their gate, where it is configured, `[D, 1]`.
    pub shared_gate: Option<Param<Tensor<B, 2>>>,
    top_k: usize,
    #[module(skip)]
    capacity: Option<Capacity>,
    #[module(skip)]
    balance: BalanceConvention,
    balance_coef: f64,
    z_coef: f64,
    #[module(skip)]
    importance: ImportanceConvention,
    importance_coef: f64,
    load_coef: f64,
}

impl<B: MoeBackend> Moe<B> {
    /// Routes every token and sums its experts' outputs: `y_t = sum_k gate_tk * expert_tk(x_t)`, and where there are
    /// shared experts `+ sigmoid(x_t shared_gate) * shared(x_t)`, the sigmoid only with a gate.
    ///
    /// # Shapes
    ///
    /// - input: `[.., S, D]`, any leading dimensions; with `S` they are the `T` tokens
    /// - output: the shape and dtype of the input
    ///
    /// `S` is the length of a sequence, for a balance loss of sequences; nothing else looks at it.
    ///
    /// # Panics
    ///
    /// Panics when the last dimension is not `D`, and with a hash router, which needs [`forward_ids`](Self::forward_ids).
    pub fn forward<const N: usize>(&self, input: Tensor<B, N>) -> MoeOutput<B, N> {
        self.forward_with(input, |tokens, routing| (dispatch::grouped(tokens, &self.experts, routing), ())).0
    }

    /// [`forward`](Self::forward) for tokens whose ids are known, which a hash router looks at and no other.
    ///
    /// # Shapes
    ///
    /// - input: `[.., S, D]`
    /// - ids: `[T]`, in the order of the tokens
    ///
    /// # Panics
    ///
    /// Panics when the last dimension is not `D`, and with a hash router when there are not `T` ids.
    pub fn forward_ids<const N: usize>(&self, input: Tensor<B, N>, ids: Tensor<B, 1, Int>) -> MoeOutput<B, N> {
        let route = |tokens| self.router.forward_ids(tokens, ids);
        self.run(input, route, |tokens, routing| (dispatch::grouped(tokens, &self.experts, routing), ())).0
    }

    /// [`forward`](Self::forward) with `serve` in the place of dispatch: it takes the tokens `[T, D]` and the decision
    /// about them to the routed experts' part of the output, `[T, D]`, and to whatever else it finds.
    ///
    /// # Panics
    ///
    /// Panics when the last dimension is not `D`, with a hash router, and when `serve` does.
    pub fn forward_with<const N: usize, R>(
        &self,
        input: Tensor<B, N>,
        serve: impl FnOnce(Tensor<B, 2>, &Routing<B>) -> (Tensor<B, 2>, R),
    ) -> (MoeOutput<B, N>, R) {
        self.run(input, |tokens| self.router.forward(tokens), serve)
    }

    fn run<const N: usize, R>(
        &self,
        input: Tensor<B, N>,
        route: impl FnOnce(Tensor<B, 2>) -> Routing<B>,
        serve: impl FnOnce(Tensor<B, 2>, &Routing<B>) -> (Tensor<B, 2>, R),
    ) -> (MoeOutput<B, N>, R) {
        let shape = input.dims();
        let d_model = shape[N - 1];
        let num_tokens = shape[..N - 1].iter().product::<usize>();
        let tokens: Tensor<B, 2> = input.reshape([num_tokens, d_model]);

        let routing = route(tokens.clone());
        let num_sequences = if N > 2 { shape[..N - 2].iter().product() } else { 1 };
        let losses = self.losses(&routing, num_sequences);
        let routing = match &self.capacity {
            Some(capacity) => capacity.apply(routing, self.top_k),
            None => routing,
        };
        let shared = self.forward_shared(&tokens);
        let (routed, found) = serve(tokens, &routing);
        let output = match shared {
            Some(shared) => routed + shared,
            None => routed,
        };
        (MoeOutput { output: output.reshape(shape), losses, routing }, found)
    }

    fn forward_shared(&self, tokens: &Tensor<B, 2>) -> Option<Tensor<B, 2>> {
        // Not every backend multiplies an empty matrix.
        let shared = self.shared.as_ref().filter(|_| tokens.dims()[0] > 0)?;
        let output = shared.forward(tokens.clone());
        Some(match &self.shared_gate {
            Some(gate) => {
                // In each column as a product, so that its gradient is one too.
                let ones = Tensor::ones([1, output.dims()[1]], (&output.device(), output.dtype()));
                output * linear(sigmoid(project(tokens.clone(), gate)), ones)
            }
            None => output,
        })
    }

    fn losses(&self, routing: &Routing<B>, num_sequences: usize) -> MoeLosses<B> {
        let balance = match self.balance {
            BalanceConvention::Sequence if routing.num_tokens() > 0 => sequence_balance_loss(routing, num_sequences),
            convention => load_balance_loss(routing, convention),
        };
        MoeLosses {
            balance,
            z: router_z_loss(routing),
            other: self.other_losses(routing),
            balance_coef: self.balance_coef,
            z_coef: self.z_coef,
        }
    }

    fn other_losses(&self, routing: &Routing<B>) -> Option<Tensor<B, 1>> {
        let weighted = [
            (self.importance_coef != 0.0).then(|| importance_loss(routing, self.importance) * self.importance_coef),
            (self.load_coef != 0.0).then(|| load_loss(routing, self.importance) * self.load_coef),
            self.router.own_loss(routing),
        ];
        weighted.into_iter().flatten().reduce(|a, b| a + b)
    }
}

/// What a forward pass yields: nothing of it stays in the module.
#[derive(Debug, Clone)]
pub struct MoeOutput<B: MoeBackend, const N: usize> {
    /// The layer's output, in the shape of its input.
    pub output: Tensor<B, N>,
    /// What the router decided.
    pub routing: Routing<B>,
    /// The auxiliary losses of this pass.
    pub losses: MoeLosses<B>,
}

/// Auxiliary losses of one layer, with their weights.
#[derive(Debug, Clone)]
pub struct MoeLosses<B: Backend> {
    /// Load-balance loss, unweighted, `[1]`.
    pub balance: Tensor<B, 1>,
    /// Router z-loss, unweighted, `[1]`.
    pub z: Tensor<B, 1>,
    /// Sum of the importance loss, the load loss and the [router's own](Router::own_loss), weighted, `[1]`; where there are any.
    pub other: Option<Tensor<B, 1>>,
    /// Weight of `balance`.
    pub balance_coef: f64,
    /// Weight of `z`.
    pub z_coef: f64,
}

impl<B: Backend> MoeLosses<B> {
    /// The sum to add to the training loss, `[1]`: `balance_coef * balance + z_coef * z`, and the others.
    pub fn weighted(&self) -> Tensor<B, 1> {
        let sum = self.balance.clone() * self.balance_coef + self.z.clone() * self.z_coef;
        match &self.other {
            Some(other) => sum + other.clone(),
            None => sum,
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;

    use super::*;
    use crate::router::NoisyTopKOptions;

    #[test]
    fn leading_dimensions_do_not_matter() {
        let device = Default::default();
        let moe = MoeConfig::new(8, 16, 4, 2).init::<Flex>(&device);
        let input = Tensor::<Flex, 3>::random([2, 3, 8], burn::tensor::Distribution::Default, &device);
        let flat = moe.forward(input.clone().reshape([6, 8])).output.into_data();
        let nested = moe.forward(input).output.reshape([6, 8]).into_data();
        nested.assert_eq(&flat, true);
    }

    #[test]
    #[should_panic(expected = "must have D = 8, got 6")]
    fn an_input_of_another_width_panics() {
        let moe = MoeConfig::new(8, 16, 4, 2).init::<Flex>(&Default::default());
        moe.forward(Tensor::<Flex, 2>::ones([2, 6], &Default::default()));
    }

    #[test]
    #[should_panic(expected = "shared_d_hidden = 0")]
    fn a_gate_of_no_shared_experts_panics() {
        MoeConfig::new(8, 16, 4, 2).with_shared_gate(true).init::<Flex>(&Default::default());
    }

    #[test]
    #[should_panic(expected = "RouterConfig: top_k = 5 must be in 1..=4")]
    fn more_experts_per_token_than_experts_panics() {
        MoeConfig::new(8, 16, 4, 5).init::<Flex>(&Default::default());
    }

    #[test]
    #[should_panic(expected = "ExpertsConfig: no size may be zero, got E = 4, D = 8, F = 0")]
    fn a_zero_width_panics() {
        MoeConfig::new(8, 0, 4, 2).init::<Flex>(&Default::default());
    }

    #[test]
    #[should_panic(expected = "needs noise, but noise_std is 0")]
    fn a_load_loss_of_no_noise_panics() {
        let noisy = NoisyTopKOptions::new().with_noise_std(Some(0.0));
        let config = MoeConfig::new(8, 16, 4, 2).with_router(RouterRule::NoisyTopK(noisy)).with_load_coef(0.1);
        config.init::<Flex>(&Default::default());
    }

    #[test]
    #[should_panic(expected = "the factor of the capacity is 0")]
    fn a_layer_without_capacity_panics() {
        MoeConfig::new(8, 16, 4, 2).with_capacity(Some(Capacity::new(0.0))).init::<Flex>(&Default::default());
    }
}

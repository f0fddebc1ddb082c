//! A multilayer perceptron whose hidden layers keep their largest activations only: every hidden unit is an expert.
//!
//! The network of the CIFAR-10 study in Excitation ([Shaier, 2026](https://arxiv.org/abs/2602.21798)): 4 layers of 128 units,
//! ReLU, top-K \[S: second-hand: the paper itself was not read\]. The experts of a layer are its units; the parameters of unit `i` are
//! column `i` of the layer's weight and element `i` of its bias \[D: our decision, nothing public settles it\].

mod keep_top;
mod network;

#[cfg(test)]
mod tests;

pub use keep_top::keep_top;
pub use network::{HiddenInit, TopKMlp, TopKMlpConfig, TopKMlpOutput};

//! The tensors of a checkpoint, as views into the parameters of a model.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use moe_kernels::MoeBackend;
use safetensors::Dtype;
use safetensors::tensor::View;

use super::WeightDtype;
use super::layout::Piece;
use crate::lm::Lm;

/// The parameters of `model` by path, each as a list of numbers.
pub(super) fn by_path<B: MoeBackend>(model: &Lm<B>) -> HashMap<String, Tensor<B, 1>> {
    let mut tensors = Tensors { path: Vec::new(), found: HashMap::new() };
    model.visit(&mut tensors);
    tensors.found
}

struct Tensors<B: Backend> {
    path: Vec<String>,
    found: HashMap<String, Tensor<B, 1>>,
}

impl<B: Backend> ModuleVisitor<B> for Tensors<B> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let numbers = param.shape().num_elements();
        self.found.insert(self.path.join("."), param.val().detach().reshape([numbers]));
    }
}

/// One tensor of a checkpoint, which is read from the device only when it is written.
pub(super) struct Weights<'a, B: Backend> {
    pub(super) piece: &'a Piece,
    /// The parameter it is a part of.
    pub(super) tensor: &'a Tensor<B, 1>,
    pub(super) dtype: WeightDtype,
    /// Gets the name of the first tensor with a number that the dtype cannot hold: a view has no other way to fail.
    pub(super) overflow: &'a RefCell<Option<String>>,
}

impl<B: Backend> View for Weights<'_, B> {
    fn dtype(&self) -> Dtype {
        self.dtype.in_file()
    }

    fn shape(&self) -> &[usize] {
        &self.piece.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let block = self.tensor.clone().slice(self.piece.block()).cast(DType::F32).into_data();
        let numbers = self.piece.gather(block.as_slice().expect("it was cast to f32"));
        if numbers.iter().any(|&number| self.dtype.overflows(number)) {
            self.overflow.borrow_mut().get_or_insert_with(|| self.piece.name.clone());
        }
        self.dtype.encode(&numbers).into()
    }

    fn data_len(&self) -> usize {
        self.piece.len() * self.dtype.size()
    }
}

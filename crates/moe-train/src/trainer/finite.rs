//! Whether the parameters of a model are numbers: no checkpoint holds others.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};

/// One pass over all parameters and one read of the device.
pub(super) fn is_finite<B: Backend>(model: &impl Module<B>) -> bool {
    let mut products = Products(Vec::new());
    model.visit(&mut products);
    let sums = products.0;
    sums.is_empty() || Tensor::cat(sums, 0).into_data().iter::<f64>().all(|sum| sum == 0.0)
}

/// Zero times every parameter, summed: NaN where one is infinite or NaN, whatever the sizes of the others.
struct Products<B: Backend>(Vec<Tensor<B, 1>>);

impl<B: Backend> ModuleVisitor<B> for Products<B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.0.push(param.val().detach().mul_scalar(0.0).sum().cast(DType::F32));
    }
}

#[cfg(test)]
#[cfg(feature = "flex")]
mod tests {
    use burn::backend::Flex;
    use burn::nn::{Linear, LinearConfig};

    use super::*;

    #[test]
    fn one_number_that_is_none_is_found() {
        let model: Linear<Flex> = LinearConfig::new(3, 2).init(&Default::default());
        assert!(is_finite(&model));
        for value in [f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            let weight = model.weight.clone().map(|weight| weight.slice_fill([1..2, 1..2], value));
            assert_eq!(is_finite(&Linear { weight, bias: model.bias.clone() }), value.is_finite(), "{value}");
        }
    }
}

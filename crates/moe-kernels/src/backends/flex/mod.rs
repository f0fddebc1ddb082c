//! burn-flex.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, TensorData};
use burn_flex::{Flex, FlexTensor};

use crate::{MoeBackend, cpu, portable};

impl MoeBackend for Flex {
    fn moe_swiglu(input: FloatTensor<Self>) -> FloatTensor<Self> {
        if input.dtype() != DType::F32 {
            return portable::swiglu::<Self>(input);
        }
        let ([rows, width], input) = (dims(&input), input.to_contiguous());
        let mut output = vec![0.0; rows * width / 2];
        if !output.is_empty() {
            cpu::swiglu(values(&input), &mut output, width / 2);
        }
        FlexTensor::from_data(TensorData::new(output, [rows, width / 2]))
    }

    fn moe_swiglu_backward(input: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        if input.dtype() != DType::F32 {
            return portable::swiglu_backward::<Self>(input, grad);
        }
        let ([rows, width], input, grad) = (dims(&input), input.to_contiguous(), grad.to_contiguous());
        let mut output = vec![0.0; rows * width];
        if !output.is_empty() {
            cpu::swiglu_backward(values(&input), values(&grad), &mut output, width / 2);
        }
        FlexTensor::from_data(TensorData::new(output, [rows, width]))
    }
}

fn dims(matrix: &FlexTensor) -> [usize; 2] {
    let shape = matrix.layout().shape();
    [shape[0], shape[1]]
}

/// The numbers of a contiguous f32 tensor, in order.
fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("the tensor is contiguous and f32")
}

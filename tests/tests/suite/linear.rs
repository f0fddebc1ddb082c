//! The product of rows with one matrix against loops in f64: values and both gradients.

use burn::tensor::Tensor;
use moe_kernels::{AutodiffMoeBackend, linear, linear_onto, linear_transposed, reference};
use moe_tests::{assert_close, host, on_every_path, random, tensor};

on_every_path!(
    linear_matches_the_loop,
    linear_transposed_matches_the_loop,
    linear_onto_matches_the_loop,
    linear_onto_leaves_others_what_it_adds_to,
    a_vector_among_the_operands_changes_nothing,
    a_transposed_input_is_read_in_its_own_order,
);

/// `T`, `I`, `O`.
const SHAPES: [[usize; 3]; 4] = [[1, 1, 1], [13, 7, 5], [150, 33, 70], [260, 3, 130]];

/// One expert owns all rows.
fn loops(x: &[f64], weight: &[f64], grad: &[f64], [rows, d_in, d_out]: [usize; 3]) -> [Vec<f64>; 3] {
    let experts = vec![0; rows];
    let (dx, dw) = reference::grouped_matmul_grad(x, weight, grad, d_in, d_out, &experts);
    [reference::grouped_matmul(x, weight, d_in, d_out, &experts), dx, dw]
}

fn linear_matches_the_loop<B: AutodiffMoeBackend>(device: &B::Device) {
    matches_the_loop::<B>(linear, false, device);
}

fn linear_transposed_matches_the_loop<B: AutodiffMoeBackend>(device: &B::Device) {
    matches_the_loop::<B>(linear_transposed, true, device);
}

fn linear_onto_matches_the_loop<B: AutodiffMoeBackend>(device: &B::Device) {
    for [rows, d_in, d_out] in SHAPES {
        let (x, weight, grad) = (random(rows * d_in, 1), random(d_in * d_out, 2), random(rows * d_out, 3));
        let base = random(rows * d_out, 4);
        let [y, dx, dw] = loops(&x, &weight, &grad, [rows, d_in, d_out]);
        let sum: Vec<f64> = base.iter().zip(y).map(|(base, y)| base + y).collect();
        // Which of the three are to have a gradient: all, and each alone.
        for tracked in [[true; 3], [true, false, false], [false, true, false], [false, false, true]] {
            let given = |values: &[f64], shape, is_tracked| {
                let tensor = tensor::<B, 2>(values, shape, device);
                if is_tracked { tensor.require_grad() } else { tensor }
            };
            let base_in = given(&base, [rows, d_out], tracked[0]);
            let x_in = given(&x, [rows, d_in], tracked[1]);
            let weight_in = given(&weight, [d_in, d_out], tracked[2]);
            let output = linear_onto(base_in.clone(), x_in.clone(), weight_in.clone());
            assert_close("output", &host(output.clone()), &sum);
            let grads = (output * tensor::<B, 2>(&grad, [rows, d_out], device)).sum().backward();
            let expected = [("base", base_in, &grad), ("x", x_in, &dx), ("weight", weight_in, &dw)];
            for ((name, tensor, expected), tracked) in expected.into_iter().zip(tracked) {
                match tensor.grad(&grads) {
                    Some(found) => assert_close(&format!("gradient of {name}"), &host(found), expected),
                    None => assert!(!tracked, "{name} has no gradient"),
                }
            }
        }
    }
}

fn linear_onto_leaves_others_what_it_adds_to<B: AutodiffMoeBackend>(device: &B::Device) {
    let (base, x, weight) = (random(9 * 4, 1), random(9 * 3, 2), random(3 * 4, 3));
    let tensors = || (tensor::<B, 2>(&x, [9, 3], device), tensor::<B, 2>(&weight, [3, 4], device));
    let base_in = tensor::<B, 2>(&base, [9, 4], device);
    let ((x_in, weight_in), product) = (tensors(), reference::grouped_matmul(&x, &weight, 3, 4, &[0; 9]));
    let sum: Vec<f64> = base.iter().zip(&product).map(|(base, y)| base + y).collect();
    assert_close("output", &host(linear_onto(base_in.clone(), x_in, weight_in)), &sum);
    assert_close("base", &host(base_in.clone()), &base);
    // A view of another order, and a part of something larger.
    let turned = tensor::<B, 2>(&transposed(&base, [9, 4]), [4, 9], device).transpose();
    let part = Tensor::cat(vec![turned.clone() - 1.0, turned.clone()], 0).slice([9..18, 0..4]);
    for base_in in [turned, part] {
        let (x_in, weight_in) = tensors();
        assert_close("output", &host(linear_onto(base_in, x_in, weight_in)), &sum);
    }
}

/// `turned` where `product` takes its weight transposed.
fn matches_the_loop<B: AutodiffMoeBackend>(
    product: fn(Tensor<B, 2>, Tensor<B, 2>) -> Tensor<B, 2>,
    turned: bool,
    device: &B::Device,
) {
    for [rows, d_in, d_out] in SHAPES {
        let laid = |weight: &[f64]| if turned { transposed(weight, [d_in, d_out]) } else { weight.to_vec() };
        let shape = if turned { [d_out, d_in] } else { [d_in, d_out] };
        let (x, weight, grad) = (random(rows * d_in, 1), random(d_in * d_out, 2), random(rows * d_out, 3));
        let [y, dx, dw] = loops(&x, &weight, &grad, [rows, d_in, d_out]);
        let x_in = tensor::<B, 2>(&x, [rows, d_in], device).require_grad();
        let weight_in = tensor::<B, 2>(&laid(&weight), shape, device).require_grad();
        let output = product(x_in.clone(), weight_in.clone());
        assert_close("output", &host(output.clone()), &y);
        let grads = (output * tensor::<B, 2>(&grad, [rows, d_out], device)).sum().backward();
        assert_close("gradient of x", &host(x_in.grad(&grads).expect("tracked")), &dx);
        assert_close("gradient of weight", &host(weight_in.grad(&grads).expect("tracked")), &laid(&dw));
    }
}

/// The matrix `[rows, columns]` with its columns as rows.
fn transposed(matrix: &[f64], [rows, columns]: [usize; 2]) -> Vec<f64> {
    (0..columns * rows).map(|i| matrix[i % rows * columns + i / rows]).collect()
}

/// What is computed from a product may be computed by its kernel, and of kernels for a vector burn 0.21 has two that are then
/// wrong for some layouts (tracel-ai/burn#5122, tracel-ai/cubek#262). Autotuning decides where it is on, so each shape is another try;
/// `cargo xtask test` builds the suite without it.
fn a_vector_among_the_operands_changes_nothing<B: AutodiffMoeBackend>(device: &B::Device) {
    for [rows, d_in, d_out] in [[7, 5, 1], [40, 64, 1], [300, 16, 1], [1, 5, 7], [1, 64, 48], [9, 1, 4]] {
        let (x, weight) = (random(rows * d_in, 1), random(d_in * d_out, 2));
        let twice: Vec<f64> =
            loops(&x, &weight, &vec![0.0; rows * d_out], [rows, d_in, d_out])[0].iter().map(|y| 2.0 * y).collect();
        let turned = tensor::<B, 2>(&transposed(&weight, [d_in, d_out]), [d_out, d_in], device);
        let (x, weight) = (tensor::<B, 2>(&x, [rows, d_in], device), tensor::<B, 2>(&weight, [d_in, d_out], device));
        let doubled = |product: Tensor<B, 2>| host(product.clone() + product);
        let what = format!("{rows} x {d_in} x {d_out}");
        assert_close(&what, &doubled(linear(x.clone(), weight)), &twice);
        assert_close(
            &format!("{what}, transposed view"),
            &doubled(linear(x.clone(), turned.clone().transpose())),
            &twice,
        );
        assert_close(&format!("{what}, transposed"), &doubled(linear_transposed(x, turned)), &twice);
    }
}

fn a_transposed_input_is_read_in_its_own_order<B: AutodiffMoeBackend>(device: &B::Device) {
    let (x, weight) = (random(70 * 9, 4), random(9 * 6, 5));
    let turned = transposed(&x, [70, 9]);
    let x_in = tensor::<B, 2>(&turned, [9, 70], device).transpose();
    let output = linear(x_in, tensor::<B, 2>(&weight, [9, 6], device));
    assert_close("output", &host(output), &reference::grouped_matmul(&x, &weight, 9, 6, &[0; 70]));
}

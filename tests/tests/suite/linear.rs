//! The product of rows with one matrix against loops in f64: values and both gradients.

use moe_kernels::{AutodiffMoeBackend, linear, reference};
use moe_tests::{assert_close, host, on_every_backend_and_unfused, random, tensor};

on_every_backend_and_unfused!(linear_matches_the_loop, a_transposed_input_is_read_in_its_own_order);

/// `T`, `I`, `O`.
const SHAPES: [[usize; 3]; 4] = [[1, 1, 1], [13, 7, 5], [150, 33, 70], [260, 3, 130]];

/// One expert owns all rows.
fn loops(x: &[f64], weight: &[f64], grad: &[f64], [rows, d_in, d_out]: [usize; 3]) -> [Vec<f64>; 3] {
    let experts = vec![0; rows];
    let (dx, dw) = reference::grouped_matmul_grad(x, weight, grad, d_in, d_out, &experts);
    [reference::grouped_matmul(x, weight, d_in, d_out, &experts), dx, dw]
}

fn linear_matches_the_loop<B: AutodiffMoeBackend>(device: &B::Device) {
    for [rows, d_in, d_out] in SHAPES {
        let (x, weight, grad) = (random(rows * d_in, 1), random(d_in * d_out, 2), random(rows * d_out, 3));
        let x_in = tensor::<B, 2>(&x, [rows, d_in], device).require_grad();
        let weight_in = tensor::<B, 2>(&weight, [d_in, d_out], device).require_grad();
        let output = linear(x_in.clone(), weight_in.clone());
        let [y, dx, dw] = loops(&x, &weight, &grad, [rows, d_in, d_out]);
        assert_close("output", &host(output.clone()), &y);
        let grads = (output * tensor::<B, 2>(&grad, [rows, d_out], device)).sum().backward();
        assert_close("gradient of x", &host(x_in.grad(&grads).expect("tracked")), &dx);
        assert_close("gradient of the weight", &host(weight_in.grad(&grads).expect("tracked")), &dw);
    }
}

fn a_transposed_input_is_read_in_its_own_order<B: AutodiffMoeBackend>(device: &B::Device) {
    let (x, weight) = (random(70 * 9, 4), random(9 * 6, 5));
    let turned: Vec<f64> = (0..9 * 70).map(|i| x[i % 70 * 9 + i / 70]).collect();
    let x_in = tensor::<B, 2>(&turned, [9, 70], device).transpose();
    let output = linear(x_in, tensor::<B, 2>(&weight, [9, 6], device));
    assert_close("output", &host(output), &reference::grouped_matmul(&x, &weight, 9, 6, &[0; 70]));
}

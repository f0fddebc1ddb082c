//! Sums along a dimension and rows divided by numbers against loops in f64: values and gradients.

use burn::tensor::Tensor;
use moe_kernels::{AutodiffMoeBackend, MoeBackend, divide_rows, sum_dim};
use moe_tests::{assert_close, host, on_every_path, random, tensor};

on_every_path!(sums_match_the_loop, quotients_match_the_loop, what_is_summed_keeps_its_numbers);

const SHAPE: [usize; 3] = [5, 3, 7];

/// Of `SHAPE`, with 1 at `dim`.
fn sums(x: &[f64], dim: usize) -> Vec<f64> {
    let [stride, size] = [SHAPE[dim + 1..].iter().product::<usize>(), SHAPE[dim]];
    let mut sums = vec![0.0; x.len() / size];
    for (i, value) in x.iter().enumerate() {
        sums[i / (stride * size) * stride + i % stride] += value;
    }
    sums
}

fn sums_match_the_loop<B: AutodiffMoeBackend>(device: &B::Device) {
    let x = random(SHAPE.iter().product(), 1);
    for dim in 0..3 {
        let x_in = tensor::<B, 3>(&x, SHAPE, device).require_grad();
        let output = sum_dim(x_in.clone(), dim);
        let weight = random(x.len() / SHAPE[dim], 2);
        let grads = (output.clone() * tensor(&weight, output.dims(), device)).sum().backward();
        assert_close("output", &host(output), &sums(&x, dim));
        let stride = SHAPE[dim + 1..].iter().product::<usize>();
        let of_sum = |i: usize| weight[i / (stride * SHAPE[dim]) * stride + i % stride];
        let expected: Vec<f64> = (0..x.len()).map(of_sum).collect();
        assert_close("gradient of x", &host(x_in.grad(&grads).expect("tracked")), &expected);
    }
}

fn quotients_match_the_loop<B: AutodiffMoeBackend>(device: &B::Device) {
    for [rows, width] in [[1, 1], [17, 4], [6, 40]] {
        let (x, grad) = (random(rows * width, 3), random(rows * width, 4));
        let divisors: Vec<f64> = random(rows, 5).iter().map(|d| 1.5 + d).collect();
        let x_in = tensor::<B, 2>(&x, [rows, width], device).require_grad();
        let divisors_in = tensor::<B, 2>(&divisors, [rows, 1], device).require_grad();
        let output = divide_rows(x_in.clone(), divisors_in.clone());
        let grads = (output.clone() * tensor(&grad, [rows, width], device)).sum().backward();

        let by_row = |f: &dyn Fn(usize) -> f64| (0..x.len()).map(f).collect::<Vec<_>>();
        assert_close("output", &host(output), &by_row(&|i| x[i] / divisors[i / width]));
        let dx = by_row(&|i| grad[i] / divisors[i / width]);
        assert_close("gradient of x", &host(x_in.grad(&grads).expect("tracked")), &dx);
        let mut of_divisors = vec![0.0; rows];
        for i in 0..x.len() {
            of_divisors[i / width] -= grad[i] * x[i] / divisors[i / width].powi(2);
        }
        assert_close("gradient of divisors", &host(divisors_in.grad(&grads).expect("tracked")), &of_divisors);
    }
}

/// Fusion may compute what goes into a sum in the same kernel, and in place: see [`sum_dim`].
fn what_is_summed_keeps_its_numbers<B: AutodiffMoeBackend>(device: &B::Device) {
    for shape @ [rows, width] in [[16, 4], [3, 20], [2, 70], [40, 3]] {
        let (a, b) = (random(rows * width, 6), random(rows * width, 7));
        let from = |numbers: &[f64]| tensor::<B::InnerBackend, 2>(numbers, shape, device);
        let products = add_and_double(from(&a), from(&b));
        let totals = host(sum_dim(products.clone(), 1));
        let expected: Vec<f64> = a.iter().zip(&b).map(|(a, b)| 2.0 * (a + b)).collect();
        assert_close("numbers", &host(products), &expected);
        assert_close("totals", &totals, &expected.chunks(width).map(|row| row.iter().sum()).collect::<Vec<_>>());
    }
}

fn add_and_double<B: MoeBackend>(a: Tensor<B, 2>, b: Tensor<B, 2>) -> Tensor<B, 2> {
    (a + b).mul_scalar(2.0)
}

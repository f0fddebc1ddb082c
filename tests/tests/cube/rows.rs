//! Dispatch, combine and SwiGLU in every float of the device: as exact as the type allows.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use moe_kernels::cube;
use moe_kernels::reference;
use moe_tests::{LARGE_CASES, on_unfused_cube};

use crate::support::{assert_within, data, floats, host, ints, rounding, types};

on_unfused_cube!(rows_move_and_add_up_in_every_type, swiglu_matches_the_formula_in_every_type);

fn values(shape: &[usize], seed: u64, dtype: DType) -> Vec<f64> {
    data(shape, seed, dtype).iter().collect()
}

fn rows_move_and_add_up_in_every_type<R: CubeRuntime>(device: &R::Device) {
    for (case, dtype) in LARGE_CASES.iter().flat_map(|case| types::<R>(device).into_iter().map(move |d| (case, d))) {
        let (experts, k) = (case.assignment(), case.top_k);
        let (tokens, rows, gates) = ([case.tokens, case.d_model], [experts.len(), case.d_model], [case.tokens, k]);
        let close = |what: &str, actual, expected: &[f64]| {
            assert_within(&format!("{}, {what}, {dtype:?}", case.name), &host::<R>(actual), expected, rounding(dtype));
        };
        let plan = cube::plan(ints::<R>(&experts, &gates, device), case.experts, DType::I32);
        let [token, row, gate] = [(tokens, 1), (rows, 2), (gates, 3)].map(|(s, seed)| values(&s, seed, dtype));
        let [x, y, g] = [(tokens, 1), (rows, 2), (gates, 3)].map(|(s, seed)| floats::<R>(&s, seed, dtype, device));
        let width = case.d_model;

        let output = cube::dispatch(x.clone(), plan.token_of_row.clone());
        assert_eq!(host(output), reference::dispatch(&token, width, &experts, k), "{}", case.name);
        let output = cube::dispatch_backward(y.clone(), plan.row_of_slot.clone(), k);
        close("dispatch_backward", output, &reference::dispatch_grad(&row, width, &experts, k));
        let output = cube::combine(y.clone(), g.clone(), plan.row_of_slot.clone());
        close("combine", output, &reference::combine(&row, &gate, width, &experts, k));

        let (row_grad, gate_grad) = reference::combine_grad(&row, &gate, &token, width, &experts, k);
        close("rows", cube::combine_backward_rows(x.clone(), g, plan.slot_of_row), &row_grad);
        close("gates", cube::combine_backward_gates(x, y, plan.row_of_slot, k), &gate_grad);
    }
}

fn swiglu_matches_the_formula_in_every_type<R: CubeRuntime>(device: &R::Device) {
    for (rows, f) in [(33, 20), (7, 9)] {
        for dtype in types::<R>(device) {
            let (z, grad) = (values(&[rows, 2 * f], 1, dtype), values(&[rows, f], 2, dtype));
            let input = floats::<R>(&[rows, 2 * f], 1, dtype, device);
            let output = host(cube::swiglu(input.clone()));
            assert_within("swiglu", &output, &reference::swiglu(&z, f), rounding(dtype));

            let output = host(cube::swiglu_backward(input, floats::<R>(&[rows, f], 2, dtype, device)));
            assert_within("swiglu_backward", &output, &swiglu_grad(&z, &grad, f), rounding(dtype));
        }
    }
}

fn swiglu_grad(z: &[f64], grad: &[f64], f: usize) -> Vec<f64> {
    let element = |(i, &g): (usize, &f64)| {
        let (row, column) = (i / (2 * f), i % (2 * f) % f);
        let (gate, up) = (z[row * 2 * f + column], z[row * 2 * f + f + column]);
        let sigmoid = 1.0 / (1.0 + (-gate).exp());
        g * if i % (2 * f) < f { up * (sigmoid + gate * sigmoid * (1.0 - sigmoid)) } else { gate * sigmoid }
    };
    let doubled: Vec<f64> = grad.chunks(f).flat_map(|row| [row, row].concat()).collect();
    doubled.iter().enumerate().map(element).collect()
}

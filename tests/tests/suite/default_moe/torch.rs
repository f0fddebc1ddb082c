//! The same five steps as `tests/reference/default_moe.py`, an implementation in PyTorch that shares no code with ours.

use burn::module::Param;
use burn::optim::{GradientsParams, Optimizer, SgdConfig};
use burn::tensor::Tensor;
use default_moe::{DefaultMoe, DefaultMoeConfig, DefaultOptions, UpdateRule};
use moe_layers::{AutodiffMoeBackend, MoeConfig};
use moe_tests::{assert_close, host, on_every_backend, tensor};
use serde_json::Value;

on_every_backend!(five_steps_match_pytorch);

fn golden() -> Value {
    serde_json::from_str(include_str!("../../../golden/default_moe.json")).expect("written by the script")
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|v| v.as_f64().expect("a number")).collect()
}

fn size(golden: &Value, name: &str) -> usize {
    golden["sizes"][name].as_u64().expect("a size") as usize
}

fn layer<B: AutodiffMoeBackend>(golden: &Value, rule: &Value, device: &B::Device) -> DefaultMoe<B> {
    let [d, f, e, k] = ["width", "hidden", "experts", "chosen"].map(|name| size(golden, name));
    let rule: UpdateRule = serde_json::from_value(rule.clone()).expect("the script names rules as we do");
    let options = DefaultOptions::new().with_beta(golden["beta"].as_f64().expect("a number")).with_rule(rule);
    let mut layer = DefaultMoeConfig::new(MoeConfig::new(d, f, e, k)).with_options(options).init::<B>(device);
    *layer.moe.router.weight_mut().expect("a learned router") =
        Param::from_tensor(tensor(&numbers(&golden["router"]), [d, e], device));
    layer.moe.experts.w_in = Param::from_tensor(tensor(&numbers(&golden["w_in"]), [e, d, 2 * f], device));
    layer.moe.experts.w_out = Param::from_tensor(tensor(&numbers(&golden["w_out"]), [e, f, d], device));
    layer
}

fn five_steps_match_pytorch<B: AutodiffMoeBackend>(device: &B::Device) {
    let golden = golden();
    let shape = [size(&golden, "tokens"), size(&golden, "width")];
    let of_step = |name: &str, step: usize| {
        let all = numbers(&golden[name]);
        let len = shape[0] * shape[1];
        tensor::<B, 2>(&all[step * len..(step + 1) * len], shape, device)
    };
    let rate = golden["rate"].as_f64().expect("a number");
    let steps = golden["steps"].as_u64().expect("a number") as usize;
    for run in golden["runs"].as_array().expect("a list") {
        let mut layer = layer::<B>(&golden, &run["rule"], device);
        let (mut optimizer, mut outputs) = (SgdConfig::new().init::<B, DefaultMoe<B>>(), Vec::new());
        for step in 0..steps {
            let tokens = of_step("tokens", step).require_grad();
            let out = layer.forward(tokens.clone());
            outputs.extend(host(out.output.clone()));
            let grads = (out.output * of_step("weights", step)).sum().backward();
            layer.absorb(&out.update.expect("training"));
            if step + 1 == steps {
                compare(run, &layer, &tokens, &grads);
            }
            layer = optimizer.step(rate, layer.clone(), GradientsParams::from_grads(grads, &layer));
        }
        assert_close(&format!("{}, outputs", run["rule"]), &outputs, &numbers(&run["outputs"]));
    }
}

fn compare<B: AutodiffMoeBackend>(run: &Value, layer: &DefaultMoe<B>, tokens: &Tensor<B, 2>, grads: &B::Gradients) {
    let moe = &layer.moe;
    let found = [
        ("average", host(layer.vectors.values.val())),
        ("grad_tokens", host(tokens.grad(grads).expect("tracked"))),
        ("grad_router", host(moe.router.weight().expect("a learned router").grad(grads).expect("tracked"))),
        ("grad_w_in", host(moe.experts.w_in.grad(grads).expect("tracked"))),
        ("grad_w_out", host(moe.experts.w_out.grad(grads).expect("tracked"))),
    ];
    for (name, found) in found {
        assert_close(&format!("{}, {name}", run["rule"]), &found, &numbers(&run[name]));
    }
}

//! `cargo xtask plan`: what training a model on many devices takes, by the formulas of `moe-plan`.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use moe_plan::{Device, Dtype, Layout, Link, Measured, Model, PRESETS, Plan, Routing, Setting};
use serde_json::{Value, json};

use crate::Result;
use crate::files::at;

/// Options of `cargo xtask plan`.
#[derive(Args)]
pub(crate) struct PlanArgs {
    /// A model preset, a run's directory or its config.json, or config.json of a Mixtral, OLMoE or Qwen3-MoE
    #[arg(long, value_name = "NAME|FILE|DIR")]
    model: String,
    /// Numbers of devices, e.g. 1,8,64
    #[arg(long, value_name = "N,..", value_delimiter = ',', required = true)]
    gpus: Vec<u64>,
    /// Devices over which the experts are spread; without it, the fewest that make everything fit
    #[arg(long, value_name = "P")]
    expert_parallel: Option<u64>,
    /// Device: a100-80gb, h100 or h200
    #[arg(long, value_name = "NAME", default_value = "h100")]
    device: String,
    /// Its rate instead, in TFLOP/s: what a vendor says, or what was measured
    #[arg(long, value_name = "TFLOPS")]
    rate: Option<f64>,
    /// Its memory instead, in GB
    #[arg(long, value_name = "GB")]
    memory: Option<f64>,
    /// The rate of its memory instead, in GB/s
    #[arg(long, value_name = "GB/S")]
    memory_rate: Option<f64>,
    /// Link between devices of a node: nvlink3, nvlink4, pcie4, pcie5 or one of the next, or a rate in GB/s in one direction
    #[arg(long, value_name = "NAME|GB/S", default_value = "nvlink4")]
    link: String,
    /// Link between nodes, for each device: infiniband-hdr, infiniband-ndr, ethernet-100g, ethernet-10g, or a rate in GB/s
    #[arg(long, value_name = "NAME|GB/S", default_value = "infiniband-ndr")]
    between: String,
    /// Devices of a node
    #[arg(long, value_name = "N", default_value_t = 8)]
    node: u64,
    /// Type of activations and products, bf16 or f32; parameters, gradients and the optimizer are f32
    #[arg(long, value_name = "NAME", default_value = "bf16")]
    dtype: String,
    /// Tokens of a micro-batch on each device
    #[arg(long, value_name = "N", default_value_t = 8192)]
    tokens: u64,
    /// Tokens of a sequence; without it, the model's longest, 4096 at most
    #[arg(long, value_name = "N")]
    seq_len: Option<u64>,
    /// Micro-batches of a step
    #[arg(long, value_name = "N", default_value_t = 1)]
    accumulation: u64,
    /// A run whose loads of experts to plan with; without it, all experts are as likely
    #[arg(long, value_name = "DIR", conflicts_with = "skew")]
    routing: Option<PathBuf>,
    /// Load of the busiest device over the mean to plan with
    #[arg(long, value_name = "RATIO")]
    skew: Option<f64>,
    /// Print JSON with every figure, in bytes and seconds
    #[arg(long)]
    json: bool,
}

/// Prints the plan for every number of devices.
pub(crate) fn run(args: &PlanArgs) -> Result<()> {
    let setting = setting(args)?;
    let plans = args.gpus.iter().map(|&devices| plan(args, &setting, devices)).collect::<Result<Vec<_>>>()?;
    if args.json {
        println!("{:#}", document(&setting, &plans));
    } else {
        println!("{}", text(&setting, &plans));
    }
    Ok(())
}

fn plan(args: &PlanArgs, setting: &Setting, devices: u64) -> Result<Plan> {
    match args.expert_parallel {
        Some(size) => Plan::new(setting, Layout::new(&setting.model, devices, size)?),
        None => Plan::best(setting, devices),
    }
}

fn setting(args: &PlanArgs) -> Result<Setting> {
    let (model, dtype) = (model(&args.model)?, Dtype::parse(&args.dtype)?);
    let named = Device::named(&args.device, dtype)?;
    let device = Device {
        flops: positive("rate", args.rate)?.map_or(named.flops, |rate| rate * 1e12),
        memory: positive("memory", args.memory)?.map_or(named.memory, |memory| memory * 1e9),
        memory_rate: positive("memory-rate", args.memory_rate)?.map_or(named.memory_rate, |rate| rate * 1e9),
    };
    let routing = match (&args.routing, args.skew) {
        (Some(run), _) => Routing::Measured(Measured::read(run)?),
        (None, Some(skew)) => Routing::Skew(skew),
        (None, None) => Routing::Balanced,
    };
    Ok(Setting {
        seq_len: args.seq_len.unwrap_or(model.max_seq_len.min(4096)),
        model,
        device,
        link: Link::parse(&args.link)?,
        between: Link::parse(&args.between)?,
        node: args.node,
        dtype,
        tokens: args.tokens,
        accumulation: args.accumulation,
        routing,
    })
}

fn positive(name: &str, value: Option<f64>) -> Result<Option<f64>> {
    match value {
        Some(value) if !(value > 0.0 && value.is_finite()) => {
            Err(format!("--{name} {value} must be a finite number above 0"))
        }
        value => Ok(value),
    }
}

fn model(name: &str) -> Result<Model> {
    let path = Path::new(name);
    if PRESETS.contains(&name) || !path.exists() {
        return moe_plan::preset(name).map_err(|error| format!("{error} (and no file or directory of that name)"));
    }
    let path = if path.is_dir() { path.join("config.json") } else { path.to_path_buf() };
    let text = at(&path, fs::read_to_string(&path))?;
    moe_plan::model_from_json(&text).map_err(|error| format!("{}: {error}", path.display()))
}

const COLUMNS: [&str; 12] = [
    "devices",
    "experts over",
    "params/device",
    "memory GB",
    "fits",
    "skew",
    "all-to-all GB",
    "all-reduce GB",
    "compute ms",
    "sent ms",
    "step ms",
    "use of rate %",
];

fn text(setting: &Setting, plans: &[Plan]) -> String {
    let rows: Vec<_> = plans.iter().map(|plan| row(setting, plan)).collect();
    let mut lines = vec![header(setting), String::new(), line(COLUMNS.map(String::from)), rule()];
    lines.extend(rows.into_iter().map(line));
    lines.extend(["".into(), NOTES.into()]);
    lines.join("\n")
}

const NOTES: &str = "All of one device, the busiest one; bytes and times of a step. Step and use: with everything sent during compute .. after it.
Lower bounds of the time by nominal rates; docs/scaling.md has the formulas and what they leave out.";

fn header(setting: &Setting) -> String {
    let model = &setting.model;
    let batches = if setting.accumulation == 1 { "micro-batch" } else { "micro-batches" };
    format!(
        "{}: {} parameters, {} active; {} of {} layers have {} experts, {} for a token\n{} {batches} of {} tokens a device, sequences of {}",
        model.name,
        amount(model.num_params() as f64),
        amount(model.num_active_params() as f64),
        model.num_moe_layers,
        model.num_layers,
        model.moe.num_experts,
        model.moe.top_k,
        setting.accumulation,
        setting.tokens,
        setting.seq_len,
    )
}

fn row(setting: &Setting, plan: &Plan) -> [String; 12] {
    let [overlapped, sequential] = [plan.overlapped_seconds(), plan.sequential_seconds()].map(|s| s * 1e3);
    let [most, least] = plan.utilisation(setting).map(|part| part * 100.0);
    [
        plan.layout.devices.to_string(),
        plan.layout.expert_parallel.to_string(),
        amount(plan.memory.params as f64),
        format!("{:.1}", plan.memory.total() / 1e9),
        if plan.fits { "yes" } else { "no" }.into(),
        format!("{:.3}", plan.skew),
        format!("{:.2}", plan.traffic.all_to_all() / 1e9),
        format!("{:.2}", plan.traffic.all_reduce() / 1e9),
        digits(plan.compute_seconds * 1e3),
        digits(plan.traffic.seconds() * 1e3),
        format!("{} .. {}", digits(overlapped), digits(sequential)),
        format!("{most:.0} .. {least:.0}"),
    ]
}

fn line(cells: [String; 12]) -> String {
    format!("| {} |", cells.join(" | "))
}

fn rule() -> String {
    format!("|{}", "---|".repeat(COLUMNS.len()))
}

/// Three digits at least.
fn digits(value: f64) -> String {
    let places = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.places$}")
}

fn amount(value: f64) -> String {
    match value {
        v if v >= 1e9 => format!("{:.2} B", v / 1e9),
        v if v >= 1e6 => format!("{:.1} M", v / 1e6),
        v => format!("{v:.0}"),
    }
}

/// Every figure, in bytes, seconds and FLOP/s.
fn document(setting: &Setting, plans: &[Plan]) -> Value {
    let (model, device) = (&setting.model, &setting.device);
    let link = |link: &Link| json!({"bytes_per_second": link.rate, "latency_seconds": link.latency});
    json!({
        "model": {
            "name": model.name,
            "parameters": model.num_params(),
            "active_parameters": model.num_active_params(),
            "dense_parameters": model.dense_params(),
            "expert_parameters": model.expert_params(),
            "dense_flops_per_token": model.dense_flops_per_token(setting.seq_len),
            "expert_flops_per_token": model.expert_flops_per_token(),
        },
        "setting": {
            "device": {"flops": device.flops, "memory_bytes": device.memory, "memory_bytes_per_second": device.memory_rate},
            "link": link(&setting.link),
            "between": link(&setting.between),
            "node": setting.node,
            "bytes_per_number": setting.dtype.bytes(),
            "tokens": setting.tokens,
            "seq_len": setting.seq_len,
            "accumulation": setting.accumulation,
        },
        "plans": plans.iter().map(|plan| figures(setting, plan)).collect::<Vec<_>>(),
    })
}

fn figures(setting: &Setting, plan: &Plan) -> Value {
    let (memory, traffic) = (&plan.memory, &plan.traffic);
    json!({
        "devices": plan.layout.devices,
        "expert_parallel": plan.layout.expert_parallel,
        "data_parallel_of_experts": plan.layout.data_parallel(),
        "skew": plan.skew,
        "parameters": memory.params,
        "memory_bytes": {
            "weights": memory.weights,
            "gradients": memory.gradients,
            "optimizer": memory.optimizer,
            "casts": memory.casts,
            "activations": memory.activations,
            "total": memory.total(),
        },
        "fits": plan.fits,
        "sent_bytes": {
            "all_to_all_forward": traffic.forward,
            "all_to_all_backward": traffic.backward,
            "all_reduce_dense": traffic.dense_all_reduce,
            "all_reduce_experts": traffic.expert_all_reduce,
        },
        "seconds": {
            "compute": plan.compute_seconds,
            "all_to_all": traffic.all_to_all_seconds,
            "all_reduce": traffic.all_reduce_seconds,
            "optimizer": plan.optimizer_seconds,
            "step_overlapped": plan.overlapped_seconds(),
            "step_sequential": plan.sequential_seconds(),
        },
        "tokens": plan.tokens,
        "flops": plan.flops,
        "tokens_per_second": plan.tokens_per_second(),
        "utilisation": plan.utilisation(setting),
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cargo;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: PlanArgs,
    }

    fn args(options: &str) -> PlanArgs {
        Line::parse_from(std::iter::once("plan").chain(options.split_whitespace())).args
    }

    fn plans(options: &str) -> Result<(Setting, Vec<Plan>)> {
        let mut args = args(options);
        // Tests run in the folder of the package.
        args.routing = args.routing.map(|run| cargo::root().join(run));
        let setting = setting(&args)?;
        let plans = args.gpus.iter().map(|&devices| plan(&args, &setting, devices)).collect::<Result<_>>()?;
        Ok((setting, plans))
    }

    #[test]
    fn a_table_has_a_line_for_each_number_of_devices() {
        let (setting, plans) = plans("--model olmoe-1b-7b --gpus 1,8,64 --expert-parallel 1").unwrap();
        let text = text(&setting, &plans);
        assert!(text.starts_with("olmoe-1b-7b: 6.92 B parameters, 1.28 B active; 16 of 16 layers have 64 experts"));
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
        assert_eq!(lines.len(), 2 + 3);
        assert!(lines[4].starts_with("| 64 | 1 | 6.92 B |"), "{}", lines[4]);
    }

    /// Of every command, and no others.
    #[test]
    fn the_tables_of_the_docs_are_what_is_planned() {
        let page = fs::read_to_string(cargo::root().join("docs/scaling.md")).unwrap();
        let commands = page.lines().filter_map(|line| line.strip_prefix("cargo xtask plan "));
        let mut planned = Vec::new();
        for options in commands {
            let (setting, plans) = plans(options).unwrap_or_else(|error| panic!("{options}: {error}"));
            planned.extend(plans.iter().map(|plan| line(row(&setting, plan))));
        }
        let is_row = |line: &&str| line.split(" | ").count() == COLUMNS.len() && line.contains(" .. ");
        let written: Vec<&str> = page.lines().filter(is_row).collect();
        assert!(planned.len() > 10);
        assert_eq!(written, planned);
    }

    #[test]
    fn numbers_replace_those_of_a_named_device() {
        let setting =
            setting(&args("--model tiny --gpus 1 --tokens 1024 --rate 2 --memory 3 --memory-rate 4")).unwrap();
        let expected = Device { flops: 2e12, memory: 3e9, memory_rate: 4e9 };
        assert_eq!((setting.device, setting.seq_len), (expected, 128));
    }

    #[test]
    fn mistakes_are_one_line_that_says_what_to_do() {
        let error = |options: &str| plans(options).map(|_| ()).unwrap_err();
        let base = "--model olmoe-1b-7b --gpus";
        assert!(error("--model olmo-1b-7b --gpus 1").contains("did you mean `olmoe-1b-7b`?"));
        assert_eq!(error(&format!("{base} 1 --link nvlink")), "unknown link `nvlink`; did you mean `nvlink3`?");
        assert_eq!(
            error(&format!("{base} 128 --expert-parallel 128")),
            "64 experts cannot be spread over 128 devices, which need one each"
        );
        assert_eq!(error(&format!("{base} 6 --expert-parallel 4")), "6 devices are no whole number of groups of 4");
        assert_eq!(
            error(&format!("{base} 1 --tokens 5000")),
            "5000 tokens a device are no whole number of sequences of 4096"
        );
        assert!(error(&format!("{base} 1 --rate 0")).contains("--rate 0 must be"));
        assert!(error(&format!("{base} 1 --routing no/such/run")).contains("metrics.jsonl"));
        for message in [error("--model xyzzy --gpus 1"), error(&format!("{base} 0"))] {
            assert_eq!(message.lines().count(), 1, "{message}");
        }
    }

    #[test]
    fn the_document_has_every_figure_of_the_table() {
        let (setting, plans) = plans("--model mixtral-8x7b --gpus 16 --expert-parallel 8").unwrap();
        let document = document(&setting, &plans);
        assert_eq!(document["model"]["parameters"], 46_702_792_704u64);
        let plan = &document["plans"][0];
        assert_eq!((&plan["devices"], &plan["data_parallel_of_experts"]), (&json!(16), &json!(2)));
        let parts = plan["memory_bytes"].as_object().unwrap();
        let sum: f64 =
            parts.iter().filter(|(name, _)| *name != "total").map(|(_, bytes)| bytes.as_f64().unwrap()).sum();
        assert_eq!(parts["total"], json!(sum));
        assert!(plan["seconds"]["step_overlapped"].as_f64() < plan["seconds"]["step_sequential"].as_f64());
    }
}

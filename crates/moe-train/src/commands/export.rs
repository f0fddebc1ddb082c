//! `moe-train export`: a trained model as a checkpoint of `transformers`.

use moe_layers::BalanceConvention;
use moe_models::checkpoint::{Family, HfExport};

use super::{TOKENIZER_FILE, hugging_face, load_model, say};
use crate::{
    backend,
    cli::ExportArgs,
    config::{Dtype, TrainConfig},
    error::Error,
    run::{Settings, inspect},
};

pub(super) fn run(args: &ExportArgs) -> Result<(), Error> {
    let (checkpoints, config) = inspect(&args.run)?;
    let config = TrainConfig::of(config, &args.run)?;
    let device = backend::open(args.device, Dtype::F32)?;
    let (model, state) = load_model(&checkpoints, &config, args.checkpoint.into(), &device)?;
    let mut export = HfExport::new().with_dtype(args.dtype).with_max_shard_bytes(args.max_shard_bytes);
    export = export.with_token_ids(hugging_face::token_ids(&args.run)?.unwrap_or_default());
    let tokenizer = Some((TOKENIZER_FILE, args.run.join(TOKENIZER_FILE))).filter(|(_, path)| path.is_file());
    for (name, path) in tokenizer.into_iter().chain(hugging_face::companions(&args.run)) {
        export = export.with_file(name, &path);
    }
    export.save(&model, &args.out)?;
    say(format!(
        "export  {} in {}, step {}: {}",
        Family::of(&config.model),
        args.dtype,
        state.step,
        args.out.display()
    ))?;
    left_out(&config).into_iter().try_for_each(|what| say(format!("note    {what}")))
}

/// What the run has and the checkpoint does not.
fn left_out(config: &TrainConfig) -> Vec<&'static str> {
    let moe = &config.model.moe;
    let with_experts = config.model.num_moe_layers() > 0;
    let other_balance = with_experts && moe.balance != BalanceConvention::HuggingFace && moe.balance_coef > 0.0;
    let other_losses = [
        (other_balance, "transformers has another balance loss: router_aux_loss_coef is 0"),
        (with_experts && moe.z_coef > 0.0, "transformers has no router z-loss: moe.z_coef is left out"),
        (
            with_experts && moe.importance_coef > 0.0,
            "transformers has no importance loss: moe.importance_coef is left out",
        ),
        (config.data.tokenizer.is_none(), "tokens are bytes: there is no tokenizer.json"),
    ];
    other_losses.into_iter().filter(|(holds, _)| *holds).map(|(_, what)| what).collect()
}

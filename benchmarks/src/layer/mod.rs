//! One layer: how long forward and backward take beside the bare matrix products, and what they keep in memory.

pub(crate) mod contest;
mod floor;
mod matrix;
mod ours;
pub(crate) mod problem;
mod products;
mod record;
pub(crate) mod saved;
mod shape;
mod torch_side;
mod verify;

use moe_train::backend::{self, Device, Plain, Training};

pub(crate) use record::paired;
pub(crate) use shape::Shape;

use crate::args::LayerArgs;
use crate::clock::Clock;
use crate::error::Result;
use crate::machine::Machine;
use crate::session::{self, ON_GPU, Session};
use contest::{Contestant, contest};
use floor::{Floor, Sharing};
use problem::{Problem, load_ratio, loads};
use products::Products;
use record::{Findings, LayerRecord, Setting, ShapeRecord};
use torch_side::{Remotes, TorchSide};

/// `moe-bench layer`.
///
/// # Errors
///
/// A device, a Python or a file that cannot be used, and every wrong result.
pub(crate) fn run(args: &LayerArgs) -> Result<()> {
    let session = Session::open(&args.common, args.dtype)?;
    let mut torch = args.common.torch.as_deref().map(TorchSide::start).transpose()?;
    let machine = Machine::here(&session.device_name);
    println!("{}", machine.line());
    let setting = setting(args, &session);
    println!("{}\n", setting.line());
    let mut shapes = Vec::new();
    for shape in chosen(args) {
        let record = measure(&shape, &setting, args, &session.device, torch.as_mut())?;
        println!("{}", record.table(&setting));
        shapes.push(record);
    }
    let torch = torch.map(|torch| torch.versions);
    session::write_json(&args.common, &LayerRecord { benchmark: "layer", machine, setting, torch, shapes })
}

fn chosen(args: &LayerArgs) -> Vec<Shape> {
    if args.shape.is_empty() { Shape::catalogue(args.gpu_shapes) } else { args.shape.clone() }
}

fn setting(args: &LayerArgs, session: &Session) -> Setting {
    let threads = args.common.threads;
    Setting {
        backend: backend::NAME,
        device: session.device_name.clone(),
        threads,
        dtype: args.dtype,
        skew: args.skew,
        rounds: args.common.rounds(),
        clock: Clock::choose(threads, ON_GPU),
    }
}

/// Verifies, then times.
fn measure(
    shape: &Shape,
    setting: &Setting,
    args: &LayerArgs,
    device: &Device,
    torch: Option<&mut TorchSide>,
) -> Result<ShapeRecord> {
    let verified_tokens = verify::verify::<Training>(shape, setting.skew, setting.dtype, device, ON_GPU)?;
    let problem = Problem::<Training>::new(shape, setting.skew, setting.dtype, device);
    let loads = loads(&problem.routing());
    let mut contestants = ours::contestants(&problem);
    contestants.extend(bare_products(shape, setting, &loads, device)?);
    let remotes = torch.map(|torch| torch.set_up(&problem, setting.threads, session::TORCH_DEVICE)).transpose()?;
    let Remotes { contestants: theirs, unable } = remotes.unwrap_or_default();
    contestants.extend(theirs);
    let saved = (!ON_GPU).then(|| saved::saved_bytes(&problem));
    let times = contest(&mut contestants, args.common.warm_up(), setting.rounds)?;
    let findings = Findings { load_ratio: load_ratio(&loads), verified_tokens, saved, unable };
    Ok(ShapeRecord::new(shape, setting, &times, findings))
}

/// The floor: on a processor the `gemm` crate's products under every way to share them, on a GPU burn's own.
fn bare_products(
    shape: &Shape,
    setting: &Setting,
    loads: &[usize],
    device: &Device,
) -> Result<Vec<Box<dyn Contestant>>> {
    if ON_GPU {
        let dense = Products::<Plain>::dense(&shape.case, setting.dtype, device);
        let padded = Products::<Plain>::padded(&shape.case, loads, setting.dtype, device);
        return Ok(vec![Box::new(dense), Box::new(padded)]);
    }
    let sharings: &[Sharing] =
        if setting.threads == 1 { &[Sharing::Products] } else { &[Sharing::Products, Sharing::Experts] };
    let floor = |&sharing: &Sharing| -> Result<Box<dyn Contestant>> {
        let mut floor = Floor::new(&shape.case, loads, setting.threads, sharing);
        floor.verify()?;
        Ok(Box::new(floor))
    };
    sharings.iter().map(floor).collect()
}

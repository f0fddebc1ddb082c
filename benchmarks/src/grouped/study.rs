//! All shapes, their table and their record.

use moe_train::config::Dtype;
use serde::Serialize;
use serde_json::Value;

use super::kernels;
use super::torch_products::TorchProducts;
use crate::args::GroupedArgs;
use crate::clock::{Clock, Spread};
use crate::error::{Error, Result};
use crate::layer::Shape;
use crate::machine::Machine;
use crate::record::Head;
use crate::session::{self, ON_GPU, Session};
use crate::table::Table;

/// The whole file.
#[derive(Debug, Serialize)]
struct Record {
    #[serde(flatten)]
    head: Head,
    dtype: Dtype,
    skew: f64,
    /// What the other side says of itself, if it took part.
    torch: Option<Value>,
    shapes: Vec<ShapeRecord>,
}

/// One layer's products.
#[derive(Debug, Serialize)]
struct ShapeRecord {
    shape: String,
    products: Vec<ProductRecord>,
}

/// One product by every kernel, and as one dense product of the same FLOPs.
#[derive(Debug, Serialize)]
pub(super) struct ProductRecord {
    pub(super) product: &'static str,
    pub(super) flops: f64,
    pub(super) kernels: Vec<KernelRecord>,
}

/// One kernel.
#[derive(Debug, Serialize)]
pub(super) struct KernelRecord {
    pub(super) kernel: String,
    pub(super) seconds: Spread,
    pub(super) tflops: f64,
    /// Rate over that of the dense product.
    pub(super) of_dense: f64,
}

impl ShapeRecord {
    /// TFLOP/s, kernels down and products across.
    fn table(&self) -> Table {
        let mut headings = vec!["TFLOP/s"];
        headings.extend(self.products.iter().map(|product| product.product));
        let mut table = Table::new(&headings);
        let mut names: Vec<&str> = Vec::new();
        for kernel in self.products.iter().flat_map(|product| &product.kernels) {
            if !names.contains(&kernel.kernel.as_str()) {
                names.push(&kernel.kernel);
            }
        }
        for name in names {
            let mut cells = vec![name.to_string()];
            cells.extend(self.products.iter().map(|product| {
                // Not every kernel computes every product.
                let kernel = product.kernels.iter().find(|kernel| kernel.kernel == name);
                kernel.map_or("-".into(), |kernel| format!("{:.1} ({:.0} %)", kernel.tflops, 100.0 * kernel.of_dense))
            }));
            table.row(cells);
        }
        table
    }
}

/// `moe-bench grouped`.
///
/// # Errors
///
/// A device or a file that cannot be used, and every wrong result.
pub(crate) fn run(args: &GroupedArgs) -> Result<()> {
    let session = Session::open(&args.common, args.dtype)?;
    let machine = Machine::here(&session.device_name);
    println!("{}\nTFLOP/s, and part of a dense product's rate\n", machine.line());
    let chosen = if args.shape.is_empty() { Shape::catalogue(true) } else { args.shape.clone() };
    if !kernels::names().iter().any(|name| name.contains(&args.only)) {
        return Err(Error::new(format!(
            "no product is called {:?}: there are {}",
            args.only,
            kernels::names().join(", ")
        )));
    }
    let mut torch = args.common.torch.as_deref().map(TorchProducts::start).transpose()?;
    let mut shapes = Vec::new();
    for shape in chosen {
        let products = kernels::measure(&shape, args, &session.device, torch.as_mut())?;
        let record = ShapeRecord { shape: shape.name.clone(), products };
        println!("{}\n{}", shape.name, record.table());
        shapes.push(record);
    }
    let head = Head::new("grouped", machine, &args.common, Clock::choose(args.common.threads, ON_GPU));
    session::write_json(
        &args.common,
        &Record { head, dtype: args.dtype, skew: args.skew, torch: torch.map(|torch| torch.versions), shapes },
    )
}

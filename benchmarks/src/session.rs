//! What every benchmark starts with: threads, a device, a file that can be written.

use std::time::Duration;

use burn::tensor::backend::Backend;
use moe_train::backend::{self, Device};
use moe_train::config::Dtype;
use serde::Serialize;

use crate::args::CommonArgs;
use crate::error::{Error, Result};
use crate::record;

/// Whether tensors live on a GPU.
pub(crate) const ON_GPU: bool = cfg!(any(feature = "wgpu", feature = "cuda"));

/// PyTorch's name for a device of the same kind.
pub(crate) const TORCH_DEVICE: &str = if cfg!(feature = "cuda") { "cuda" } else { "cpu" };

/// The threads of matrixmultiply, burn-ndarray's products: it has a pool of its own and asks the environment for its size.
const NDARRAY_THREADS: &str = "MATMUL_NUM_THREADS";

/// A device that works, under the number of threads that was asked for.
pub(crate) struct Session {
    pub(crate) device: Device,
    pub(crate) device_name: String,
}

impl Session {
    /// # Errors
    ///
    /// A device that is not there or lacks `dtype`, or a file that cannot be written.
    pub(crate) fn open(args: &CommonArgs, dtype: Dtype) -> Result<Self> {
        if let Some(path) = &args.json {
            record::check(path)?;
        }
        use_threads(args.threads)?;
        let device = backend::open(args.device, dtype).map_err(Error::new)?;
        Ok(Self { device, device_name: args.device.to_string() })
    }
}

#[expect(unsafe_code, reason = "matrixmultiply listens to nothing else than the environment")]
fn use_threads(threads: usize) -> Result<()> {
    // SAFETY: called before anything starts a thread.
    unsafe { std::env::set_var(NDARRAY_THREADS, threads.to_string()) };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).use_current_thread().build_global();
    pool.map_err(|error| Error::of(format!("cannot start {threads} threads"), error))
}

/// Until the device has computed everything it was given.
///
/// # Errors
///
/// What the device reports.
pub(crate) fn wait<B: Backend>(device: &B::Device) -> Result<()> {
    B::sync(device).map_err(|error| Error::of("the device failed", format!("{error:?}")))
}

/// The threads of LLVM's and Intel's OpenMP, which PyTorch uses, poll for 200 ms (`KMP_BLOCKTIME`).
const PAUSE: Duration = Duration::from_millis(300);

/// Waits until the threads of the side before have gone to sleep. OpenMP's threads, and rayon's, poll for a while after their
/// work is done; with a thread for each core, the next side would be timed against them.
pub(crate) fn pause() {
    std::thread::sleep(PAUSE);
}

/// Writes the record where `--json` says, if it does.
///
/// # Errors
///
/// When the file cannot be written.
pub(crate) fn write_json(args: &CommonArgs, record: &impl Serialize) -> Result<()> {
    args.json.as_deref().map_or(Ok(()), |path| record::write(path, record))
}

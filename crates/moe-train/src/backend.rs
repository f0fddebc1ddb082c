//! The backend the program was built for, and its devices.
//!
//! One cargo feature chooses the backend: `flex` (default), `ndarray`, `wgpu` or `cuda`. Cargo may switch several on
//! when crates of one build ask for different ones; then the first of cuda, wgpu, ndarray, flex is taken.

use std::{
    fmt,
    panic::{self, AssertUnwindSafe},
    str::FromStr,
    sync::{Arc, Mutex},
};

use burn::{
    backend::Autodiff,
    tensor::{
        DType, Tensor,
        backend::{Backend, BackendTypes},
    },
};
use thiserror::Error;

use crate::config::Dtype;

#[cfg(not(any(feature = "flex", feature = "ndarray", feature = "wgpu", feature = "cuda")))]
compile_error!("moe-train needs a backend: build it with one of --features flex, ndarray, wgpu, cuda");

#[cfg(feature = "cuda")]
mod selected {
    use super::{BackendError, DeviceChoice};

    pub(super) type Plain = burn::backend::Cuda;
    pub(super) const NAME: &str = "cuda";
    pub(super) const IS_CPU: bool = false;
    pub(super) const HELP: &str = "this build needs an NVIDIA GPU with its driver and the CUDA toolkit (CUDA_PATH); without \
                            one, use --backend flex";

    pub(super) fn device(choice: DeviceChoice) -> Result<super::Device, BackendError> {
        match choice {
            DeviceChoice::Default => Ok(Default::default()),
            DeviceChoice::Number(index) => Ok(burn::backend::cuda::CudaDevice::new(index)),
            DeviceChoice::Cpu => Err(BackendError::no_such(choice, "default and the numbers of the GPUs")),
        }
    }
}

#[cfg(all(feature = "wgpu", not(feature = "cuda")))]
mod selected {
    use burn::backend::wgpu::WgpuDevice;

    use super::{BackendError, DeviceChoice};

    pub(super) type Plain = burn::backend::Wgpu;
    pub(super) const NAME: &str = "wgpu";
    pub(super) const IS_CPU: bool = false;
    pub(super) const HELP: &str = "this build needs a GPU with a Vulkan, Metal or DirectX 12 driver; without one, install a \
                            software adapter (Debian: mesa-vulkan-drivers libvulkan1) and pass --device cpu, or use \
                            --backend flex";

    pub(super) fn device(choice: DeviceChoice) -> Result<super::Device, BackendError> {
        Ok(match choice {
            DeviceChoice::Default => WgpuDevice::DefaultDevice,
            DeviceChoice::Number(index) => WgpuDevice::DiscreteGpu(index),
            DeviceChoice::Cpu => WgpuDevice::Cpu,
        })
    }
}

#[cfg(all(feature = "ndarray", not(any(feature = "wgpu", feature = "cuda"))))]
mod selected {
    use super::{BackendError, DeviceChoice};

    pub(super) type Plain = burn::backend::NdArray;
    pub(super) const NAME: &str = "ndarray";
    pub(super) const IS_CPU: bool = true;
    pub(super) const HELP: &str = "use --backend flex";

    pub(super) fn device(choice: DeviceChoice) -> Result<super::Device, BackendError> {
        super::only_cpu(choice).map(|()| Default::default())
    }
}

#[cfg(all(feature = "flex", not(any(feature = "ndarray", feature = "wgpu", feature = "cuda"))))]
mod selected {
    use super::{BackendError, DeviceChoice};

    pub(super) type Plain = burn::backend::Flex;
    pub(super) const NAME: &str = "flex";
    pub(super) const IS_CPU: bool = true;
    pub(super) const HELP: &str = "use --backend ndarray";

    pub(super) fn device(choice: DeviceChoice) -> Result<super::Device, BackendError> {
        super::only_cpu(choice).map(|()| Default::default())
    }
}

/// The backend without gradients: evaluation and generation.
pub type Plain = selected::Plain;

/// The backend with gradients: training.
pub type Training = Autodiff<Plain>;

/// A device of the backend.
pub type Device = <Plain as BackendTypes>::Device;

/// Name of the backend as the cargo feature spells it.
pub const NAME: &str = selected::NAME;

/// Why the backend cannot be used.
#[derive(Debug, Error)]
pub enum BackendError {
    /// The backend has no device of that name.
    #[error("the {NAME} backend has no device `{choice}`: it has {known}")]
    NoSuchDevice {
        /// What was asked for.
        choice: DeviceChoice,
        /// What there is, in words.
        known: &'static str,
    },
    /// The device does not answer: no GPU, no driver, no compiler for its kernels.
    #[error("the {NAME} backend cannot use device `{choice}` ({reason}): {}", selected::HELP)]
    Unavailable {
        /// What was asked for.
        choice: DeviceChoice,
        /// What the backend said.
        reason: String,
    },
    /// Ranks on several devices need what this backend does not do.
    #[error(
        "nothing arrives on device {choice} from the first one: this backend moves nothing between devices, use --launch"
    )]
    Unreachable {
        /// Which.
        choice: DeviceChoice,
    },
    /// The device cannot compute with this type.
    #[error("device `{choice}` of the {NAME} backend has no {dtype}: use --dtype f32")]
    NoDtype {
        /// What was asked for.
        choice: DeviceChoice,
        /// The missing type.
        dtype: Dtype,
    },
}

impl BackendError {
    #[allow(dead_code, reason = "a backend that accepts every choice has no use for it")]
    fn no_such(choice: DeviceChoice, known: &'static str) -> Self {
        Self::NoSuchDevice { choice, known }
    }
}

/// A device as the command line names it: `default`, `cpu` or a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The best one there is.
    #[default]
    Default,
    /// The processor: the only device of flex and ndarray, a software adapter of wgpu, none of cuda.
    Cpu,
    /// A GPU by number, from 0 (wgpu counts discrete GPUs only).
    Number(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "default" => Ok(Self::Default),
            "cpu" => Ok(Self::Cpu),
            number => number.parse().map(Self::Number).map_err(|_| "expected default, cpu or a number".into()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Cpu => f.write_str("cpu"),
            Self::Number(index) => write!(f, "{index}"),
        }
    }
}

/// Finds the device, makes sure that it computes, and that it can do so in `dtype`.
///
/// # Errors
///
/// [`BackendError`] when there is no such device, when it does not answer, or when it lacks the type.
pub fn open(choice: DeviceChoice, dtype: Dtype) -> Result<Device, BackendError> {
    let device = selected::device(choice)?;
    quietly(|| probe(&device))
        .map_err(|reason| BackendError::Unavailable { choice, reason: first_sentence(&reason) })?;
    if dtype == Dtype::Bf16 && !supports_bf16(&device) {
        return Err(BackendError::NoDtype { choice, dtype });
    }
    Ok(device)
}

/// [`open`] for every device of a training. On a backend of the CPU there is one device, and a number names a rank on it.
///
/// # Errors
///
/// As there.
pub fn open_all(choices: &[DeviceChoice], dtype: Dtype) -> Result<Vec<Device>, BackendError> {
    let device = |&choice: &DeviceChoice| match choice {
        DeviceChoice::Number(_) if selected::IS_CPU && choices.len() > 1 => open(DeviceChoice::Default, dtype),
        _ => open(choice, dtype),
    };
    let devices = choices.iter().map(device).collect::<Result<Vec<_>, _>>()?;
    match devices.iter().position(|device| !reaches(&devices[0], device)) {
        Some(at) => Err(BackendError::Unreachable { choice: choices[at] }),
        None => Ok(devices),
    }
}

/// Whether numbers that are sent to a device arrive there.
fn reaches(from: &Device, to: &Device) -> bool {
    let arrives = || {
        let sent = Tensor::<Plain, 1>::from_floats([3.0, -1.0, 4.0], from);
        let arrived = sent.clone().to_device(to).into_data();
        arrived.iter::<f32>().eq(sent.into_data().iter::<f32>())
    };
    from == to || quietly(arrives).is_ok_and(|arrives| arrives)
}

/// Whether the backend of this build computes on the processor.
pub fn is_cpu() -> bool {
    selected::IS_CPU
}

/// Device choices as one word.
pub fn names(choices: &[DeviceChoice]) -> String {
    choices.iter().map(DeviceChoice::to_string).collect::<Vec<_>>().join(",")
}

/// What went wrong without the lists and advice that drivers add to it.
fn first_sentence(reason: &str) -> String {
    let end = [" - ", ". ", "\n"].iter().filter_map(|mark| reason.find(mark)).min();
    reason[..end.unwrap_or(reason.len())].trim_end_matches('.').to_string()
}

/// Whether the device computes in bf16.
pub fn supports_bf16(device: &Device) -> bool {
    Plain::supports_dtype(device, DType::BF16)
}

/// Adds up four ones on the device; a backend without its device panics here.
fn probe(device: &Device) {
    let sum: f32 = Tensor::<Plain, 1>::ones([4], device).sum().into_scalar();
    assert_eq!(sum, 4.0, "the device computes a wrong sum");
}

/// Runs `action` and turns a panic, of whatever thread, into its message instead of printing it.
fn quietly<T>(action: impl FnOnce() -> T) -> Result<T, String> {
    /// The hook is one for the whole process.
    static HOOK: Mutex<()> = Mutex::new(());
    let _alone = HOOK.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let first = Arc::new(Mutex::new(None));
    let seen = Arc::clone(&first);
    let hook = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let message = info.payload_as_str().unwrap_or("unknown cause");
        let mut seen = seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        seen.get_or_insert_with(|| message.to_string());
    }));
    let result = panic::catch_unwind(AssertUnwindSafe(action));
    panic::set_hook(hook);
    let message = first.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
    result.map_err(|_| message.unwrap_or_else(|| "unknown cause".to_string()))
}

#[allow(dead_code, reason = "only the backends of the processor use it")]
fn only_cpu(choice: DeviceChoice) -> Result<(), BackendError> {
    match choice {
        DeviceChoice::Default | DeviceChoice::Cpu | DeviceChoice::Number(0) => Ok(()),
        DeviceChoice::Number(_) => Err(BackendError::no_such(choice, "one device, `default`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_survive_a_round_trip() {
        for choice in [DeviceChoice::Default, DeviceChoice::Cpu, DeviceChoice::Number(3)] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        assert!("gpu".parse::<DeviceChoice>().is_err());
    }

    #[test]
    fn a_panic_of_another_thread_becomes_its_first_message() {
        let result = || {
            quietly(|| {
                let helper = std::thread::spawn(|| panic!("no driver {}", 7));
                helper.join().expect("the helper ends well");
            })
        };
        // Tests that are to panic do so meanwhile.
        assert!((0..50).any(|_| result() == Err("no driver 7".to_string())));
    }

    #[test]
    fn a_reason_is_cut_after_what_went_wrong() {
        assert_eq!(first_sentence("no \"cuda\" library - searched for: [..]. Ensure that"), "no \"cuda\" library");
        assert_eq!(first_sentence("no adapter found."), "no adapter found");
    }

    #[test]
    fn an_action_that_ends_well_keeps_its_value() {
        assert_eq!(quietly(|| 3), Ok(3));
    }

    #[cfg(not(any(feature = "wgpu", feature = "cuda")))]
    #[test]
    fn the_processor_is_the_only_device() {
        assert!(open(DeviceChoice::Default, Dtype::F32).is_ok());
        assert!(matches!(open(DeviceChoice::Number(1), Dtype::F32), Err(BackendError::NoSuchDevice { .. })));
    }
}

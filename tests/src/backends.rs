//! The backends under test, as types with gradients.

use burn::backend::Autodiff;

/// burn-flex.
#[cfg(feature = "flex")]
pub type Flex = Autodiff<burn::backend::Flex>;

/// burn-flex, recomputing cheap activations in the backward pass.
#[cfg(feature = "flex")]
pub type FlexCheckpointed =
    Autodiff<burn::backend::Flex, burn::backend::autodiff::checkpoint::strategy::BalancedCheckpointing>;

/// burn-ndarray.
#[cfg(feature = "ndarray")]
pub type NdArray = Autodiff<burn::backend::NdArray>;

/// burn-wgpu, under Fusion.
#[cfg(feature = "wgpu")]
pub type Wgpu = Autodiff<burn::backend::Wgpu>;

/// burn-cuda, under Fusion.
#[cfg(feature = "cuda")]
pub type Cuda = Autodiff<burn::backend::Cuda>;

/// burn-rocm, under Fusion.
#[cfg(feature = "rocm")]
pub type Rocm = Autodiff<burn::backend::Rocm>;

/// burn-wgpu with shaders in Metal's own language, under Fusion.
#[cfg(feature = "metal")]
pub type Metal = Autodiff<burn::backend::Metal>;

/// The backend under a Fusion.
#[cfg(feature = "cube")]
pub trait Unfuse {
    /// The same backend without Fusion.
    type Unfused: burn::tensor::backend::Backend;
}

#[cfg(feature = "cube")]
impl<B: burn_fusion::FusionBackend> Unfuse for burn_fusion::Fusion<B> {
    type Unfused = B;
}

/// burn-wgpu without Fusion.
#[cfg(feature = "wgpu")]
pub type WgpuUnfused = Autodiff<<burn::backend::Wgpu as Unfuse>::Unfused>;

/// burn-cuda without Fusion.
#[cfg(feature = "cuda")]
pub type CudaUnfused = Autodiff<<burn::backend::Cuda as Unfuse>::Unfused>;

/// burn-rocm without Fusion.
#[cfg(feature = "rocm")]
pub type RocmUnfused = Autodiff<<burn::backend::Rocm as Unfuse>::Unfused>;

/// burn-wgpu for Metal without Fusion.
#[cfg(feature = "metal")]
pub type MetalUnfused = Autodiff<<burn::backend::Metal as Unfuse>::Unfused>;

/// The runtime of a CubeCL backend.
#[cfg(feature = "cube")]
pub trait OnCube {
    /// What compiles and launches its kernels.
    type Runtime: burn_cubecl::CubeRuntime;
}

#[cfg(feature = "cube")]
impl<R, F, I, BT> OnCube for burn_cubecl::CubeBackend<R, F, I, BT>
where
    R: burn_cubecl::CubeRuntime,
    F: burn_cubecl::FloatElement,
    I: burn_cubecl::IntElement,
    BT: burn_cubecl::BoolElement,
{
    type Runtime = R;
}

/// The runtime of burn-wgpu.
#[cfg(feature = "wgpu")]
pub type WgpuRuntime = <<burn::backend::Wgpu as Unfuse>::Unfused as OnCube>::Runtime;

/// The runtime of burn-cuda.
#[cfg(feature = "cuda")]
pub type CudaRuntime = <<burn::backend::Cuda as Unfuse>::Unfused as OnCube>::Runtime;

/// The runtime of burn-rocm.
#[cfg(feature = "rocm")]
pub type RocmRuntime = <<burn::backend::Rocm as Unfuse>::Unfused as OnCube>::Runtime;

/// The runtime of burn-wgpu for Metal.
#[cfg(feature = "metal")]
pub type MetalRuntime = <<burn::backend::Metal as Unfuse>::Unfused as OnCube>::Runtime;

/// Runs `action` a hundred times while another thread does nothing but backward passes.
#[cfg(feature = "flex")]
pub fn beside_backward_passes(action: impl Fn()) {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    /// Ends the other thread, also when the action panics.
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Relaxed);
        }
    }

    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Relaxed) {
                let x = burn::tensor::Tensor::<Flex, 1>::ones([2], &Default::default()).require_grad();
                (x.clone() * x).sum().backward();
            }
        });
        let _done = Done(&done);
        (0..100).for_each(|_| action());
    });
}

/// How many of `steps` training steps a test takes: a software GPU, at seconds a step, only the first few.
pub fn steps(steps: usize) -> usize {
    if on_software_gpu() { steps.min(5) } else { steps }
}

/// Whether the GPU under test is a software adapter, which takes seconds to compile what a GPU does in an instant.
pub fn on_software_gpu() -> bool {
    cfg!(feature = "wgpu") && std::env::var("MOE_TEST_WGPU").is_ok_and(|device| device == "cpu")
}

/// The device of the WGPU suite: the default one, or the software adapter when `MOE_TEST_WGPU=cpu`.
#[cfg(feature = "wgpu")]
pub fn wgpu_device() -> burn::backend::wgpu::WgpuDevice {
    use burn::backend::wgpu::WgpuDevice;
    if on_software_gpu() { WgpuDevice::Cpu } else { WgpuDevice::default() }
}

/// One test per named generic function and enabled backend: `flex::name`, `ndarray::name`, ..
#[macro_export]
macro_rules! on_every_backend {
    ($($name:ident),+ $(,)?) => {
        #[cfg(feature = "flex")]
        mod flex { $(#[test] fn $name() { super::$name::<$crate::Flex>(&Default::default()) })+ }
        #[cfg(feature = "flex")]
        mod flex_checkpointed { $(#[test] fn $name() { super::$name::<$crate::FlexCheckpointed>(&Default::default()) })+ }
        #[cfg(feature = "ndarray")]
        mod ndarray { $(#[test] fn $name() { super::$name::<$crate::NdArray>(&Default::default()) })+ }
        $crate::on_every_gpu!($($name),+);
    };
}

/// Those of [`on_every_backend!`] whose backend is a CubeCL runtime.
#[macro_export]
macro_rules! on_every_gpu {
    ($($name:ident),+ $(,)?) => {
        #[cfg(feature = "wgpu")]
        mod wgpu { $(#[test] fn $name() { super::$name::<$crate::Wgpu>(&$crate::wgpu_device()) })+ }
        #[cfg(feature = "cuda")]
        mod cuda { $(#[test] fn $name() { super::$name::<$crate::Cuda>(&Default::default()) })+ }
        #[cfg(feature = "rocm")]
        mod rocm { $(#[test] fn $name() { super::$name::<$crate::Rocm>(&Default::default()) })+ }
        #[cfg(feature = "metal")]
        mod metal { $(#[test] fn $name() { super::$name::<$crate::Metal>(&Default::default()) })+ }
    };
}

/// [`on_every_backend!`], and once more in f64 on flex, where every op takes its portable body.
#[macro_export]
macro_rules! on_every_backend_and_portable {
    ($($name:ident),+ $(,)?) => {
        $crate::on_every_backend!($($name),+);
        #[cfg(feature = "flex")]
        mod portable_in_f64 {
            $(#[test] fn $name() { $crate::in_f64(|| super::$name::<$crate::Flex>(&Default::default())) })+
        }
    };
}

/// [`on_every_backend_and_portable!`], and once more without Fusion where a backend has it.
#[macro_export]
macro_rules! on_every_path {
    ($($name:ident),+ $(,)?) => {
        $crate::on_every_backend_and_portable!($($name),+);
        $crate::unfused!($($name),+);
    };
}

/// [`on_every_backend!`], and once more without Fusion where a backend has it.
#[macro_export]
macro_rules! on_every_backend_and_unfused {
    ($($name:ident),+ $(,)?) => {
        $crate::on_every_backend!($($name),+);
        $crate::unfused!($($name),+);
    };
}

/// One test per named generic function and backend that has a Fusion, without it.
#[macro_export]
macro_rules! unfused {
    ($($name:ident),+ $(,)?) => {
        #[cfg(feature = "wgpu")]
        mod wgpu_unfused { $(#[test] fn $name() { super::$name::<$crate::WgpuUnfused>(&$crate::wgpu_device()) })+ }
        #[cfg(feature = "cuda")]
        mod cuda_unfused { $(#[test] fn $name() { super::$name::<$crate::CudaUnfused>(&Default::default()) })+ }
        #[cfg(feature = "rocm")]
        mod rocm_unfused { $(#[test] fn $name() { super::$name::<$crate::RocmUnfused>(&Default::default()) })+ }
        #[cfg(feature = "metal")]
        mod metal_unfused { $(#[test] fn $name() { super::$name::<$crate::MetalUnfused>(&Default::default()) })+ }
    };
}

/// One test per named function `name::<R>(device)`, generic over the CubeCL runtime, and enabled runtime.
#[cfg(feature = "cube")]
#[macro_export]
macro_rules! on_unfused_cube {
    ($($name:ident),+ $(,)?) => {
        #[cfg(feature = "wgpu")]
        mod wgpu { $(#[test] fn $name() { super::$name::<$crate::WgpuRuntime>(&$crate::wgpu_device()) })+ }
        #[cfg(feature = "cuda")]
        mod cuda { $(#[test] fn $name() { super::$name::<$crate::CudaRuntime>(&Default::default()) })+ }
        #[cfg(feature = "rocm")]
        mod rocm { $(#[test] fn $name() { super::$name::<$crate::RocmRuntime>(&Default::default()) })+ }
        #[cfg(feature = "metal")]
        mod metal { $(#[test] fn $name() { super::$name::<$crate::MetalRuntime>(&Default::default()) })+ }
    };
}

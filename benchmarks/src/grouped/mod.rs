//! Each kernel of the grouped product by itself, on the six products of a layer: which tile shape is fastest where, and how far
//! it is from the device's rate for a dense product.

#[cfg(feature = "cube")]
mod kernels;
#[cfg(feature = "cube")]
mod study;
#[cfg(feature = "cube")]
mod torch_products;

#[cfg(feature = "cube")]
pub(crate) use study::run;

/// `moe-bench grouped`.
///
/// # Errors
///
/// A processor, which has no kernels to choose from; a device or a file that cannot be used; every wrong result.
#[cfg(not(feature = "cube"))]
pub(crate) fn run(_: &crate::args::GroupedArgs) -> crate::error::Result<()> {
    Err(crate::error::Error::new("kernels to choose from are there on a GPU: use --backend cuda or --backend wgpu"))
}

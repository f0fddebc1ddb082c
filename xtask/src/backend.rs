//! The backends a program of this workspace can be built with.

use clap::ValueEnum;

/// A burn backend; each is a cargo feature of the same name in `moe-train`, `moe-bench` and `moe-tests`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    /// burn-flex, on the CPU
    Flex,
    /// burn-ndarray, on the CPU
    Ndarray,
    /// Any graphics card, through WebGPU
    Wgpu,
    /// NVIDIA cards
    Cuda,
}

impl Backend {
    /// The cargo feature that compiles this backend in.
    pub(crate) fn feature(self) -> &'static str {
        match self {
            Self::Flex => "flex",
            Self::Ndarray => "ndarray",
            Self::Wgpu => "wgpu",
            Self::Cuda => "cuda",
        }
    }

    /// Reads the value of `--backend`.
    pub(crate) fn parse(name: &str) -> crate::Result<Self> {
        Self::value_variants()
            .iter()
            .copied()
            .find(|backend| backend.feature() == name)
            .ok_or_else(|| format!("unknown backend `{name}`: choose one of flex, ndarray, wgpu, cuda"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_backend_is_found_by_the_name_of_its_feature() {
        for backend in Backend::value_variants() {
            assert_eq!(Backend::parse(backend.feature()), Ok(*backend));
        }
    }

    #[test]
    fn an_unknown_backend_is_an_error_that_lists_the_known_ones() {
        let message = Backend::parse("tpu").unwrap_err();
        assert!(message.contains("`tpu`") && message.contains("flex, ndarray, wgpu, cuda"));
    }
}

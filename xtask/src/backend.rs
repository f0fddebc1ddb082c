//! The backends a program of this workspace can be built with.

use std::process::Command;

use clap::ValueEnum;

use crate::cargo;

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

    /// `cargo VERB` of these packages with this backend and no other.
    pub(crate) fn alone(self, verb: &str, packages: &[&str]) -> Command {
        self.alone_in(verb, packages, packages)
    }

    /// The same with the backend's feature of the packages `with` only. Those of all `packages` that are no backend's are unified in either
    /// case, so that what does not differ is built once.
    pub(crate) fn alone_in(self, verb: &str, packages: &[&str], with: &[&str]) -> Command {
        let mut command = cargo::cargo();
        command.args([verb, "--no-default-features"]);
        for package in packages {
            command.args(["--package", package]);
        }
        let features: Vec<_> = with.iter().map(|package| format!("{package}/{}", self.feature())).collect();
        command.args(["--features", &features.join(",")]);
        command
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
    fn every_package_is_named_with_the_one_backend() {
        let command = Backend::Cuda.alone("build", &["moe-train", "moe-bench"]);
        let line: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        let expected = "build --no-default-features --package moe-train --package moe-bench --features moe-train/cuda,moe-bench/cuda";
        assert_eq!(line.join(" "), expected);
    }

    #[test]
    fn an_unknown_backend_is_an_error_that_lists_the_known_ones() {
        let message = Backend::parse("tpu").unwrap_err();
        assert!(message.contains("`tpu`") && message.contains("flex, ndarray, wgpu, cuda"));
    }
}

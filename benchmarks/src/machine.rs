//! Where and with what something was measured.

use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// What `cargo xtask` says of a build; another one knows neither.
const BUILT_BY: Option<&str> = option_env!("MOE_BENCH_RUSTC");
const BUILT_FROM: Option<&str> = option_env!("MOE_BENCH_COMMIT");
const LOCK: &str = include_str!("../../Cargo.lock");

/// A machine, its software and the moment.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    /// UTC, `2026-11-24T05:06:07Z`.
    date: String,
    /// Model of the processor.
    cpu: String,
    /// Cores this program may use.
    cores: usize,
    os: &'static str,
    rustc: &'static str,
    profile: &'static str,
    burn: &'static str,
    gemm: &'static str,
    /// What this program was built from; ends in `+` when files differed from it.
    commit: Option<&'static str>,
    /// Device as the command line named it.
    device: String,
    /// What `nvidia-smi` says, in its order; empty where there is none.
    gpus: Vec<Gpu>,
}

/// A card of NVIDIA.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Gpu {
    name: String,
    driver: String,
    /// As it is written there, `81559 MiB`.
    memory: String,
}

impl Machine {
    /// This one, now.
    pub(crate) fn here(device: &str) -> Self {
        Self {
            date: date(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())),
            cpu: cpu(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            os: std::env::consts::OS,
            rustc: BUILT_BY.unwrap_or("unknown compiler"),
            profile: if cfg!(debug_assertions) { "dev" } else { "release" },
            burn: locked("burn"),
            gemm: locked("gemm"),
            commit: BUILT_FROM,
            device: device.into(),
            gpus: gpus(&nvidia_smi().unwrap_or_default()),
        }
    }

    /// One line for people.
    pub(crate) fn line(&self) -> String {
        let commit = self.commit.map_or("no commit", |commit| &commit[..commit.len().min(9)]);
        let gpu = |gpu: &Gpu| format!(", {} ({}, driver {})", gpu.name, gpu.memory, gpu.driver);
        let gpus: String = self.gpus.iter().map(gpu).collect();
        format!(
            "{}, {} cores{gpus}, {}, burn {}, gemm {}, {} profile, {commit}, {}",
            self.cpu, self.cores, self.rustc, self.burn, self.gemm, self.profile, self.date
        )
    }
}

fn cpu(info: &str) -> String {
    let model = info.lines().find(|line| line.starts_with("model name"));
    let name = model.and_then(|line| line.split_once(':')).map(|(_, name)| name.trim());
    name.unwrap_or(std::env::consts::ARCH).into()
}

fn nvidia_smi() -> Option<String> {
    let query = ["--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"];
    let output = Command::new("nvidia-smi").args(query).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// One card a line: name, driver, memory.
fn gpus(lines: &str) -> Vec<Gpu> {
    let card = |line: &str| {
        let mut words = line.split(',').map(|word| word.trim().to_string());
        Some(Gpu { name: words.next()?, driver: words.next()?, memory: words.next()? })
    };
    lines.lines().filter_map(card).collect()
}

/// Version of a package in `Cargo.lock`.
fn locked(package: &str) -> &'static str {
    let entry = LOCK.split("[[package]]").find(|entry| entry.trim().starts_with(&format!("name = \"{package}\"\n")));
    let version = entry.and_then(|entry| entry.split("version = \"").nth(1)?.split('"').next());
    version.unwrap_or("unknown")
}

/// Seconds since 1970 as a date; days to years after H. Hinnant's "chrono-compatible low-level date algorithms".
fn date(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01T00:00:00Z");
        assert_eq!(date(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(date(1_798_761_599), "2026-12-31T23:59:59Z");
    }

    #[test]
    fn versions_are_those_of_the_lock_file() {
        assert_eq!((locked("burn"), locked("no-such-package")), ("0.21.0", "unknown"));
        assert!(locked("gemm").starts_with("0.19"));
    }

    #[test]
    fn cards_are_read_line_by_line_and_other_words_are_none() {
        let card = |name: &str| Gpu { name: name.into(), driver: "570.1".into(), memory: "81559 MiB".into() };
        assert_eq!(
            gpus("NVIDIA H100 80GB HBM3, 570.1, 81559 MiB\nNVIDIA H200, 570.1, 81559 MiB\n"),
            [card("NVIDIA H100 80GB HBM3"), card("NVIDIA H200")]
        );
        assert_eq!(gpus("No devices were found\n"), []);
    }

    #[test]
    fn the_model_of_the_processor_is_found() {
        assert_eq!(cpu("processor : 0\nmodel name\t: AMD EPYC\n"), "AMD EPYC");
        assert_eq!(cpu(""), std::env::consts::ARCH);
    }
}

//! Devices and what connects them: nominal figures of vendors, or numbers of one's own.

use crate::names;

/// What numbers a device multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// 4 bytes.
    F32,
    /// 2 bytes; parameters, gradients and the optimizer stay f32.
    Bf16,
}

impl Dtype {
    /// The dtype of a name.
    ///
    /// # Errors
    ///
    /// An unknown name.
    pub fn parse(name: &str) -> Result<Self, String> {
        match name {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            _ => Err(names::unknown("dtype", name, &["f32", "bf16"])),
        }
    }

    /// Bytes of a number.
    pub fn bytes(self) -> f64 {
        match self {
            Self::F32 => 4.0,
            Self::Bf16 => 2.0,
        }
    }
}

/// A device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Device {
    /// FLOP/s of dense matrix products.
    pub flops: f64,
    /// Bytes of memory.
    pub memory: f64,
    /// Bytes per second between memory and processor.
    pub memory_rate: f64,
}

/// A named device. `f32` is the rate of TF32, which is what burn multiplies f32 in on CUDA.
struct NamedDevice {
    name: &'static str,
    bf16: f64,
    f32: f64,
    memory: f64,
    memory_rate: f64,
}

/// Vendor's data sheets, without sparsity.
const DEVICES: &[NamedDevice] = &[
    NamedDevice { name: "a100-80gb", bf16: 312e12, f32: 156e12, memory: 80e9, memory_rate: 2.039e12 },
    NamedDevice { name: "h100", bf16: 989.4e12, f32: 494.7e12, memory: 80e9, memory_rate: 3.35e12 },
    NamedDevice { name: "h200", bf16: 989.4e12, f32: 494.7e12, memory: 141e9, memory_rate: 4.8e12 },
];

impl Device {
    /// The device of a name, multiplying in `dtype`.
    ///
    /// # Errors
    ///
    /// An unknown name.
    pub fn named(name: &str, dtype: Dtype) -> Result<Self, String> {
        let known: Vec<&str> = DEVICES.iter().map(|device| device.name).collect();
        let found = DEVICES.iter().find(|device| device.name == name);
        let device = found.ok_or_else(|| names::unknown("device", name, &known))?;
        let flops = if dtype == Dtype::Bf16 { device.bf16 } else { device.f32 };
        Ok(Self { flops, memory: device.memory, memory_rate: device.memory_rate })
    }
}

/// What a device has to others, in one direction; both at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Bytes per second.
    pub rate: f64,
    /// Seconds until a message arrives beside those that its bytes take.
    pub latency: f64,
}

/// Rates are nominal; latencies are assumptions, of the size that collectives of a few bytes take with common libraries.
const LINKS: &[(&str, Link)] = &[
    ("nvlink3", Link { rate: 300e9, latency: 10e-6 }),
    ("nvlink4", Link { rate: 450e9, latency: 10e-6 }),
    ("pcie4", Link { rate: 31.5e9, latency: 15e-6 }),
    ("pcie5", Link { rate: 63e9, latency: 15e-6 }),
    ("infiniband-hdr", Link { rate: 25e9, latency: 20e-6 }),
    ("infiniband-ndr", Link { rate: 50e9, latency: 20e-6 }),
    ("ethernet-100g", Link { rate: 12.5e9, latency: 50e-6 }),
    ("ethernet-10g", Link { rate: 1.25e9, latency: 50e-6 }),
];

/// Latency of a link that is given by its rate alone.
const LATENCY: f64 = 20e-6;

impl Link {
    /// A link by its name, or by its rate in GB/s (10^9 bytes) for each device and direction.
    ///
    /// # Errors
    ///
    /// An unknown name; a rate that is not a finite number above 0.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Ok(rate) = text.parse::<f64>() {
            let valid = rate > 0.0 && rate.is_finite();
            return if valid {
                Ok(Self { rate: rate * 1e9, latency: LATENCY })
            } else {
                Err(format!("a link of {text} GB/s: the rate must be a finite number above 0"))
            };
        }
        let known: Vec<&str> = LINKS.iter().map(|(name, _)| *name).collect();
        let found = LINKS.iter().find(|(name, _)| *name == text);
        found.map(|(_, link)| *link).ok_or_else(|| names::unknown("link", text, &known))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_have_names_or_rates() {
        assert_eq!(Link::parse("infiniband-ndr").unwrap().rate, 50e9);
        assert_eq!(Link::parse("2.5"), Ok(Link { rate: 2.5e9, latency: LATENCY }));
        assert_eq!(Link::parse("nvlink").unwrap_err(), "unknown link `nvlink`; did you mean `nvlink3`?");
        for wrong in ["0", "-1", "inf", "nan"] {
            assert!(Link::parse(wrong).unwrap_err().contains("above 0"), "{wrong}");
        }
    }

    #[test]
    fn a_device_is_as_fast_as_its_dtype() {
        let [bf16, f32] = [Dtype::Bf16, Dtype::F32].map(|dtype| Device::named("h100", dtype).unwrap().flops);
        assert_eq!(bf16, 2.0 * f32);
        assert_eq!(Device::named("h10", Dtype::F32).unwrap_err(), "unknown device `h10`; did you mean `h100`?");
        assert_eq!(Dtype::parse("fp8").unwrap_err(), "unknown dtype `fp8`; there are f32, bf16");
    }
}

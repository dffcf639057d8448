//! What a VM is made of, as plain data: the same settings from flags, a file or an embedder's code.
//!
//! Every type here is serde data with the names of the command line. [`VmConfig::validate`] checks
//! what can be known without touching the host; [`crate::VmBuilder::build`] calls it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A whole VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct VmConfig {
    /// ELF vmlinux, PVH ELF or bzImage, told apart by content.
    pub kernel: PathBuf,
    /// An initramfs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// Replaces the default kernel command line ([`DEFAULT_CMDLINE`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// Goes at the end of the kernel command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub append: Option<String>,
    /// Number of vCPUs.
    #[serde(default = "default_cpus")]
    pub cpus: u8,
    /// Guest memory.
    #[serde(default = "default_mem")]
    pub mem: MemorySize,
    /// The first disk; `root=/dev/vda` goes on the command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rootfs: Option<DiskConfig>,
    /// Further disks, in order.
    #[serde(default, rename = "disk", skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskConfig>,
    /// Whether the guest gets ACPI tables. Without them it is told of its devices on the command line,
    /// gets a PIT, and has one CPU.
    #[serde(default = "default_true")]
    pub acpi: bool,
}

/// The kernel command line where the user gives none. `reboot=panic_warm` makes Linux leave a mark in
/// memory (the BIOS warm-boot flag at 0x472) by which a panic is told from a reboot without any driver.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0 reboot=panic_warm panic=-1";

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DiskConfig {
    /// The image file or block device.
    pub path: PathBuf,
    /// The guest may not write it; other VMs may read it at the same time.
    #[serde(default, rename = "ro", skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// The serial number the guest sees, at most 20 bytes; by default made from the file's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
}

fn default_cpus() -> u8 {
    1
}

fn default_mem() -> MemorySize {
    MemorySize::mib(256)
}

fn default_true() -> bool {
    true
}

impl VmConfig {
    /// One vCPU, 256 MiB, no disks, ACPI.
    pub fn new(kernel: impl Into<PathBuf>) -> Self {
        Self {
            kernel: kernel.into(),
            initrd: None,
            cmdline: None,
            append: None,
            cpus: default_cpus(),
            mem: default_mem(),
            rootfs: None,
            disks: Vec::new(),
            acpi: true,
        }
    }
}

/// An amount of memory in bytes, written with a unit: `256M`, `4G`, `65536K`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MemorySize(u64);

/// Why a memory size could not be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum MemorySizeError {
    /// Not a number with an optional unit.
    #[error("'{0}' is not a size; write a whole number and a unit, such as 256M or 4G")]
    Syntax(String),
    /// More than 64 bits.
    #[error("'{0}' is too large")]
    Overflow(String),
}

impl MemorySize {
    /// A size in bytes.
    #[must_use]
    pub const fn bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// A size in MiB.
    #[must_use]
    pub const fn mib(mib: u32) -> Self {
        Self((mib as u64) << 20)
    }

    /// The size in bytes.
    #[must_use]
    pub const fn as_bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for MemorySize {
    type Err = MemorySizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let syntax = || MemorySizeError::Syntax(text.to_owned());
        let digits = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let shift = match unit.to_ascii_uppercase().as_str() {
            // A bare number is MiB, as QEMU's -m reads it.
            "" | "M" | "MB" | "MIB" => 20,
            "B" => 0,
            "K" | "KB" | "KIB" => 10,
            "G" | "GB" | "GIB" => 30,
            "T" | "TB" | "TIB" => 40,
            _ => return Err(syntax()),
        };
        if number.is_empty() {
            return Err(syntax());
        }
        let overflow = || MemorySizeError::Overflow(text.to_owned());
        let number: u64 = number.parse().map_err(|_| overflow())?;
        number
            .checked_mul(1 << shift)
            .map(Self)
            .ok_or_else(overflow)
    }
}

impl TryFrom<String> for MemorySize {
    type Error = MemorySizeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MemorySize> for String {
    fn from(size: MemorySize) -> Self {
        size.to_string()
    }
}

impl fmt::Display for MemorySize {
    /// The largest unit that gives a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shift, unit) = [(40, "T"), (30, "G"), (20, "M"), (10, "K")]
            .into_iter()
            .find(|(shift, _)| self.0 != 0 && self.0.trailing_zeros() >= *shift)
            .unwrap_or((0, "B"));
        write!(f, "{}{unit}", self.0 >> shift)
    }
}

//! What a VM is made of, as plain data: the same settings from flags, a file or an embedder's code.
//!
//! Every type here is serde data with the names of the command line. [`VmConfig::validate`] checks
//! what can be known without touching the host; [`crate::VmBuilder::build`] calls it.

pub mod list;

mod balloon;
mod command;
mod disk;
mod mac;
mod net;
mod pmem;
mod rate;
mod rng;
mod share;
mod size;
mod span;
mod vsock;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use balloon::{BalloonConfig, BalloonError};
pub use command::{CommandConfig, CommandError, TerminalSize};
pub use disk::{
    Cache, DiskConfig, DiskError, Engine, Format, Layout, LayoutError, OnError, Overlay, SERIAL_MAX,
};
pub use mac::{MacAddress, MacError};
pub use net::{
    MAX_QUEUES, NetConfig, NetConfigError, NetKind, Protocol, Publish, PublishError, UserConfig,
};
pub use pmem::{PmemConfig, PmemConfigError};
pub use rate::{Amount, RateError, RateLimit};
pub use rng::{RngConfig, RngError};
pub use share::{ShareConfig, ShareError};
pub use size::{MemorySize, MemorySizeError};
pub use span::{Span, SpanError};
pub use vsock::{VsockConfig, VsockConfigError};

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
    /// Files that the guest has as memory, in order.
    #[serde(default, rename = "pmem", skip_serializing_if = "Vec::is_empty")]
    pub pmems: Vec<PmemConfig>,
    /// A source of entropy.
    #[serde(default)]
    pub rng: RngConfig,
    /// A memory balloon.
    #[serde(default)]
    pub balloon: BalloonConfig,
    /// Stream sockets between guest and host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockConfig>,
    /// Network cards, in order.
    #[serde(default, rename = "net", skip_serializing_if = "Vec::is_empty")]
    pub nets: Vec<NetConfig>,
    /// Directories of the host's, in order.
    #[serde(default, rename = "share", skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<ShareConfig>,
    /// Threads that the devices' data paths are spread over.
    #[serde(default = "default_io_threads")]
    pub io_threads: u8,
    /// Run this command in the guest, instead of the guest's own init.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<CommandConfig>,
    /// Whether the guest gets ACPI tables. Without them it is told of its devices on the command line,
    /// gets a PIT, and has one CPU.
    #[serde(default = "default_true")]
    pub acpi: bool,
}

/// The kernel command line where the user gives none. `reboot=panic_warm` makes Linux leave a mark in
/// memory (the BIOS warm-boot flag at 0x472) by which a panic is told from a reboot without any driver.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0 reboot=panic_warm panic=-1";

/// The same where the console is a virtio-console. Linux is told of the serial port as a console for its
/// early days (`earlycon`), which it leaves for `hvc0` once it has found that, saying nothing twice.
pub const VIRTIO_CONSOLE_CMDLINE: &str =
    "earlycon=uart8250,io,0x3f8 console=hvc0 reboot=panic_warm panic=-1";

fn default_cpus() -> u8 {
    1
}

fn default_mem() -> MemorySize {
    MemorySize::mib(256)
}

fn default_io_threads() -> u8 {
    1
}

fn default_true() -> bool {
    true
}

impl VmConfig {
    /// One vCPU, 256 MiB, no disks, a source of entropy, an empty balloon, ACPI.
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
            pmems: Vec::new(),
            rng: RngConfig::default(),
            balloon: BalloonConfig::default(),
            vsock: None,
            nets: Vec::new(),
            shares: Vec::new(),
            io_threads: default_io_threads(),
            command: None,
            acpi: true,
        }
    }

    /// Checks what can be known without touching the host.
    ///
    /// # Errors
    /// The first setting that no host could satisfy.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.kernel.as_os_str().is_empty() {
            return Err(ConfigError::EmptyPath("kernel"));
        }
        if self
            .initrd
            .as_ref()
            .is_some_and(|p| p.as_os_str().is_empty())
        {
            return Err(ConfigError::EmptyPath("initrd"));
        }
        if !(1..=MAX_CPUS).contains(&self.cpus) {
            return Err(ConfigError::Cpus(self.cpus));
        }
        if self.cpus > 1 && !self.acpi {
            return Err(ConfigError::CpusWithoutAcpi(self.cpus));
        }
        if !(1..=MAX_IO_THREADS).contains(&self.io_threads) {
            return Err(ConfigError::IoThreads(self.io_threads));
        }
        if self.mem < MIN_MEMORY {
            return Err(ConfigError::MemoryTooSmall(self.mem));
        }
        if !self.mem.as_bytes().is_multiple_of(PAGE_SIZE) {
            return Err(ConfigError::MemoryUnaligned(self.mem));
        }
        for text in [&self.cmdline, &self.append].into_iter().flatten() {
            if let Some(bad) = text.chars().find(char::is_ascii_control) {
                return Err(ConfigError::CmdlineCharacter(
                    bad.escape_default().to_string(),
                ));
            }
        }
        self.balloon.validate(self.mem)?;
        if let Some(vsock) = &self.vsock {
            vsock.validate()?;
        }
        if let Some(command) = &self.command {
            command.validate()?;
        }
        net::validate_all(&self.nets)?;
        share::validate_all(&self.shares)?;
        self.rng.limits()?;
        self.validate_disks()
    }

    fn validate_disks(&self) -> Result<(), ConfigError> {
        let disks: Vec<&DiskConfig> = self.rootfs.iter().chain(&self.disks).collect();
        for (at, disk) in disks.iter().enumerate() {
            disk.validate()?;
            let others = || disks[..at].iter().flat_map(|other| other.files());
            let twice = disk.files().find(|(path, writes)| {
                others().any(|(other, other_writes)| other == *path && (*writes || other_writes))
            });
            if let Some((path, _)) = twice {
                return Err(ConfigError::DiskTwice(path.to_owned()));
            }
        }
        Ok(pmem::validate_all(
            &self.pmems,
            &disks,
            self.rootfs.is_some(),
        )?)
    }

    /// The guest's name for the root file system's device, and whether it is read-only.
    pub(crate) fn root(&self) -> Option<(String, bool)> {
        let disk = self
            .rootfs
            .iter()
            .map(|disk| ("/dev/vda".to_owned(), disk.read_only));
        let pmems = (0..).zip(&self.pmems).filter(|(_, pmem)| pmem.root);
        let pmems = pmems.map(|(at, pmem): (usize, _)| (format!("/dev/pmem{at}"), pmem.read_only));
        disk.chain(pmems).next()
    }
}

/// APIC ids are 8 bits wide in the MADT's local APIC entries and 0xff addresses all CPUs; one more is
/// kept free for the I/O APIC.
pub const MAX_CPUS: u8 = 254;

/// More threads than this only get in each other's way.
pub const MAX_IO_THREADS: u8 = 64;

/// Less than this does not hold an unpacked stock kernel.
pub const MIN_MEMORY: MemorySize = MemorySize::mib(32);

const PAGE_SIZE: u64 = 4096;

/// Why a configuration cannot be a VM on any host.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigError {
    /// A path is an empty string.
    #[error("the path of the {0} is empty; name a file")]
    EmptyPath(&'static str),
    /// No vCPU, or more than APIC ids reach.
    #[error("{0} vCPUs asked for; a VM has 1 to {MAX_CPUS}")]
    Cpus(u8),
    /// No I/O thread, or too many.
    #[error("{0} I/O threads asked for; a VM has 1 to {MAX_IO_THREADS}")]
    IoThreads(u8),
    /// Linux finds further CPUs through the ACPI MADT only.
    #[error(
        "{0} vCPUs without ACPI: the guest would find only the first; ask for one, or keep ACPI"
    )]
    CpusWithoutAcpi(u8),
    /// Too little memory for any kernel.
    #[error("{0} of memory is too little; a VM needs at least {MIN_MEMORY}, a stock kernel 128M")]
    MemoryTooSmall(MemorySize),
    /// Memory that ends inside a page.
    #[error("{0} of memory is not a whole number of 4K pages; write it in K, M or G")]
    MemoryUnaligned(MemorySize),
    /// A line break or another control character in the kernel command line.
    #[error("the kernel command line contains the control character '{0}'; leave it out")]
    CmdlineCharacter(String),
    /// Two disks on one image would overwrite each other.
    #[error("disk {} is given twice; a disk can appear twice only if each time it is read-only", .0.display())]
    DiskTwice(PathBuf),
    /// The command.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// One of the disks.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// One of the persistent memories.
    #[error(transparent)]
    Pmem(#[from] PmemConfigError),
    /// The source of entropy.
    #[error(transparent)]
    Rng(#[from] RngError),
    /// The balloon.
    #[error(transparent)]
    Balloon(#[from] BalloonError),
    /// The vsock.
    #[error(transparent)]
    Vsock(#[from] VsockConfigError),
    /// One of the network cards.
    #[error(transparent)]
    Net(#[from] NetConfigError),
    /// One of the shared directories.
    #[error(transparent)]
    Share(#[from] ShareError),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut VmConfig)) -> String {
        let mut config = VmConfig::new("vmlinux");
        config.validate().unwrap();
        change(&mut config);
        config.validate().unwrap_err().to_string()
    }

    #[test]
    fn what_no_host_could_run_is_refused() {
        assert_eq!(
            refused(|c| c.kernel = PathBuf::new()),
            "the path of the kernel is empty; name a file"
        );
        assert_eq!(
            refused(|c| c.initrd = Some(PathBuf::new())),
            "the path of the initrd is empty; name a file"
        );
        assert_eq!(
            refused(|c| c.cpus = 0),
            "0 vCPUs asked for; a VM has 1 to 254"
        );
        assert_eq!(
            refused(|c| c.cpus = 255),
            "255 vCPUs asked for; a VM has 1 to 254"
        );
        assert_eq!(
            refused(|c| c.io_threads = 0),
            "0 I/O threads asked for; a VM has 1 to 64"
        );
        assert!(refused(|c| (c.cpus, c.acpi) = (2, false)).starts_with("2 vCPUs without ACPI"),);
        assert_eq!(
            refused(|c| c.mem = MemorySize::mib(31)),
            "31M of memory is too little; a VM needs at least 32M, a stock kernel 128M"
        );
        assert_eq!(
            refused(|c| c.mem = MemorySize::bytes((64 << 20) + 1)),
            "67108865B of memory is not a whole number of 4K pages; write it in K, M or G"
        );
        assert_eq!(
            refused(|c| c.append = Some("a\nb".to_owned())),
            "the kernel command line contains the control character '\\n'; leave it out"
        );
        assert!(refused(|c| c.rootfs = Some(DiskConfig::new(""))).contains("path is empty"));
    }

    #[test]
    fn one_image_may_be_two_disks_only_to_read() {
        let disk = |read_only| DiskConfig {
            read_only,
            ..DiskConfig::new("a.img")
        };
        for (first, second) in [(false, false), (false, true), (true, false)] {
            let message = refused(|c| {
                c.rootfs = Some(disk(first));
                c.disks = vec![disk(second)];
            });
            assert!(
                message.starts_with("disk a.img is given twice"),
                "{message}"
            );
        }
        let mut config = VmConfig::new("vmlinux");
        config.disks = vec![disk(true), disk(true)];
        config.validate().unwrap();
    }

    #[test]
    fn the_limits_themselves_are_fine() {
        let mut config = VmConfig::new("vmlinux");
        (config.cpus, config.mem) = (MAX_CPUS, MIN_MEMORY);
        config.validate().unwrap();
    }
}

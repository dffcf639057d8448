//! Why a kernel, an initrd or a command line was refused: one line each, with the remedy.

use std::io;

use thiserror::Error;
use vm_memory::GuestMemoryError;

use super::identify::Lookalike;

/// Which of the inputs an error is about, so that the caller can name the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The kernel image.
    Kernel,
    /// The initrd.
    Initrd,
    /// The command line.
    Cmdline,
    /// The size of the memory.
    Memory,
}

/// Why a kernel could not be loaded. Messages do not name the file.
#[derive(Debug, Error)]
pub enum KernelError {
    /// The kernel's path is a directory.
    #[error("is a directory; name the kernel image in it, such as vmlinux or vmlinuz")]
    Directory,
    /// The kernel is a pipe or a terminal.
    #[error("is not a regular file; write the kernel to a file first")]
    NotSeekable,
    /// The kernel has no bytes.
    #[error("is empty; copy or build the kernel again")]
    Empty,
    /// Reading the kernel failed.
    #[error("cannot be read: {0}")]
    Read(#[source] io::Error),
    /// The file is something else, and it is known what.
    #[error("{0}")]
    NotAKernel(Lookalike),
    /// The file ends before what its headers describe.
    #[error("is truncated: {what} ends at byte {end} of {len}; copy it again")]
    Truncated {
        /// What lies beyond the end.
        what: &'static str,
        /// Where that ends, in bytes from the start of the file.
        end: u64,
        /// Size of the file in bytes.
        len: u64,
    },
    /// The headers contradict themselves or the protocol.
    #[error("is damaged or no kernel: {what}; copy or build it again")]
    Malformed {
        /// What is wrong.
        what: &'static str,
    },
    /// A part of the kernel wants an address at which there is never memory for kernels.
    #[error(
        "wants to be loaded at {start:#x}-{end:#x}; kernels go between 1 MiB and 3 GiB, link it there"
    )]
    Address {
        /// First guest physical address.
        start: u64,
        /// Guest physical address past the last.
        end: u64,
    },
    /// The entry point is in no loaded segment.
    #[error(
        "starts at {entry:#x}, where it loads nothing; it is not a vmlinux, or holds debug symbols only"
    )]
    EntryPoint {
        /// Guest physical address.
        entry: u64,
    },
    /// The bzImage's protocol has no 64-bit entry yet.
    #[error(
        "speaks boot protocol {}.{:02}, which has no 64-bit entry; use Linux 3.8 or later (2.12)",
        version >> 8,
        version & 0xff
    )]
    OldProtocol {
        /// Major version in the upper byte, minor in the lower.
        version: u16,
    },
    /// The bzImage is a 32-bit kernel.
    #[error("is a 32-bit Linux kernel; use one built for x86-64 (CONFIG_64BIT=y)")]
    No64BitEntry,
    /// Kernel and initrd need more memory than there is.
    #[error(
        "{} of memory cannot hold the kernel{}; give the VM at least {}",
        Mib(*given),
        if *initrd { " and the initrd" } else { "" },
        Mib(*needed)
    )]
    DoesNotFit {
        /// Least memory to hold them, in bytes.
        needed: u64,
        /// Size of the memory, in bytes.
        given: u64,
        /// Whether there is an initrd.
        initrd: bool,
    },
    /// linux-loader could not copy the image.
    #[error("cannot be copied into guest memory: {0}")]
    Copy(#[source] linux_loader::loader::Error),
    /// The initrd's path is a directory.
    #[error("is a directory; pack it first: find . | cpio -o -H newc")]
    InitrdDirectory,
    /// The initrd is a pipe or a terminal.
    #[error("is not a regular file; write the initrd to a file first")]
    InitrdNotSeekable,
    /// The initrd has no bytes.
    #[error("is empty; leave the initrd out, or make it again")]
    InitrdEmpty,
    /// Finding out the initrd's size failed.
    #[error("cannot be read: {0}")]
    InitrdRead(#[source] io::Error),
    /// Reading the initrd into guest memory failed.
    #[error("cannot be read into guest memory: {0}")]
    InitrdCopy(#[source] GuestMemoryError),
    /// No amount of memory makes room for the initrd where the kernel can reach it.
    #[error("has {}; at most {} fit above this kernel", Mib(*len), Mib(*max))]
    InitrdTooLarge {
        /// Size of the initrd in bytes.
        len: u64,
        /// The largest that would fit, in bytes.
        max: u64,
    },
    /// The command line is longer than the kernel takes.
    #[error("has {len} bytes; this kernel takes at most {max}")]
    CmdlineTooLong {
        /// Length in bytes.
        len: u64,
        /// Most bytes.
        max: u64,
    },
    /// The command line ends in its midst.
    #[error("contains a NUL byte, at which the kernel would stop reading; remove it")]
    CmdlineNul,
    /// The command line has no place in guest memory.
    #[error("cannot be written to guest memory: {0}")]
    WriteCmdline(#[source] GuestMemoryError),
}

impl KernelError {
    /// Which of the inputs the message is about.
    #[must_use]
    pub fn part(&self) -> Part {
        match self {
            Self::DoesNotFit { .. } => Part::Memory,
            Self::InitrdDirectory
            | Self::InitrdNotSeekable
            | Self::InitrdEmpty
            | Self::InitrdRead(_)
            | Self::InitrdCopy(_)
            | Self::InitrdTooLarge { .. } => Part::Initrd,
            Self::CmdlineTooLong { .. } | Self::CmdlineNul | Self::WriteCmdline(_) => Part::Cmdline,
            _ => Part::Kernel,
        }
    }
}

/// Bytes in MiB, rounded up.
pub(super) struct Mib(pub u64);

impl std::fmt::Display for Mib {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} MiB", self.0.div_ceil(1 << 20))
    }
}

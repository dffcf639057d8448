//! Why a VM could not be built, or did not end by itself. One line each, with the cause and, where there
//! is one, the remedy.

use std::io;
use std::path::PathBuf;

use arch::kernel::{KernelError, Part};
use arch::x86_64::boot::BootError;
use devices::bus::BusError;
use devices::io::IoError;
use devices::virtio::block::image::ImageError;
use devices::virtio::net::tap::TapError;
use devices::virtio::pmem::PmemError;
use kvm_ioctls::Error as KvmErrno;
use thiserror::Error;

pub use crate::catalog::ShareOpenError;
use crate::command::ModulesError;
use crate::config::ConfigError;
use crate::console::ConsoleError;
pub use crate::kvm::vm::KvmError;
use crate::net::UserNetError;
use crate::socket::SocketError;
pub use crate::vcpu::EmulationFailure;

/// Why a VM could not be assembled. Nothing of the guest has run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The settings contradict themselves.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file cannot be opened.
    #[error("{what} {} cannot be opened: {source}", path.display())]
    Open {
        /// Kernel or initrd.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel, the initrd or the command line cannot be used.
    #[error("{subject}{source}")]
    Kernel {
        /// The file or thing meant, ready to be put before the message.
        subject: String,
        /// What is wrong with it.
        source: KernelError,
    },
    /// A disk image cannot be used.
    #[error("disk image {0}")]
    Image(#[from] ImageError),
    /// A path that was read as the paths of two files.
    #[error("disk image {}: a plus sign stands between the files of one disk; write one that belongs to a name twice, as in a++b.img", .0.display())]
    PlusSign(PathBuf),
    /// One image is used for two disks.
    #[error("disk image {} is given twice; each disk needs an image of its own", .0.display())]
    ImageTwice(PathBuf),
    /// A file cannot be persistent memory.
    #[error("pmem {0}")]
    Pmem(#[from] PmemError),
    /// The vsock's socket.
    #[error("vsock socket {0}")]
    Vsock(#[from] SocketError),
    /// A tap cannot be used.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// A directory cannot be shared.
    #[error(transparent)]
    Share(#[from] ShareOpenError),
    /// A user-mode network.
    #[error(transparent)]
    UserNet(#[from] UserNetError),
    /// More devices than there are places for.
    #[error("{0} devices are more than mvm's {max}; leave some out", max = arch::x86_64::layout::VIRTIO_MMIO_MAX)]
    TooManyDevices(usize),
    /// Kernel modules cannot be brought along.
    #[error(transparent)]
    Modules(#[from] ModulesError),
    /// Guest memory cannot be mapped.
    #[error("{mib} MiB of guest memory cannot be mapped: {source}; lower --mem")]
    Memory {
        /// How much was asked for.
        mib: u64,
        /// Why.
        source: vm_memory::mmap::FromRangesError,
    },
    /// The tables the guest boots with cannot be written.
    #[error("boot tables: {0}")]
    Boot(#[from] BootError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The console.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// The I/O thread.
    #[error(transparent)]
    Io(#[from] IoError),
    /// A device could not be made.
    #[error("{what}: {source}")]
    Device {
        /// The device.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Two devices want one address: a bug of mvm's.
    #[error(transparent)]
    Bus(#[from] BusError),
}

impl BuildError {
    /// Says which file `source` is about.
    pub(crate) fn kernel(
        source: KernelError,
        kernel: &std::path::Path,
        initrd: Option<&std::path::Path>,
    ) -> Self {
        let subject = match (source.part(), initrd) {
            (Part::Kernel, _) => format!("kernel {} ", kernel.display()),
            (Part::Initrd, Some(initrd)) => format!("initrd {} ", initrd.display()),
            (Part::Initrd, None) => "initrd ".to_owned(),
            (Part::Cmdline, _) => "the kernel command line ".to_owned(),
            (Part::Memory, _) => String::new(),
        };
        Self::Kernel { subject, source }
    }
}

/// Why a VM that ran did not end by itself.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VmError {
    /// KVM_RUN failed.
    #[error("KVM_RUN failed: {0}; 'mvm doctor' tells what this host can do")]
    Run(#[source] KvmErrno),
    /// A file that is the guest's memory lost its end.
    #[error(
        "pmem {} was truncated while the guest used it, so the guest cannot go on; give the file its size again", .0.display()
    )]
    PmemTruncated(PathBuf),
    /// A file that is the guest's memory cannot be read or extended.
    #[error(
        "the host has no page for the guest to use of pmem {} or another: the file system is full or fails; see the host's log", .0.display()
    )]
    PmemFault(PathBuf),
    /// A thread could not be started.
    #[error("a thread of the VM cannot be started: {0}")]
    Spawn(#[source] io::Error),
    /// The processor refused to enter the guest.
    #[error(
        "the processor refused to run the guest on CPU {cpu}: hardware reason {reason:#x}; 'mvm doctor' tells what this host can do"
    )]
    Entry {
        /// The hardware's own code.
        reason: u64,
        /// The host CPU.
        cpu: u32,
    },
    /// KVM met an instruction it cannot emulate.
    #[error("{0}")]
    Emulation(EmulationFailure),
    /// KVM gave up for another reason.
    #[error("KVM gave up on the guest: internal error, suberror {0}")]
    Internal(u32),
    /// KVM stopped the guest for a reason mvm does not know.
    #[error("KVM stopped the guest for an unknown reason: {0}")]
    UnexpectedExit(String),
    /// The I/O thread failed: a bug, or the host is out of something.
    #[error(transparent)]
    Io(#[from] IoError),
    /// A vCPU thread panicked: a bug of mvm's.
    #[error("a vCPU thread panicked; this is a bug in mvm")]
    Panicked,
}

//! A VM of KVM's and what its guest boots from, made side by side: KVM mostly waits, and has nothing to do
//! with what is in the guest's memory.

use std::fs::File;
use std::panic::resume_unwind;
use std::path::Path;
use std::thread;

use arch::board::Board;
use arch::kernel::{self, Initrd, Loaded};
use arch::x86_64::{boot, memory as ram};
use devices::mem::GuestMemory;
use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::VcpuFd;

use super::device;
use crate::config::VmConfig;
use crate::error::BuildError;
use crate::kvm::vm::{KvmError, KvmVm};
use crate::vcpu;

/// What a guest boots from, opened.
pub(super) struct Images<'a> {
    config: &'a VmConfig,
    kernel: File,
    initrd: Option<File>,
}

/// What a machine is assembled of.
pub(super) struct Made {
    /// What the first processor starts, and where.
    pub loaded: Loaded,
    /// The VM, with guest memory and interrupt controllers.
    pub kvm: KvmVm,
    /// Its processors, still without a state.
    pub vcpus: Vec<VcpuFd>,
    /// What they can show of the host's.
    pub processor: Vec<kvm_cpuid_entry2>,
}

impl<'a> Images<'a> {
    pub fn open(config: &'a VmConfig) -> Result<Self, BuildError> {
        Ok(Self {
            config,
            kernel: open("kernel", &config.kernel)?,
            initrd: match &config.initrd {
                Some(path) => Some(open("initrd", path)?),
                None => None,
            },
        })
    }

    /// Guest memory with nothing in it.
    pub fn memory(&self) -> Result<GuestMemory, BuildError> {
        let bytes = self.config.mem.as_bytes();
        GuestMemory::from_ranges(&ram::ram_regions(bytes)).map_err(|source| BuildError::Memory {
            mib: bytes >> 20,
            source,
        })
    }

    /// Loads kernel, initrd, command line and tables into `memory` while a thread makes a VM with it. If
    /// both fail, what is wrong with the images is what is said.
    pub fn make(
        mut self,
        memory: &GuestMemory,
        board: &Board,
        cmdline: &str,
        appended: &[u8],
    ) -> Result<Made, BuildError> {
        thread::scope(|scope| {
            let vm = thread::Builder::new()
                .name("kvm".to_owned())
                .spawn_scoped(scope, || vm(memory, board))
                .map_err(device("thread"))?;
            let loaded = self.load(memory, cmdline, appended)?;
            boot::configure(memory, board, &loaded)?;
            let processor = vcpu::processor();
            let (kvm, vcpus) = vm.join().unwrap_or_else(|panic| resume_unwind(panic))?;
            Ok(Made {
                loaded,
                kvm,
                vcpus,
                processor: processor?,
            })
        })
    }

    fn load(
        &mut self,
        memory: &GuestMemory,
        cmdline: &str,
        appended: &[u8],
    ) -> Result<Loaded, BuildError> {
        let parts = Initrd {
            file: self.initrd.as_mut(),
            appended,
        };
        kernel::load(memory, &mut self.kernel, parts, cmdline).map_err(|source| {
            let VmConfig { kernel, initrd, .. } = self.config;
            BuildError::kernel(source, kernel, initrd.as_deref())
        })
    }
}

/// A VM and its processors.
fn vm(memory: &GuestMemory, board: &Board) -> Result<(KvmVm, Vec<VcpuFd>), KvmError> {
    let kvm = KvmVm::new(memory.clone(), board.cpus, !board.acpi)?;
    let vcpus = (0..board.cpus).map(|id| kvm.vcpu(id));
    let vcpus = vcpus.collect::<Result<_, _>>()?;
    Ok((kvm, vcpus))
}

fn open(what: &'static str, path: &Path) -> Result<File, BuildError> {
    File::open(path).map_err(|source| BuildError::Open {
        what,
        path: path.to_owned(),
        source,
    })
}

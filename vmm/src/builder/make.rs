//! What a guest boots from, and then a VM of KVM's for it. One after the other: a thread for KVM's part takes longer to
//! come and go than it saves (`resources/bench/RESULTS.md`).

use std::fs::File;
use std::path::Path;

use arch::board::Board;
use arch::kernel::{self, Initrd, Loaded};
use arch::x86_64::{boot, memory as ram};
use devices::mem::{self, GuestMemory};
use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::VcpuFd;

use crate::catalog::Windows;
use crate::config::VmConfig;
use crate::error::BuildError;
use crate::kvm::vm::KvmVm;
use crate::vcpu;

/// What a guest boots from, opened.
pub(super) struct Images<'a> {
    config: &'a VmConfig,
    kernel: File,
    initrd: Option<File>,
}

/// What is in a guest's address space beside registers.
#[derive(Clone, Copy)]
pub(super) struct Space<'a> {
    pub memory: &'a GuestMemory,
    pub windows: &'a Windows,
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

    /// Loads kernel, initrd, command line and tables into memory, and makes a VM with it.
    pub fn make(
        mut self,
        space: Space<'_>,
        board: &Board,
        cmdline: &str,
        appended: &[u8],
    ) -> Result<Made, BuildError> {
        let Space { memory, windows } = space;
        let loaded = self.load(memory, cmdline, appended)?;
        boot::configure(memory, board, &loaded)?;
        let kvm = KvmVm::new(memory.clone(), windows, board.cpus, !board.acpi)?;
        let vcpus = (0..board.cpus).map(|id| kvm.vcpu(id));
        let vcpus = vcpus.collect::<Result<_, _>>()?;
        Ok(Made {
            processor: vcpu::processor(&kvm)?,
            loaded,
            kvm,
            vcpus,
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
        let loaded = kernel::check(memory, &mut self.kernel, parts, cmdline).and_then(|checked| {
            for range in checked.touched(memory) {
                mem::ask_for_huge_pages(memory, &range);
            }
            checked.load(memory)
        });
        loaded.map_err(|source| {
            let VmConfig { kernel, initrd, .. } = self.config;
            BuildError::kernel(source, kernel, initrd.as_deref())
        })
    }
}

fn open(what: &'static str, path: &Path) -> Result<File, BuildError> {
    File::open(path).map_err(|source| BuildError::Open {
        what,
        path: path.to_owned(),
        source,
    })
}

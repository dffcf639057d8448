//! One KVM VM: its memory slots, interrupt lines and doorbells. Used while the machine is assembled;
//! afterwards KVM works by itself and only the vCPUs are called.

use std::io;
use std::sync::Arc;

use arch::x86_64::layout;
use devices::irq::IrqLine;
use devices::mem::GuestMemory;
use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_MEM_READONLY, KVM_PIT_SPEAKER_DUMMY, kvm_clock_data,
    kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, Kvm, VcpuFd, VmFd};
use thiserror::Error;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::catalog::{PlacedWindow, Windows};
use crate::pause::Clock;

/// What KVM refused.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KvmError {
    /// `/dev/kvm` is missing or may not be opened.
    #[error("/dev/kvm cannot be opened: {0}; 'mvm doctor' tells what is missing")]
    Open(#[source] errno::Error),
    /// One of KVM's requests failed.
    #[error("KVM refused {call}: {source}; 'mvm doctor' tells what this host can do")]
    Call {
        /// The request, by its name in KVM's documentation.
        call: &'static str,
        /// Its error.
        source: errno::Error,
    },
    /// More vCPUs than this KVM allows.
    #[error("{wanted} vCPUs are more than this host's KVM allows ({max}); lower --cpus")]
    TooManyCpus {
        /// How many were asked for.
        wanted: u8,
        /// How many there may be.
        max: usize,
    },
    /// An event descriptor could not be made.
    #[error("no event descriptor: {0}; raise the limit with 'ulimit -n'")]
    EventFd(#[source] io::Error),
}

/// Names the request that failed.
pub(crate) fn refused(call: &'static str) -> impl FnOnce(errno::Error) -> KvmError {
    move |source| KvmError::Call { call, source }
}

/// A VM's KVM side.
#[derive(Debug)]
pub(crate) struct KvmVm {
    // Dropped before the memory it maps.
    fd: VmFd,
    kvm: Kvm,
    /// Kept mapped as long as KVM may look at it.
    _memory: GuestMemory,
    /// As well.
    _windows: Windows,
}

impl KvmVm {
    /// A VM with `memory`, files in its address space, and the in-kernel interrupt controllers; with a PIT
    /// for guests that have no ACPI to tell them that there is none.
    pub fn new(
        memory: GuestMemory,
        windows: &Windows,
        cpus: u8,
        pit: bool,
    ) -> Result<Self, KvmError> {
        let kvm = Kvm::new().map_err(KvmError::Open)?;
        let max = kvm.get_max_vcpus();
        if usize::from(cpus) > max {
            return Err(KvmError::TooManyCpus { wanted: cpus, max });
        }
        let fd = kvm.create_vm().map_err(refused("KVM_CREATE_VM"))?;
        // Intel's VMX needs these pages to run real mode; elsewhere they cost nothing.
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(refused("KVM_SET_IDENTITY_MAP_ADDR"))?;
        let tss = usize::try_from(layout::KVM_TSS).unwrap_or_default();
        fd.set_tss_address(tss)
            .map_err(refused("KVM_SET_TSS_ADDR"))?;
        // Memory before the interrupt controllers: a slot waits for all changes to KVM's buses to be seen
        // (an SRCU grace period, six milliseconds of Linux 6.18's), and the controllers are such a change.
        for (slot, region) in (0..).zip(memory.iter()) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the region is a mapping of exactly this address and length, and `_memory` keeps it
            // mapped until after the VM's descriptor is closed.
            unsafe { fd.set_user_memory_region(slot) }
                .map_err(refused("KVM_SET_USER_MEMORY_REGION"))?;
        }
        for (slot, placed) in (memory.num_regions()..).zip(windows) {
            add_window(&fd, slot, placed)?;
        }
        fd.create_irq_chip()
            .map_err(refused("KVM_CREATE_IRQCHIP"))?;
        if pit {
            let config = kvm_pit_config {
                flags: KVM_PIT_SPEAKER_DUMMY,
                ..Default::default()
            };
            fd.create_pit2(config).map_err(refused("KVM_CREATE_PIT2"))?;
        }
        Ok(Self {
            fd,
            kvm,
            _memory: memory,
            _windows: windows.clone(),
        })
    }

    /// An edge-triggered line to `gsi`, injected by KVM (an irqfd).
    pub fn line(&self, gsi: u32) -> Result<Arc<dyn IrqLine>, KvmError> {
        let event = EventFd::new(EFD_NONBLOCK).map_err(KvmError::EventFd)?;
        self.fd
            .register_irqfd(&event, gsi)
            .map_err(refused("KVM_IRQFD"))?;
        Ok(Arc::new(event))
    }

    /// Turns 32-bit writes of `value` to guest physical `address` into `event` (an ioeventfd).
    pub fn doorbell(&self, address: u64, value: u32, event: &EventFd) -> Result<(), KvmError> {
        self.fd
            .register_ioevent(event, &IoEventAddress::Mmio(address), value)
            .map_err(refused("KVM_IOEVENTFD"))
    }

    /// A new vCPU with the local APIC id `id`.
    pub fn vcpu(&self, id: u8) -> Result<VcpuFd, KvmError> {
        self.fd
            .create_vcpu(id.into())
            .map_err(refused("KVM_CREATE_VCPU"))
    }

    /// What this KVM can show a guest of its processor. Asks about each of some 30 leaves, which takes
    /// longer than making a VM where the host is itself a virtual machine: there each CPUID is an exit.
    pub fn supported_cpuid(&self) -> Result<CpuId, KvmError> {
        self.kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(refused("KVM_GET_SUPPORTED_CPUID"))
    }
}

/// kvm-clock (KVM_GET_CLOCK): nanoseconds.
impl Clock for KvmVm {
    fn read(&self) -> Option<u64> {
        let clock = self.fd.get_clock();
        let clock = clock.inspect_err(|error| log::warn!("KVM_GET_CLOCK: {error}"));
        Some(clock.ok()?.clock)
    }

    fn set(&self, time: u64) {
        // Without flags: it goes on from there, however long the pause was.
        let clock = kvm_clock_data {
            clock: time,
            ..Default::default()
        };
        if let Err(error) = self.fd.set_clock(&clock) {
            log::warn!("the guest's clock jumps, KVM_SET_CLOCK: {error}");
        }
    }
}

/// Puts a file into the guest's address space, where the caller keeps it until after the VM's descriptor is
/// closed. Where the guest may not write it, a write is an MMIO exit to an address where nobody is, and thereby
/// forgotten, as a ROM's is.
fn add_window(fd: &VmFd, slot: usize, placed: &PlacedWindow) -> Result<(), KvmError> {
    let PlacedWindow { start, window } = placed;
    let region = kvm_userspace_memory_region {
        slot: u32::try_from(slot).unwrap_or(u32::MAX),
        flags: if window.is_read_only() {
            KVM_MEM_READONLY
        } else {
            0
        },
        guest_phys_addr: *start,
        memory_size: window.len(),
        userspace_addr: window.host_address(),
    };
    // SAFETY: the window is a mapping of exactly this address and length, and the caller keeps it mapped.
    unsafe { fd.set_user_memory_region(region) }
        .map_err(refused("KVM_SET_USER_MEMORY_REGION of a persistent memory"))
}

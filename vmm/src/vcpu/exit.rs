//! What the end of a KVM_RUN means. Runs on the vCPU's own thread.

use std::fmt;

use arch::x86_64::boot::{WarmBootFlag, read_warm_boot_flag};
use devices::bus::Bus;
use devices::mem::GuestMemory;
use kvm_bindings::{
    KVM_INTERNAL_ERROR_EMULATION, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET,
    KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress};

use super::count::ExitKind;
use crate::catalog::Windows;
use crate::error::VmError;
use crate::lifecycle::{ExitReason, Outcome};
use crate::windows::explain_fault;

/// The longest x86 instruction, in bytes.
const MAX_INSTRUCTION: usize = 15;

/// KVM met an instruction that it had to interpret and could not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmulationFailure {
    /// Where the instruction is, as the guest addresses it.
    pub rip: u64,
    /// Bytes from there on, as many as could be read, at most 15.
    pub bytes: Vec<u8>,
}

impl fmt::Display for EmulationFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KVM cannot emulate the instruction at {:#x}:", self.rip)?;
        self.bytes
            .iter()
            .try_for_each(|byte| write!(f, " {byte:02x}"))
    }
}

/// What one KVM_RUN led to.
#[derive(Debug)]
pub(crate) enum Next {
    /// The guest did something that was dealt with.
    Served(ExitKind),
    /// A signal, or KVM asked to be called again.
    Again,
    /// The VM is over.
    End(Outcome),
    /// KVM gave up inside the guest; the details are in the vCPU's `kvm_run` page.
    InternalError,
}

/// The address spaces that exits are routed to.
#[derive(Debug)]
pub(crate) struct Buses {
    /// Ports.
    pub pio: Bus,
    /// Guest physical addresses.
    pub mmio: Bus,
    /// Guest physical addresses where files are.
    pub windows: Windows,
}

/// Runs the guest until its next exit, and serves that.
pub(crate) fn run_once(vcpu: &mut VcpuFd, buses: &Buses, memory: &GuestMemory) -> Next {
    match vcpu.run() {
        Ok(exit) => serve(exit, buses, memory),
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Next::Again,
        Err(error) if error.errno() == libc::EFAULT => {
            let error = explain_fault(&buses.windows).unwrap_or(VmError::Run(error));
            Next::End(Err(error))
        }
        Err(error) => Next::End(Err(VmError::Run(error))),
    }
}

fn serve(exit: VcpuExit<'_>, buses: &Buses, memory: &GuestMemory) -> Next {
    match exit {
        VcpuExit::IoOut(port, data) => {
            buses.pio.write(port.into(), data);
            Next::Served(ExitKind::PortWrite)
        }
        VcpuExit::IoIn(port, data) => {
            buses.pio.read(port.into(), data);
            Next::Served(ExitKind::PortRead)
        }
        VcpuExit::MmioWrite(address, data) => {
            buses.mmio.write(address, data);
            Next::Served(ExitKind::MmioWrite)
        }
        VcpuExit::MmioRead(address, data) => {
            buses.mmio.read(address, data);
            Next::Served(ExitKind::MmioRead)
        }
        VcpuExit::Shutdown => Next::End(Ok(after_triple_fault(memory))),
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => {
            Next::End(Ok(ExitReason::PoweredOff))
        }
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _) => Next::End(Ok(after_reset(memory))),
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _) => Next::End(Ok(ExitReason::Panicked)),
        VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen => Next::Again,
        VcpuExit::FailEntry(reason, cpu) => Next::End(Err(VmError::Entry { reason, cpu })),
        VcpuExit::InternalError => Next::InternalError,
        other => Next::End(Err(VmError::UnexpectedExit(format!("{other:?}")))),
    }
}

/// An orderly request to reset: by a panic if Linux left its mark, else a reboot.
pub(crate) fn after_reset(memory: &GuestMemory) -> ExitReason {
    match read_warm_boot_flag(memory) {
        WarmBootFlag::Warm => ExitReason::Panicked,
        _ => ExitReason::Rebooted,
    }
}

/// Linux also reboots by triple fault (`reboot=t`), and then leaves its mark first; a fault without one
/// is a crash.
fn after_triple_fault(memory: &GuestMemory) -> ExitReason {
    match read_warm_boot_flag(memory) {
        WarmBootFlag::Warm => ExitReason::Panicked,
        WarmBootFlag::Cold => ExitReason::Rebooted,
        _ => ExitReason::TripleFault,
    }
}

/// Why KVM gave up, from the `kvm_run` page (Documentation/virt/kvm/api.rst,
/// KVM_EXIT_INTERNAL_ERROR) and from guest memory.
pub(crate) fn internal_error(vcpu: &mut VcpuFd, memory: &GuestMemory) -> VmError {
    // SAFETY: the last exit was KVM_EXIT_INTERNAL_ERROR, so this is the member KVM filled in; all of
    // its bytes are plain integers.
    let suberror = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror };
    if suberror != KVM_INTERNAL_ERROR_EMULATION {
        return VmError::Internal(suberror);
    }
    let rip = vcpu.get_regs().map_or(0, |regs| regs.rip);
    let bytes = (0..MAX_INSTRUCTION)
        .map_while(|offset| {
            let address = rip.checked_add(u64::try_from(offset).ok()?)?;
            let page = vcpu
                .translate_gva(address)
                .ok()
                .filter(|page| page.valid != 0)?;
            memory.read_obj(GuestAddress(page.physical_address)).ok()
        })
        .collect();
    VmError::Emulation(EmulationFailure { rip, bytes })
}

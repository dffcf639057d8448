//! Setting up vCPUs: what each shows of the processor, and the state the first one starts in.

use std::arch::x86_64::{__cpuid, CpuidResult};

use arch::kernel::Loaded;
use arch::x86_64::{cpuid, msr, regs};
use kvm_bindings::{CpuId, Msrs, kvm_cpuid_entry2};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno;

use crate::kvm::vm::{KvmError, KvmVm, refused};

/// What vCPUs can show of this host's processor: what KVM can, and its name.
pub(crate) fn processor(vm: &KvmVm) -> Result<Vec<kvm_cpuid_entry2>, KvmError> {
    let mut supported = vm.supported_cpuid()?.as_slice().to_vec();
    cpuid::set_brand(&mut supported, &host_brand());
    Ok(supported)
}

/// The processors of a machine in the making.
pub(crate) struct Cpus<'a> {
    /// What they can show.
    pub processor: &'a [kvm_cpuid_entry2],
    /// How many there are.
    pub count: u8,
    /// What the first one starts.
    pub loaded: &'a Loaded,
}

impl Cpus<'_> {
    /// Makes vCPUs ready to run: the first at the kernel's entry, the others waiting to be started.
    pub fn set_up(&self, vcpus: &[VcpuFd]) -> Result<(), KvmError> {
        for (id, vcpu) in (0..self.count).zip(vcpus) {
            let shown = cpuid::for_vcpu(self.processor, id, self.count);
            let shown = CpuId::from_entries(&shown).map_err(|_| too_many("KVM_SET_CPUID2"))?;
            vcpu.set_cpuid2(&shown).map_err(refused("KVM_SET_CPUID2"))?;
            set_msrs(vcpu)?;
            if id == 0 {
                self.start(vcpu)?;
            }
        }
        Ok(())
    }

    /// Puts the boot processor at the kernel's entry.
    fn start(&self, vcpu: &VcpuFd) -> Result<(), KvmError> {
        let base = vcpu.get_sregs().map_err(refused("KVM_GET_SREGS"))?;
        let special = regs::special(base, self.loaded);
        vcpu.set_sregs(&special).map_err(refused("KVM_SET_SREGS"))?;
        vcpu.set_regs(&regs::general(self.loaded))
            .map_err(refused("KVM_SET_REGS"))?;
        vcpu.set_fpu(&regs::fpu()).map_err(refused("KVM_SET_FPU"))?;
        let mut lapic = vcpu.get_lapic().map_err(refused("KVM_GET_LAPIC"))?;
        regs::lapic(&mut lapic);
        vcpu.set_lapic(&lapic).map_err(refused("KVM_SET_LAPIC"))
    }
}

/// KVM stops at the first register it refuses and says how many it took.
fn set_msrs(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let wanted = msr::boot_msrs();
    let list = Msrs::from_entries(&wanted).map_err(|_| too_many("KVM_SET_MSRS"))?;
    let taken = vcpu.set_msrs(&list).map_err(refused("KVM_SET_MSRS"))?;
    match wanted.get(taken) {
        None => Ok(()),
        Some(refused) => {
            log::debug!(
                "KVM refused MSR {:#x}; the guest sees KVM's own value",
                refused.index
            );
            Ok(())
        }
    }
}

fn too_many(call: &'static str) -> KvmError {
    KvmError::Call {
        call,
        source: errno::Error::new(libc::E2BIG),
    }
}

/// The host processor's name, which KVM leaves out (Intel SDM vol. 2A, CPUID, 0x8000_0002 to 4).
fn host_brand() -> [u8; 48] {
    let mut brand = [0; 48];
    for (leaf, text) in (0x8000_0002..).zip(brand.chunks_exact_mut(16)) {
        let CpuidResult { eax, ebx, ecx, edx } = __cpuid(leaf);
        for (word, bytes) in [eax, ebx, ecx, edx]
            .into_iter()
            .zip(text.chunks_exact_mut(4))
        {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }
    brand
}

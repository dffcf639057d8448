//! The model-specific registers of a vCPU at boot, the same for every vCPU.
//!
//! Only those whose reset value in KVM is not what an OS finds after firmware ran. The system call
//! registers (STAR, LSTAR, SYSENTER_*), PAT and the TSC already have the values that Linux expects or
//! overwrites before use; EFER, FS and GS base go with the segment registers. IA32_ARCH_CAPABILITIES
//! is left alone: KVM gives the host's, and some hosts refuse to have it set.

use kvm_bindings::kvm_msr_entry;

/// Intel SDM vol. 4, table 2-2.
const IA32_MISC_ENABLE: u32 = 0x1a0;
/// Fast string operations. Linux takes `rep movsb` for slow where it is off.
const FAST_STRINGS: u64 = 1 << 0;
/// Branch trace storage and PEBS are unavailable, as KVM has them at reset.
const BTS_UNAVAILABLE: u64 = 1 << 11;
const PEBS_UNAVAILABLE: u64 = 1 << 12;

/// Intel SDM vol. 3 §12.11.2.1.
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs are on, so that the default type holds.
const MTRR_ENABLE: u64 = 1 << 11;
/// All memory is write-back. With MTRRs off everything would be uncached, and Linux would turn off
/// PAT and complain.
const MTRR_WRITE_BACK: u64 = 6;

/// What to give `KVM_SET_MSRS` on each vCPU, after CPUID.
#[must_use]
pub fn boot_msrs() -> Vec<kvm_msr_entry> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    vec![
        entry(
            IA32_MISC_ENABLE,
            FAST_STRINGS | BTS_UNAVAILABLE | PEBS_UNAVAILABLE,
        ),
        entry(IA32_MTRR_DEF_TYPE, MTRR_ENABLE | MTRR_WRITE_BACK),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_write_back_and_strings_are_fast() {
        let value = |index| boot_msrs().iter().find(|m| m.index == index).unwrap().data;
        assert_eq!(value(IA32_MTRR_DEF_TYPE), 0x806);
        assert_eq!(value(IA32_MISC_ENABLE) & FAST_STRINGS, FAST_STRINGS);
    }

    #[test]
    fn arch_capabilities_is_left_to_kvm() {
        assert!(boot_msrs().iter().all(|m| m.index != 0x10a));
    }
}

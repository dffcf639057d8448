//! The registers of the boot processor at its first instruction, and its local APIC.
//!
//! Only the boot processor gets them. The others keep what `KVM_CREATE_VCPU` gave them and, with an
//! in-kernel local APIC, wait for the start-up IPI in `KVM_MP_STATE_UNINITIALIZED`; all they need is
//! CPUID and [`super::msr::boot_msrs`]. The guest programs its LINT pins itself.

use kvm_bindings::{kvm_dtable, kvm_fpu, kvm_lapic_state, kvm_regs, kvm_sregs};

use super::gdt::{CodeMode, GDT_LIMIT, Segments};
use super::layout;
use crate::kernel::{Entry, Loaded};

/// Bit 1 of RFLAGS is always set (SDM vol. 1 §3.4.3); interrupts are off, as both protocols ask.
const RFLAGS_RESERVED: u64 = 1 << 1;

/// Protected mode (SDM vol. 3 §2.5, like all of CR0, CR4 and EFER).
const CR0_PE: u64 = 1 << 0;
/// The x87 is a 387: reads as set on every CPU.
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// x87 control word after FNINIT (SDM vol. 1 §8.1.5): all exceptions masked, 64-bit precision.
const FCW_INIT: u16 = 0x37f;
/// MXCSR at reset (SDM vol. 1 §10.2.3): all exceptions masked.
const MXCSR_INIT: u32 = 0x1f80;

/// Local APIC register offsets (SDM vol. 3 table 11-1).
const APIC_LVT_LINT0: usize = 0x350;
const APIC_LVT_LINT1: usize = 0x360;
/// Delivery modes in a local vector table entry, which is unmasked (SDM vol. 3 figure 11-8).
const LVT_NMI: u32 = 4 << 8;
const LVT_EXTINT: u32 = 7 << 8;

/// The general registers: the entry point, and the pointer that the protocol hands over.
#[must_use]
pub fn general(loaded: &Loaded) -> kvm_regs {
    let common = kvm_regs {
        rflags: RFLAGS_RESERVED,
        ..Default::default()
    };
    match loaded.entry {
        Entry::Linux64 { rip } => kvm_regs {
            rip,
            rsi: layout::ZERO_PAGE,
            ..common
        },
        Entry::Pvh { rip } => kvm_regs {
            rip: rip.into(),
            rbx: layout::START_INFO,
            ..common
        },
    }
}

/// The segment and control registers, on top of those that `KVM_GET_SREGS` returned (`base` keeps
/// the local APIC's base address and whatever else the protocol says nothing about).
#[must_use]
pub fn special(base: kvm_sregs, loaded: &Loaded) -> kvm_sregs {
    let mode = match loaded.entry {
        Entry::Linux64 { .. } => CodeMode::Long,
        Entry::Pvh { .. } => CodeMode::Protected,
    };
    let Segments { code, data, tss } = Segments::flat(mode);
    let mut sregs = kvm_sregs {
        cs: code,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: tss,
        gdt: kvm_dtable {
            base: layout::GDT_START,
            limit: GDT_LIMIT,
            ..Default::default()
        },
        // No handlers: an exception before the guest's own IDT is a triple fault.
        idt: kvm_dtable::default(),
        cr0: CR0_PE | CR0_ET,
        cr3: 0,
        cr4: 0,
        efer: 0,
        ..base
    };
    if mode == CodeMode::Long {
        sregs.cr0 |= CR0_PG;
        sregs.cr3 = layout::PAGE_TABLES;
        sregs.cr4 |= CR4_PAE;
        sregs.efer |= EFER_LME | EFER_LMA;
    }
    sregs
}

/// The FPU as after FNINIT.
#[must_use]
pub fn fpu() -> kvm_fpu {
    kvm_fpu {
        fcw: FCW_INIT,
        mxcsr: MXCSR_INIT,
        ..Default::default()
    }
}

/// Wires the LINT pins of the boot processor's local APIC as PC firmware does: LINT0 takes the
/// interrupts of the PIC, LINT1 is the NMI.
pub fn lapic(state: &mut kvm_lapic_state) {
    set_apic_register(state, APIC_LVT_LINT0, LVT_EXTINT);
    set_apic_register(state, APIC_LVT_LINT1, LVT_NMI);
}

fn set_apic_register(state: &mut kvm_lapic_state, offset: usize, value: u32) {
    for (register, byte) in state.regs[offset..offset + 4]
        .iter_mut()
        .zip(value.to_le_bytes())
    {
        *register = byte.cast_signed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::KernelKind;

    fn loaded(entry: Entry) -> Loaded {
        Loaded {
            kind: KernelKind::Elf,
            entry,
            kernel: 0x10_0000..0x20_0000,
            initrd: None,
            setup_header: None,
        }
    }

    #[test]
    fn linux_starts_in_long_mode_with_the_zero_page() {
        let loaded = loaded(Entry::Linux64 { rip: 0x100_0200 });
        let regs = general(&loaded);
        assert_eq!((regs.rip, regs.rsi, regs.rflags), (0x100_0200, 0x7000, 2));
        let base = kvm_sregs {
            apic_base: 0xfee0_0900,
            cr8: 0,
            ..Default::default()
        };
        let sregs = special(base, &loaded);
        assert_eq!(
            (sregs.cr0, sregs.cr3, sregs.cr4),
            (0x8000_0011, 0x9000, 0x20)
        );
        assert_eq!(sregs.efer, 0x500);
        assert_eq!((sregs.cs.selector, sregs.cs.l, sregs.cs.db), (0x10, 1, 0));
        for data in [sregs.ds, sregs.es, sregs.ss] {
            assert_eq!((data.selector, data.type_, data.limit), (0x18, 3, u32::MAX));
        }
        assert_eq!((sregs.gdt.base, sregs.gdt.limit), (0x500, 47));
        assert_eq!(sregs.apic_base, base.apic_base);
    }

    #[test]
    fn pvh_starts_in_protected_mode_with_the_start_info() {
        let loaded = loaded(Entry::Pvh { rip: 0x100_0a30 });
        let regs = general(&loaded);
        assert_eq!((regs.rip, regs.rbx, regs.rflags), (0x100_0a30, 0x6000, 2));
        // Whatever was on before, paging and long mode are off.
        let base = kvm_sregs {
            cr0: 0x8000_0000,
            cr4: 0x20,
            efer: 0x500,
            ..Default::default()
        };
        let sregs = special(base, &loaded);
        assert_eq!((sregs.cr0, sregs.cr4, sregs.efer), (0x11, 0, 0));
        assert_eq!((sregs.cs.l, sregs.cs.db, sregs.cs.limit), (0, 1, u32::MAX));
        assert_eq!((sregs.tr.limit, sregs.tr.type_), (0x67, 0xb));
    }

    #[test]
    fn lint_pins_are_wired_and_the_rest_is_kept() {
        let mut state = kvm_lapic_state::default();
        state.regs.fill(0x11);
        lapic(&mut state);
        assert_eq!(state.regs[0x350..0x354], [0, 7, 0, 0]);
        assert_eq!(state.regs[0x360..0x364], [0, 4, 0, 0]);
        let others = (0..0x400).filter(|at| !matches!(at, 0x350..0x354 | 0x360..0x364));
        assert!(others.into_iter().all(|at| state.regs[at] == 0x11));
    }

    #[test]
    fn fpu_is_as_after_fninit() {
        assert_eq!((fpu().fcw, fpu().mxcsr), (0x37f, 0x1f80));
    }
}

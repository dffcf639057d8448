//! The segments of a vCPU at boot: as descriptors in the GDT and as loaded registers.
//!
//! Selectors are those of the Linux boot protocol (Documentation/arch/x86/boot.rst, "64-bit Boot
//! Protocol"): `__BOOT_CS` 0x10 and `__BOOT_DS` 0x18. PVH leaves selectors free and gets the same.
//! Descriptor format: Intel SDM vol. 3 §3.4.5.

use kvm_bindings::kvm_segment;

/// Selector of the code segment, Linux's `__BOOT_CS`.
const CODE_SELECTOR: u16 = 0x10;
/// Selector of the data segment, Linux's `__BOOT_DS`.
const DATA_SELECTOR: u16 = 0x18;
/// Selector of the task state segment, which VMX demands and nobody uses.
const TSS_SELECTOR: u16 = 0x20;

/// Execute, read, accessed (SDM vol. 3 table 3-1).
const TYPE_CODE: u8 = 0xb;
/// Read, write, accessed.
const TYPE_DATA: u8 = 0x3;
/// Busy TSS, of 64 bits in long mode and else of 32 (SDM vol. 3 table 3-2).
const TYPE_TSS_BUSY: u8 = 0xb;

/// Length of the table: two empty entries, code, data, and a TSS of two entries in long mode.
pub(super) const GDT_LEN: usize = 6 * 8;
/// Limit of the table, as the GDTR has it.
pub(super) const GDT_LIMIT: u16 = 6 * 8 - 1;

/// The segments of one boot protocol.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segments {
    pub code: kvm_segment,
    pub data: kvm_segment,
    pub tss: kvm_segment,
}

/// Whether the code segment is of long mode or of 32-bit protected mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CodeMode {
    Long,
    Protected,
}

impl Segments {
    /// Flat segments for code of the given mode.
    pub fn flat(mode: CodeMode) -> Self {
        let long = u8::from(mode == CodeMode::Long);
        let flat = kvm_segment {
            limit: u32::MAX,
            present: 1,
            s: 1,
            g: 1,
            ..Default::default()
        };
        Self {
            // L and D exclude each other.
            code: kvm_segment {
                selector: CODE_SELECTOR,
                type_: TYPE_CODE,
                l: long,
                db: 1 - long,
                ..flat
            },
            data: kvm_segment {
                selector: DATA_SELECTOR,
                type_: TYPE_DATA,
                db: 1,
                ..flat
            },
            // PVH asks for a limit of 0x67, the size of a TSS.
            tss: kvm_segment {
                selector: TSS_SELECTOR,
                type_: TYPE_TSS_BUSY,
                limit: 0x67,
                s: 0,
                g: 0,
                ..flat
            },
        }
    }

    /// The GDT that holds them.
    pub fn table(&self) -> [u8; GDT_LEN] {
        let mut table = [0; GDT_LEN];
        for segment in [&self.code, &self.data, &self.tss] {
            let at = usize::from(segment.selector);
            table[at..at + 8].copy_from_slice(&descriptor(segment).to_le_bytes());
        }
        table
    }
}

/// The descriptor of a segment whose base is below 4 GiB.
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = if segment.g == 1 {
        segment.limit >> 12
    } else {
        segment.limit
    };
    let (base, limit) = (segment.base, u64::from(limit));
    let flag = |value: u8, bit: u32| u64::from(value) << bit;
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | flag(segment.type_, 40)
        | flag(segment.s, 44)
        | flag(segment.dpl, 45)
        | flag(segment.present, 47)
        | (limit >> 16 & 0xf) << 48
        | flag(segment.avl, 52)
        | flag(segment.l, 53)
        | flag(segment.db, 54)
        | flag(segment.g, 55)
        | (base >> 24 & 0xff) << 56
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(table: &[u8], selector: u16) -> u64 {
        let at = usize::from(selector);
        u64::from_le_bytes(table[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn descriptors_are_those_of_the_linux_boot_protocol() {
        let table = Segments::flat(CodeMode::Long).table();
        assert_eq!(entry(&table, 0), 0);
        assert_eq!(entry(&table, 8), 0);
        assert_eq!(entry(&table, CODE_SELECTOR), 0x00af_9b00_0000_ffff);
        assert_eq!(entry(&table, DATA_SELECTOR), 0x00cf_9300_0000_ffff);
        assert_eq!(entry(&table, TSS_SELECTOR), 0x0000_8b00_0000_0067);
    }

    #[test]
    fn protected_mode_code_has_32_bits() {
        let table = Segments::flat(CodeMode::Protected).table();
        assert_eq!(entry(&table, CODE_SELECTOR), 0x00cf_9b00_0000_ffff);
    }

    #[test]
    fn limit_covers_the_table() {
        assert_eq!(usize::from(GDT_LIMIT) + 1, GDT_LEN);
    }
}

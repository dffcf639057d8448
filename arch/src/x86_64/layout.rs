//! The address map of an x86-64 machine: guest physical addresses, ports and interrupt lines.
//!
//! ```text
//! 0x0000_0472  BIOS warm-boot flag         0x000e_0000  ACPI tables (BIOS area)
//! 0x0000_0500  GDT                         0x0010_0000  RAM, up to 3 GiB
//! 0x0000_6000  PVH start info              0xc000_0000  hole: nothing
//! 0x0000_7000  zero page                   0xd000_0000  hole: virtio-mmio slots
//! 0x0000_9000  page tables                 0xfec0_0000  hole: IOAPIC, local APICs, KVM's pages
//! 0x0002_0000  kernel command line         0x1_0000_0000 RAM again
//! ```
//!
//! Everything below 1 MiB is read once, early in the guest's boot, and is free afterwards except for
//! the ACPI tables, which the memory map marks as reserved.

use crate::board::MmioSlot;

/// Start of the hole below 4 GiB that is kept free of RAM for memory-mapped devices.
pub const HOLE_START: u64 = 0xc000_0000;
/// End of the hole: RAM goes on at 4 GiB.
pub const HOLE_END: u64 = 0x1_0000_0000;

/// Conventional memory ends at 640 KiB; the video memory and ROMs of a PC follow.
pub const LOW_RAM_END: u64 = 0xa_0000;
/// Extended memory starts at 1 MiB. No kernel is loaded below it.
pub const HIGH_RAM_START: u64 = 0x10_0000;

/// Where a PC's BIOS notes whether a reset is a warm boot; 16 bits (BIOS data area 0040:0072).
/// Linux writes it in `native_machine_emergency_restart`, arch/x86/kernel/reboot.c.
pub const WARM_BOOT_FLAG: u64 = 0x472;
/// The value of a warm boot: Linux writes it for `reboot=warm`, and after a panic for
/// `reboot=panic_warm`.
pub const WARM_BOOT_MAGIC: u16 = 0x1234;
/// What this machine writes before boot. Linux overwrites it with 0 (cold) or
/// [`WARM_BOOT_MAGIC`]; when it still stands after a reset, the guest did not reboot but crash.
pub const WARM_BOOT_SENTINEL: u16 = 0xffff;

/// The GDT of the boot protocol, right after the BIOS data area.
pub const GDT_START: u64 = 0x500;
/// PVH `hvm_start_info`, with its memory map and module list in the same page.
pub const START_INFO: u64 = 0x6000;
/// The Linux zero page, `struct boot_params`.
pub const ZERO_PAGE: u64 = 0x7000;
/// Page tables of the 64-bit boot: PML4, PDPT, then up to four page directories.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel command line, NUL-terminated.
pub const CMDLINE: u64 = 0x2_0000;
/// Room for the command line with its NUL.
pub const CMDLINE_ROOM: u64 = 0x1_0000;

/// ACPI tables, RSDP first: in the range that an OS without other hints scans for it
/// (ACPI 6.5 §5.2.5.1).
pub const ACPI_START: u64 = 0xe_0000;
/// End of the ACPI area and of the BIOS area.
pub const ACPI_END: u64 = 0x10_0000;

/// First virtio-mmio window.
pub const VIRTIO_MMIO_START: u64 = 0xd000_0000;
/// Length of one virtio-mmio window: a page, so that a doorbell never shares one.
pub const VIRTIO_MMIO_LEN: u64 = 0x1000;
/// Most virtio-mmio devices of one machine. No hardware limit: the ACPI tables of all of them and of
/// 255 CPUs fit their area with room to spare.
pub const VIRTIO_MMIO_MAX: usize = 256;

/// I/O APIC registers (Intel 82093AA §3.0).
pub const IOAPIC_ADDR: u32 = 0xfec0_0000;
/// Pins of the I/O APIC: GSI 0 to 23 (KVM's `KVM_IOAPIC_NUM_PINS`).
pub const IOAPIC_PINS: u32 = 24;
/// Local APIC registers (Intel SDM vol. 3 §11.4.1).
pub const LAPIC_ADDR: u32 = 0xfee0_0000;

/// The page for `KVM_SET_IDENTITY_MAP_ADDR`. KVM needs it on Intel hosts for real-mode guests.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// The three pages for `KVM_SET_TSS_ADDR`, right after the identity map.
pub const KVM_TSS: u64 = 0xfffb_d000;
/// End of what KVM itself takes of guest memory.
pub const KVM_PAGES_END: u64 = 0xfffc_0000;

/// First port of COM1.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Ports of COM1.
pub const SERIAL_PORT_LEN: u16 = 8;
/// Interrupt line of COM1.
pub const SERIAL_GSI: u32 = 4;

/// First port of COM2, which has as many as COM1.
pub const SECOND_SERIAL_PORT: u16 = 0x2f8;
/// Interrupt line of COM2.
pub const SECOND_SERIAL_GSI: u32 = 3;

/// Data port of the keyboard controller.
pub const I8042_DATA_PORT: u16 = 0x60;
/// Command and status port of the keyboard controller; command 0xfe resets the machine.
pub const I8042_COMMAND_PORT: u16 = 0x64;

/// The pvpanic port, where QEMU has it too (QEMU docs/specs/pvpanic.rst).
pub const PVPANIC_PORT: u16 = 0x505;
/// Ports of pvpanic.
pub const PVPANIC_PORT_LEN: u16 = 1;

/// First port of the power block: the ACPI registers of a hardware-reduced machine
/// (ACPI 6.5 §4.8.3.7), one byte each.
pub const POWER_PORT: u16 = 0x600;
/// Ports of the power block.
pub const POWER_PORT_LEN: u16 = 4;
/// Offset of the sleep control register: bits 2 to 4 are the sleep type, bit 5 starts it.
pub const POWER_SLEEP_CONTROL: u16 = 0;
/// Offset of the sleep status register: bit 7, the wake status, is write-one-to-clear.
pub const POWER_SLEEP_STATUS: u16 = 1;
/// Offset of the reset register.
pub const POWER_RESET: u16 = 2;
/// What the guest writes to the reset register.
pub const POWER_RESET_VALUE: u8 = 1;
/// The sleep type of S5, soft off.
pub const POWER_SLEEP_TYPE_S5: u8 = 5;
/// What the guest writes to the sleep control register to power off: sleep type S5, sleep enable.
pub const POWER_OFF_VALUE: u8 = (POWER_SLEEP_TYPE_S5 << 2) | 1 << 5;

/// The line by which the machine tells that its power button was pressed: one edge per press. The
/// line of the SCI on a PC.
pub const POWER_BUTTON_GSI: u32 = 9;

/// Lines free for virtio-mmio devices. On a PC those below 16 that are left out belong to the
/// timer (0, 2), keyboard (1), serial ports (3, 4), clock (8), power button (9) and FPU (13).
/// The PIC of a guest without ACPI reaches those below 16 only: they come first.
const VIRTIO_GSIS: [u32; 16] = [5, 6, 7, 10, 11, 12, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23];

/// The interrupt line of the virtio-mmio slot `index`.
///
/// Lines are edge-triggered. From the 17th device on they are shared, which loses nothing: each edge
/// makes the guest look at every device on the line.
#[must_use]
pub fn virtio_gsi(index: usize) -> u32 {
    VIRTIO_GSIS[index % VIRTIO_GSIS.len()]
}

/// The window and line of the virtio-mmio slot `index`; none from [`VIRTIO_MMIO_MAX`] on.
#[must_use]
pub fn virtio_slot(index: usize) -> Option<MmioSlot> {
    (index < VIRTIO_MMIO_MAX).then(|| MmioSlot {
        base: VIRTIO_MMIO_START + index as u64 * VIRTIO_MMIO_LEN,
        len: VIRTIO_MMIO_LEN,
        gsi: virtio_gsi(index),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_disjoint_inside_the_hole_and_on_free_lines() {
        let slots: Vec<_> = (0..).map_while(virtio_slot).collect();
        assert_eq!(slots.len(), VIRTIO_MMIO_MAX);
        for pair in slots.windows(2) {
            assert_eq!(pair[0].base + pair[0].len, pair[1].base);
        }
        assert!(slots[0].base >= HOLE_START);
        let end = slots[VIRTIO_MMIO_MAX - 1].base + VIRTIO_MMIO_LEN;
        assert!(end <= u64::from(IOAPIC_ADDR));
        for slot in slots {
            assert!(slot.gsi < IOAPIC_PINS);
            let taken = [0, 1, 2, 8, SERIAL_GSI, SECOND_SERIAL_GSI, POWER_BUTTON_GSI];
            assert!(!taken.contains(&slot.gsi));
        }
    }

    #[test]
    fn first_lines_are_reachable_by_a_pic() {
        assert!((0..8).all(|index| virtio_gsi(index) < 16));
        assert_eq!(virtio_gsi(16), virtio_gsi(0));
    }

    #[test]
    fn powering_off_is_sleep_type_5_and_sleep_enable() {
        assert_eq!(POWER_OFF_VALUE, 0x34);
    }
}

//! What the boot protocol hands over, written into guest memory once, before the first instruction.
//!
//! Called by the thread that builds the VM, after [`crate::kernel::Checked::load`]. Guest memory is fresh: what
//! is not written is zero. Each page that is touched costs a fault, so few are.

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::acpi::{self, AcpiError};
use super::gdt::{CodeMode, Segments};
use super::{layout, paging, pvh, zero_page};
use crate::board::Board;
use crate::kernel::{Entry, Loaded};

/// Why the boot data could not be written.
#[derive(Debug, Error)]
pub enum BootError {
    /// Guest memory does not reach to where something belongs.
    #[error("cannot write the {what} to guest memory: {source}")]
    Write {
        /// What was written.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: GuestMemoryError,
    },
    /// The ACPI tables could not be made.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
}

impl BootError {
    /// For `map_err`: what was being written.
    pub(super) fn write(what: &'static str) -> impl FnOnce(GuestMemoryError) -> Self {
        move |source| Self::Write { what, source }
    }
}

/// Writes all that the kernel finds in memory at its entry: ACPI tables if the board has them, the
/// zero page or PVH start info, GDT, page tables, and the sentinel of [`read_warm_boot_flag`].
///
/// # Errors
/// When the memory has no RAM below 1 MiB, or a device has no place that ACPI can describe.
pub fn configure(
    memory: &GuestMemoryMmap<()>,
    board: &Board,
    loaded: &Loaded,
) -> Result<(), BootError> {
    let rsdp = if board.acpi {
        write_acpi(memory, board)?
    } else {
        0
    };
    let mode = match loaded.entry {
        Entry::Linux64 { .. } => {
            zero_page::write(memory, loaded, rsdp)?;
            paging::write_identity_map(memory, loaded.kernel.end)
                .map_err(BootError::write("page tables"))?;
            CodeMode::Long
        }
        Entry::Pvh { .. } => {
            pvh::write(memory, loaded, rsdp)?;
            CodeMode::Protected
        }
    };
    memory
        .write_slice(
            &Segments::flat(mode).table(),
            GuestAddress(layout::GDT_START),
        )
        .map_err(BootError::write("GDT"))?;
    memory
        .write_obj(
            layout::WARM_BOOT_SENTINEL,
            GuestAddress(layout::WARM_BOOT_FLAG),
        )
        .map_err(BootError::write("warm-boot flag"))
}

/// Writes the ACPI tables; returns the address of the RSDP.
fn write_acpi(memory: &GuestMemoryMmap<()>, board: &Board) -> Result<u64, BootError> {
    let tables = acpi::build(board)?;
    memory
        .write_slice(&tables, GuestAddress(layout::ACPI_START))
        .map_err(BootError::write("ACPI tables"))?;
    Ok(layout::ACPI_START)
}

/// How a guest left its memory when it reset the machine, by the BIOS warm-boot flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WarmBootFlag {
    /// As [`configure`] wrote it: no kernel that knows the flag asked for this reset. A triple fault.
    Untouched,
    /// 0: Linux reboots in good order, or after a panic without `reboot=panic_warm`.
    Cold,
    /// [`layout::WARM_BOOT_MAGIC`]: Linux reboots after a panic, with `reboot=panic_warm` (or in good
    /// order, with `reboot=warm`).
    Warm,
    /// Something else.
    Other(u16),
}

/// Reads the flag that [`configure`] set, after the guest reset the machine.
#[must_use]
pub fn read_warm_boot_flag(memory: &GuestMemoryMmap<()>) -> WarmBootFlag {
    // Guest memory has this page: configure() wrote there.
    let value = memory.read_obj(GuestAddress(layout::WARM_BOOT_FLAG));
    match value.unwrap_or(layout::WARM_BOOT_SENTINEL) {
        layout::WARM_BOOT_SENTINEL => WarmBootFlag::Untouched,
        0 => WarmBootFlag::Cold,
        layout::WARM_BOOT_MAGIC => WarmBootFlag::Warm,
        other => WarmBootFlag::Other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::KernelKind;
    use crate::x86_64::memory::ram_regions;
    use crate::x86_64::regs;

    fn memory() -> GuestMemoryMmap<()> {
        GuestMemoryMmap::from_ranges(&ram_regions(32 << 20)).unwrap()
    }

    fn loaded(entry: Entry) -> Loaded {
        Loaded {
            kind: KernelKind::Elf,
            entry,
            kernel: 0x10_0000..0x20_0000,
            initrd: None,
            setup_header: None,
        }
    }

    fn board(acpi: bool) -> Board {
        Board {
            cpus: 1,
            second_serial_port: false,
            acpi,
            virtio_mmio: Vec::new(),
        }
    }

    const LINUX: Entry = Entry::Linux64 { rip: 0x10_0200 };
    const PVH: Entry = Entry::Pvh { rip: 0x10_0000 };

    fn read<T: vm_memory::ByteValued>(memory: &GuestMemoryMmap<()>, address: u64) -> T {
        memory.read_obj(GuestAddress(address)).unwrap()
    }

    #[test]
    fn registers_point_at_what_was_written() {
        let memory = memory();
        let loaded = loaded(LINUX);
        configure(&memory, &board(true), &loaded).unwrap();
        let sregs = regs::special(Default::default(), &loaded);
        let code: u64 = read(&memory, sregs.gdt.base + u64::from(sregs.cs.selector));
        assert_eq!(code >> 53 & 1, 1, "a 64-bit code segment");
        let pml4: u64 = read(&memory, sregs.cr3);
        assert_eq!(pml4 & 1, 1);
        let zero_page = regs::general(&loaded).rsi;
        assert_eq!(read::<[u8; 4]>(&memory, zero_page + 0x202), *b"HdrS");
        let rsdp: u64 = read(&memory, zero_page + 0x70);
        assert_eq!(read::<[u8; 8]>(&memory, rsdp), *b"RSD PTR ");
    }

    #[test]
    fn pvh_gets_start_info_and_neither_zero_page_nor_page_tables() {
        let memory = memory();
        let loaded = loaded(PVH);
        configure(&memory, &board(true), &loaded).unwrap();
        let info = regs::general(&loaded).rbx;
        assert_eq!(read::<u32>(&memory, info), 0x336e_c578);
        let rsdp: u64 = read(&memory, info + 32);
        assert_eq!(read::<[u8; 8]>(&memory, rsdp), *b"RSD PTR ");
        assert_eq!(read::<u64>(&memory, layout::PAGE_TABLES), 0);
        assert_eq!(read::<[u8; 4]>(&memory, layout::ZERO_PAGE + 0x202), [0; 4]);
    }

    #[test]
    fn without_acpi_there_are_no_tables_and_no_pointer() {
        let memory = memory();
        configure(&memory, &board(false), &loaded(LINUX)).unwrap();
        assert_eq!(read::<u64>(&memory, layout::ZERO_PAGE + 0x70), 0);
        assert_eq!(read::<[u8; 8]>(&memory, layout::ACPI_START), [0; 8]);
    }

    #[test]
    fn warm_boot_flag_tells_how_the_guest_went() {
        let memory = memory();
        configure(&memory, &board(true), &loaded(LINUX)).unwrap();
        let flag = |value: u16| {
            memory
                .write_obj(value, GuestAddress(layout::WARM_BOOT_FLAG))
                .unwrap();
            read_warm_boot_flag(&memory)
        };
        assert_eq!(read_warm_boot_flag(&memory), WarmBootFlag::Untouched);
        assert_eq!(flag(0), WarmBootFlag::Cold);
        assert_eq!(flag(0x1234), WarmBootFlag::Warm);
        assert_eq!(flag(7), WarmBootFlag::Other(7));
    }

    #[test]
    fn memory_without_a_low_megabyte_is_an_error_that_says_what() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0x10_0000), 4096)]).unwrap();
        let error = configure(&memory, &board(true), &loaded(LINUX)).unwrap_err();
        assert!(error.to_string().contains("ACPI tables"), "{error}");
    }
}

//! What the boot protocol hands over, written into guest memory once, before the first instruction.
//!
//! Called by the thread that builds the VM, after [`crate::kernel::load`]. Guest memory is fresh: what
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

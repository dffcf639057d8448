//! ACPI tables: one blob that starts with the RSDP, for [`layout::ACPI_START`].
//!
//! RSDP, XSDT, FADT, MADT and DSDT of a hardware-reduced machine (ACPI 6.5 §4.1): no PM timer, no SCI,
//! no FACS, no PIC or PIT to speak of. Sleep, reset and the power button are the few registers of the
//! power block and one interrupt. All of them are made per boot, from the [`Board`]: a few kilobytes
//! and microseconds, written with one copy.

mod dsdt;
mod fixed;
#[cfg(test)]
mod tests;

use acpi_tables::Aml;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use thiserror::Error;

use super::layout;
use crate::board::Board;

/// Who made the tables. Six characters (ACPI 6.5 §5.2.6).
const OEM_ID: [u8; 6] = *b"MVM   ";
/// Which tables they are. Eight characters.
const OEM_TABLE_ID: [u8; 8] = *b"MVMBOARD";
/// Revision of the tables.
const OEM_REVISION: u32 = 1;
/// Tables start at multiples of this.
const ALIGN: usize = 16;

/// Why the tables could not be made.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum AcpiError {
    /// A device is where the tables cannot describe it.
    #[error("the device window at {base:#x} is not below 4 GiB, as ACPI wants it; move it there")]
    Window {
        /// Guest physical address of the window.
        base: u64,
    },
    /// There are more devices than the area has room for.
    #[error("the ACPI tables take {len} bytes of {room}; give the VM fewer devices")]
    TooLarge {
        /// Length of all tables in bytes.
        len: usize,
        /// Length of their area in bytes.
        room: u64,
    },
}

/// Makes the tables of a board, to be written to [`layout::ACPI_START`].
///
/// # Errors
/// When a device window is beyond 4 GiB, or there are too many devices for the area.
pub fn build(board: &Board) -> Result<Vec<u8>, AcpiError> {
    let mut blob = Blob::default();
    // The RSDP comes first and the XSDT second, but they point to what follows: leave room.
    let xsdt_at = Rsdp::len().next_multiple_of(ALIGN);
    let xsdt_len = 36 + 2 * size_of::<u64>();
    blob.bytes.resize(xsdt_at + xsdt_len, 0);

    let dsdt = blob.append(&dsdt::dsdt(board)?);
    let fadt = blob.append(&fixed::fadt(dsdt));
    let madt = blob.append(&fixed::madt(board.cpus));

    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    blob.overwrite(xsdt_at, &xsdt);
    blob.overwrite(0, &Rsdp::new(OEM_ID, layout::ACPI_START + xsdt_at as u64));

    let (len, room) = (blob.bytes.len(), layout::ACPI_END - layout::ACPI_START);
    if len as u64 > room {
        return Err(AcpiError::TooLarge { len, room });
    }
    Ok(blob.bytes)
}

/// Tables one after another, at known addresses.
#[derive(Debug, Default)]
struct Blob {
    bytes: Vec<u8>,
}

impl Blob {
    /// Appends a table; returns its guest physical address.
    fn append(&mut self, table: &dyn Aml) -> u64 {
        let at = self.bytes.len().next_multiple_of(ALIGN);
        self.bytes.resize(at, 0);
        table.to_aml_bytes(&mut self.bytes);
        layout::ACPI_START + at as u64
    }

    /// Writes a table into room that was left for it.
    fn overwrite(&mut self, at: usize, table: &dyn Aml) {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        self.bytes[at..at + bytes.len()].copy_from_slice(&bytes);
    }
}

/// A table with the common header and the given body.
fn sdt(signature: [u8; 4], revision: u8, body: &[u8]) -> Sdt {
    const HEADER_LEN: u32 = 36;
    let mut table = Sdt::new(
        signature,
        HEADER_LEN,
        revision,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    table.append_slice(body);
    table
}

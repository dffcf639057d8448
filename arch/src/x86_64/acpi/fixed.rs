//! The tables of fixed format: FADT (ACPI 6.5 §5.2.9) and MADT (§5.2.12).

use acpi_tables::Aml;
use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::sdt::Sdt;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, sdt};
use crate::x86_64::layout;

/// IA-PC boot architecture flags (ACPI 6.5 §5.2.9.3). There is a device on an ISA address that the OS
/// uses: the serial port. Not set is bit 1: there is no keyboard controller to look for, though one
/// of its commands resets the machine for kernels that try it without asking.
const LEGACY_DEVICES: u16 = 1 << 0;
/// No VGA: the OS must not look for one.
const VGA_NOT_PRESENT: u16 = 1 << 2;
/// No CMOS clock: kvm-clock tells the time.
const CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;

/// Revision of the MADT since ACPI 6.3.
const MADT_REVISION: u8 = 5;

/// The FADT: hardware-reduced, with its three registers in the power block.
pub(super) fn fadt(dsdt: u64) -> FADT {
    // Power and sleep button flags mean that there are no fixed ones; they say nothing of devices.
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = (LEGACY_DEVICES | VGA_NOT_PRESENT | CMOS_RTC_NOT_PRESENT).into();
    fadt.reset_reg = port(layout::POWER_RESET);
    fadt.reset_value = layout::POWER_RESET_VALUE;
    fadt.sleep_control_reg = port(layout::POWER_SLEEP_CONTROL);
    fadt.sleep_status_reg = port(layout::POWER_SLEEP_STATUS);
    fadt.finalize()
}

/// A register of one byte in the power block.
fn port(offset: u16) -> GAS {
    let address = u64::from(layout::POWER_PORT + offset);
    GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        address,
    )
}

/// The MADT: a local APIC per CPU, the I/O APIC, and the NMI pin.
///
/// There are no interrupt source overrides: without a PIT no line is wired otherwise than its number
/// says, and the devices state polarity and trigger themselves.
pub(super) fn madt(cpus: u8) -> Sdt {
    let mut body = Vec::with_capacity(32 + 8 * usize::from(cpus));
    body.extend_from_slice(&layout::LAPIC_ADDR.to_le_bytes());
    // Flags: no PC-AT compatible PICs that would have to be masked.
    body.extend_from_slice(&0u32.to_le_bytes());
    for cpu in 0..cpus {
        ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled).to_aml_bytes(&mut body);
    }
    IoApic::new(0, layout::IOAPIC_ADDR, 0).to_aml_bytes(&mut body);
    body.extend_from_slice(&LAPIC_NMI);
    sdt(*b"APIC", MADT_REVISION, &body)
}

/// Local APIC NMI structure (ACPI 6.5 §5.2.12.7): type 4, length 6, all processors, polarity and
/// trigger of the bus (2 bytes), LINT1.
const LAPIC_NMI: [u8; 6] = [4, 6, 0xff, 0, 0, 1];

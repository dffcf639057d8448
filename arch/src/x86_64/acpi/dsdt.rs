//! The DSDT: the devices that an OS cannot find by itself, in AML (ACPI 6.5 §5.2.11.1, §20).
//!
//! | name | \_HID | what | driver in Linux |
//! |---|---|---|---|
//! | `C000`… | ACPI0007 | CPUs | processor |
//! | `COM1`, `COM2` | PNP0501 | serial ports | 8250_pnp |
//! | `V000`… | LNRO0005 | virtio-mmio | virtio_mmio |
//! | `PEVT` | QEMU0001 | pvpanic | pvpanic-mmio |
//! | `PWRB` | PNP0C0C | power button | button |
//! | `GED_` | ACPI0013 | its interrupt | ACPI core |

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Method, Name, Notify, Package, Path,
    ResourceTemplate, Scope,
};
use acpi_tables::sdt::Sdt;

use super::{AcpiError, sdt};
use crate::board::{Board, MmioSlot};
use crate::x86_64::layout;

/// From revision 2 on integers have 64 bits (ACPI 6.5 §20.2.1).
const DSDT_REVISION: u8 = 2;
/// The notification of a pressed power button (ACPI 6.5 §4.8.3.3.1.2, S0 Power Button Pressed).
const BUTTON_PRESSED: u8 = 0x80;
/// `_STA`: present, enabled, shown, working (ACPI 6.5 §6.3.7).
const STA_WORKING: u8 = 0xf;

/// The table.
pub(super) fn dsdt(board: &Board) -> Result<Sdt, AcpiError> {
    let mut devices = Vec::with_capacity(1024);
    for cpu in 0..board.cpus {
        processor(cpu, &mut devices);
    }
    serial_port(1, layout::SERIAL_PORT, layout::SERIAL_GSI, &mut devices);
    if board.second_serial_port {
        let (port, gsi) = (layout::SECOND_SERIAL_PORT, layout::SECOND_SERIAL_GSI);
        serial_port(2, port, gsi, &mut devices);
    }
    for (index, slot) in board.virtio_mmio.iter().enumerate() {
        virtio_mmio(index, slot, &mut devices)?;
    }
    pvpanic(&mut devices);
    power_button(&mut devices);

    let mut body = soft_off();
    body.append(&mut Scope::raw(Path::new("\\_SB_"), devices));
    Ok(sdt(*b"DSDT", DSDT_REVISION, &body))
}

/// `\_S5`: the sleep type that the OS writes to the sleep control register to power off
/// (ACPI 6.5 §7.4.2). The other elements are of machines with PM1 registers.
fn soft_off() -> Vec<u8> {
    let package = Package::new(vec![&layout::POWER_SLEEP_TYPE_S5, &0u8, &0u8, &0u8]);
    let mut bytes = Vec::new();
    Name::new(Path::new("_S5_"), &package).to_aml_bytes(&mut bytes);
    bytes
}

/// "Each processor in the system must be declared in the ACPI namespace" (ACPI 6.5 §8.4). Its `_UID`
/// is that of its local APIC in the MADT.
fn processor(cpu: u8, out: &mut Vec<u8>) {
    Device::new(
        Path::new(&format!("C{cpu:03X}")),
        vec![
            &Name::new(Path::new("_HID"), &"ACPI0007"),
            &Name::new(Path::new("_UID"), &cpu),
        ],
    )
    .to_aml_bytes(out);
}

fn serial_port(number: u8, port: u16, gsi: u32, out: &mut Vec<u8>) {
    let len = u8::try_from(layout::SERIAL_PORT_LEN).unwrap_or(u8::MAX);
    Device::new(
        Path::new(&format!("COM{number}")),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &number),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&IO::new(port, port, 1, len), &edge(gsi, false)]),
            ),
        ],
    )
    .to_aml_bytes(out);
}

fn virtio_mmio(index: usize, slot: &MmioSlot, out: &mut Vec<u8>) -> Result<(), AcpiError> {
    let window = AcpiError::Window { base: slot.base };
    let (Ok(base), Ok(len)) = (u32::try_from(slot.base), u32::try_from(slot.len)) else {
        return Err(window);
    };
    base.checked_add(len).ok_or(window)?;
    // Names have four characters: 4096 devices and no more, but the area holds far fewer.
    Device::new(
        Path::new(&format!("V{:03X}", index & 0xfff)),
        vec![
            &Name::new(Path::new("_HID"), &"LNRO0005"),
            &Name::new(Path::new("_UID"), &index),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![
                    &Memory32Fixed::new(true, base, len),
                    &edge(slot.gsi, true),
                ]),
            ),
        ],
    )
    .to_aml_bytes(out);
    Ok(())
}

/// QEMU docs/specs/pvpanic.rst, "ACPI Interface". The guest writes to the port itself, so the methods
/// of QEMU's tables for it are left out.
fn pvpanic(out: &mut Vec<u8>) {
    let len = u8::try_from(layout::PVPANIC_PORT_LEN).unwrap_or(u8::MAX);
    Device::new(
        Path::new("PEVT"),
        vec![
            &Name::new(Path::new("_HID"), &"QEMU0001"),
            &Name::new(Path::new("_STA"), &STA_WORKING),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&IO::new(
                    layout::PVPANIC_PORT,
                    layout::PVPANIC_PORT,
                    1,
                    len,
                )]),
            ),
        ],
    )
    .to_aml_bytes(out);
}

/// The power button (ACPI 6.5 §4.8.2.2.1.2), and the generic event device whose interrupt it is
/// (§5.6.9). The line has one source and is edge-triggered, so that nothing needs to be asked or
/// acknowledged: an edge is a press.
fn power_button(out: &mut Vec<u8>) {
    let button = Path::new("PWRB");
    Device::new(
        Path::new("PWRB"),
        vec![&Name::new(Path::new("_HID"), &EISAName::new("PNP0C0C"))],
    )
    .to_aml_bytes(out);
    Device::new(
        Path::new("GED_"),
        vec![
            &Name::new(Path::new("_HID"), &"ACPI0013"),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&edge(layout::POWER_BUTTON_GSI, false)]),
            ),
            &Method::new(
                Path::new("_EVT"),
                1,
                true,
                vec![&Notify::new(&button, &BUTTON_PRESSED)],
            ),
        ],
    )
    .to_aml_bytes(out);
}

/// An edge-triggered line, active high.
fn edge(gsi: u32, shared: bool) -> Interrupt {
    Interrupt::new(true, true, false, shared, gsi)
}

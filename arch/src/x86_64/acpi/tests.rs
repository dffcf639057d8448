//! The tables as an OS walks them: from the RSDP on, by address, with every length and checksum.

use super::*;
use crate::board::MmioSlot;

fn board(cpus: u8, devices: usize) -> Board {
    let virtio_mmio = (0..devices).map_while(layout::virtio_slot).collect();
    Board {
        cpus,
        second_serial_port: false,
        acpi: true,
        virtio_mmio,
    }
}

/// Guest physical memory from [`layout::ACPI_START`] on.
struct Area(Vec<u8>);

impl Area {
    fn new(board: &Board) -> Self {
        Self(build(board).unwrap())
    }

    fn bytes(&self, address: u64, len: usize) -> &[u8] {
        let at = usize::try_from(address - layout::ACPI_START).unwrap();
        &self.0[at..at + len]
    }

    fn u64(&self, address: u64) -> u64 {
        u64::from_le_bytes(self.bytes(address, 8).try_into().unwrap())
    }

    /// A table by its header, whose checksum must be right.
    fn table(&self, address: u64, signature: &[u8; 4]) -> &[u8] {
        let header = self.bytes(address, 36);
        assert_eq!(&header[..4], signature);
        let len = u32::from_le_bytes(header[4..8].try_into().unwrap());
        let table = self.bytes(address, usize::try_from(len).unwrap());
        assert_eq!(
            sum(table),
            0,
            "checksum of {}",
            String::from_utf8_lossy(signature)
        );
        table
    }

    fn xsdt(&self) -> Vec<u64> {
        let table = self.table(self.u64(layout::ACPI_START + 24), b"XSDT");
        table[36..]
            .chunks(8)
            .map(|entry| u64::from_le_bytes(entry.try_into().unwrap()))
            .collect()
    }

    fn fadt(&self) -> &[u8] {
        self.table(self.xsdt()[0], b"FACP")
    }

    fn madt(&self) -> &[u8] {
        self.table(self.xsdt()[1], b"APIC")
    }

    fn dsdt(&self) -> &[u8] {
        let address = u64::from_le_bytes(self.fadt()[140..148].try_into().unwrap());
        self.table(address, b"DSDT")
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

#[test]
fn rsdp_is_found_by_its_signature_and_both_checksums() {
    let area = Area::new(&board(1, 0));
    assert_eq!(layout::ACPI_START % 16, 0, "the scan goes by 16 bytes");
    assert_eq!(area.bytes(layout::ACPI_START, 8), b"RSD PTR ");
    assert_eq!(sum(area.bytes(layout::ACPI_START, 20)), 0);
    assert_eq!(sum(area.bytes(layout::ACPI_START, 36)), 0);
    assert_eq!(area.xsdt().len(), 2);
}

/// Offsets are those of ACPI 6.5 table 5.9, on purpose not the struct's.
#[test]
fn fadt_is_hardware_reduced_with_registers_in_the_power_block() {
    let area = Area::new(&board(1, 0));
    let fadt = area.fadt();
    let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
    for bit in [4, 5, 10, 12, 20] {
        assert_eq!(flags >> bit & 1, 1, "flag {bit}");
    }
    assert_eq!(fadt[109], 0b10_0101, "boot architecture");
    let io_byte = |offset: u16| {
        let [low, high] = (layout::POWER_PORT + offset).to_le_bytes();
        [1, 8, 0, 1, low, high, 0, 0, 0, 0, 0, 0]
    };
    assert_eq!(fadt[116..128], io_byte(layout::POWER_RESET));
    assert_eq!(fadt[128], layout::POWER_RESET_VALUE);
    assert_eq!(fadt[244..256], io_byte(layout::POWER_SLEEP_CONTROL));
    assert_eq!(fadt[256..268], io_byte(layout::POWER_SLEEP_STATUS));
    // No event and control blocks of a PC.
    assert!(
        fadt[56..88]
            .iter()
            .chain(&fadt[148..244])
            .all(|&byte| byte == 0)
    );
}

#[test]
fn madt_lists_every_cpu_the_ioapic_and_the_nmi() {
    for cpus in [1, 2, 4, 255] {
        let area = Area::new(&board(cpus, 0));
        let madt = area.madt();
        assert_eq!(madt[36..40], layout::LAPIC_ADDR.to_le_bytes());
        let mut rest = &madt[44..];
        for cpu in 0..cpus {
            assert_eq!(rest[..8], [0, 8, cpu, cpu, 1, 0, 0, 0]);
            rest = &rest[8..];
        }
        assert_eq!(rest[..4], [1, 12, 0, 0]);
        assert_eq!(rest[4..8], layout::IOAPIC_ADDR.to_le_bytes());
        assert_eq!(rest[8..12], [0; 4], "first GSI");
        assert_eq!(rest[12..], [4, 6, 0xff, 0, 0, 1]);
    }
}

#[test]
fn dsdt_names_every_device_with_its_window_and_line() {
    let area = Area::new(&board(2, 3));
    let dsdt = area.dsdt();
    assert_eq!(dsdt[8], 2, "revision");
    for name in [
        "C000", "C001", "COM1", "V000", "V001", "V002", "PEVT", "PWRB", "GED_",
    ] {
        assert!(contains(dsdt, name.as_bytes()), "{name}");
    }
    for name in ["C002", "V003", "COM2"] {
        assert!(!contains(dsdt, name.as_bytes()), "{name}");
    }
    let two_ports = Area::new(&Board {
        second_serial_port: true,
        ..board(2, 3)
    });
    assert!(contains(two_ports.dsdt(), b"COM2"));
    for index in 0..3 {
        let slot = layout::virtio_slot(index).unwrap();
        // Memory32Fixed and Interrupt descriptors (ACPI 6.5 §6.4.3.4, §6.4.3.6), one after the other.
        let mut resources = vec![0x86, 9, 0, 1];
        resources.extend(u32::try_from(slot.base).unwrap().to_le_bytes());
        resources.extend(u32::try_from(slot.len).unwrap().to_le_bytes());
        resources.extend([0x89, 6, 0, 0b1011, 1]);
        resources.extend(slot.gsi.to_le_bytes());
        assert!(contains(dsdt, &resources), "device {index}");
    }
}

#[test]
fn s5_has_the_sleep_type_of_the_power_block() {
    let area = Area::new(&board(1, 0));
    let package = [
        0x08,
        b'_',
        b'S',
        b'5',
        b'_',
        0x12,
        7,
        4,
        0x0a,
        layout::POWER_SLEEP_TYPE_S5,
    ];
    assert!(contains(area.dsdt(), &package));
}

#[test]
fn the_largest_machine_fits_with_room_to_spare() {
    let tables = build(&board(u8::MAX, layout::VIRTIO_MMIO_MAX)).unwrap();
    let room = layout::ACPI_END - layout::ACPI_START;
    assert!((tables.len() as u64) < room / 2, "{} bytes", tables.len());
}

#[test]
fn what_cannot_be_described_is_an_error() {
    let mut high = board(1, 0);
    high.virtio_mmio = vec![MmioSlot {
        base: 0x1_0000_0000,
        len: 0x1000,
        gsi: 5,
    }];
    assert_eq!(
        build(&high),
        Err(AcpiError::Window {
            base: 0x1_0000_0000
        })
    );
    high.virtio_mmio[0] = MmioSlot {
        base: 0xffff_f800,
        len: 0x1000,
        gsi: 5,
    };
    assert_eq!(build(&high), Err(AcpiError::Window { base: 0xffff_f800 }));

    let mut many = board(1, 0);
    many.virtio_mmio = vec![layout::virtio_slot(0).unwrap(); 5000];
    assert!(matches!(build(&many), Err(AcpiError::TooLarge { .. })));
}

//! The inventory of a machine: what its ACPI tables are built from.
//!
//! Owned by the VMM, which fills it while it plugs devices and hands it to the boot code once.
//! Devices that every machine has (serial port, power block, pvpanic, interrupt controllers) are not
//! listed: their places are constants of [`crate::x86_64::layout`].

/// What a machine is made of, beyond the devices that every machine has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Board {
    /// Number of vCPUs; APIC ids are 0 up to this number.
    pub cpus: u8,
    /// Whether the guest gets ACPI tables.
    pub acpi: bool,
    /// Whether there is a second serial port, COM2.
    pub second_serial_port: bool,
    /// The virtio-mmio devices, in the order in which the guest should name them.
    pub virtio_mmio: Vec<MmioSlot>,
}

/// The window and interrupt of one memory-mapped device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmioSlot {
    /// Guest physical address of the first register.
    pub base: u64,
    /// Length of the window in bytes.
    pub len: u64,
    /// Interrupt line: edge-triggered, active high, possibly shared.
    pub gsi: u32,
}

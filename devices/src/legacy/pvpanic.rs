//! The ISA pvpanic device: one port by which a guest's kernel says that it has panicked.
//!
//! QEMU, docs/specs/pvpanic.rst. A guest finds it through ACPI (`QEMU0001`). On the bus, called by vCPU
//! threads; it has no state.

use std::sync::Arc;

use bitflags::bitflags;

use super::{MachineEvent, MachineEvents};
use crate::bus::BusDevice;

/// The usual port (QEMU pvpanic specification, ISA interface).
pub const PORT: u64 = 0x505;
/// Length in ports.
pub const LEN: u64 = 1;

bitflags! {
    /// QEMU pvpanic specification, bit definition: what a guest reports, and in a read, what it may.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Report: u8 {
        /// A panic that the host should deal with.
        const PANICKED = 1 << 0;
        /// A panic that the guest deals with itself, in its crash kernel.
        const CRASH_LOADED = 1 << 1;
    }
}

/// The device on a bus. Only byte accesses are defined: wider reads give ones, wider writes are ignored.
#[derive(Debug)]
pub struct PvPanic {
    events: Arc<dyn MachineEvents>,
}

impl PvPanic {
    /// A device that tells `events` of [`MachineEvent::Panicked`] and [`MachineEvent::CrashLoaded`].
    #[must_use]
    pub fn new(events: Arc<dyn MachineEvents>) -> Self {
        Self { events }
    }
}

impl BusDevice for PvPanic {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let ([byte], 0) = (data, offset) {
            *byte = Report::all().bits();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (&[value], 0) = (data, offset) else {
            return;
        };
        // Bits the device does not know are ignored. A panic outweighs what the crash kernel may do.
        let report = Report::from_bits_truncate(value);
        if report.contains(Report::PANICKED) {
            self.events.notify(MachineEvent::Panicked);
        } else if report.contains(Report::CRASH_LOADED) {
            self.events.notify(MachineEvent::CrashLoaded);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Heard;
    use super::*;

    #[test]
    fn offers_both_events() {
        let device = PvPanic::new(Arc::new(Heard::default()));
        let mut data = [0xff];
        device.read(0, &mut data);
        assert_eq!(data, [3]);
        let mut wide = [0xff; 4];
        device.read(0, &mut wide);
        assert_eq!(wide, [0xff; 4]);
    }

    #[test]
    fn reports_what_is_written() {
        let heard = Arc::new(Heard::default());
        let device = PvPanic::new(heard.clone());
        for (value, expected) in [
            (0, None),
            (1, Some(MachineEvent::Panicked)),
            (2, Some(MachineEvent::CrashLoaded)),
            (3, Some(MachineEvent::Panicked)),
            (4, None),
            (0xfc, None),
            (0xff, Some(MachineEvent::Panicked)),
        ] {
            device.write(0, &[value]);
            assert_eq!(heard.take(), Vec::from_iter(expected), "{value:#x}");
        }
        device.write(0, &[1, 0]);
        device.write(0, &[]);
        assert_eq!(heard.take(), []);
    }
}

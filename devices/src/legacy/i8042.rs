//! The keyboard controller's one part that a machine without a keyboard needs: reset by command 0xFE.
//!
//! IBM PC/AT Technical Reference, "Keyboard Controller": the status and command register is port 0x64,
//! the data register port 0x60. Linux resets through it with `reboot=k`, and as a fallback. On the bus,
//! called by vCPU threads.
//!
//! There is no controller beyond that, and a driver that probes for one should learn so at once. A port
//! that nothing answers reads as ones: output buffer full, for ever. Linux drains 16 bytes and gives up
//! within a millisecond, where an idle status (zero) would let it send commands and wait half a second
//! for each answer. The one bit that must differ is "input buffer full": code about to reset waits for
//! it to clear.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use vm_superio::{I8042Device, Trigger};

use super::{MachineEvent, MachineEvents};
use crate::bus::BusDevice;

/// Where the block starts on a PC: the data register's port.
pub const BASE: u64 = 0x60;
/// Length of the block: ports 0x60 to 0x64. The ones between its two registers belong to others and are
/// left alone (reads give ones).
pub const LEN: u64 = 5;

/// Offset of the status (read) and command (write) register.
const STATUS: u64 = 4;

/// PC/AT status register, bit 1: the controller has not yet taken the last command.
const INPUT_BUFFER_FULL: u8 = 1 << 1;

/// What the chip pulls at the reset command.
struct ResetPin(Arc<dyn MachineEvents>);

impl Trigger for ResetPin {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.notify(MachineEvent::Reset);
        Ok(())
    }
}

/// The controller on a bus. Only byte accesses are defined: wider reads give ones, wider writes are
/// ignored.
pub struct I8042 {
    /// Shared between the vCPU threads.
    chip: Mutex<I8042Device<ResetPin>>,
}

impl I8042 {
    /// A controller that tells `events` of [`MachineEvent::Reset`].
    #[must_use]
    pub fn new(events: Arc<dyn MachineEvents>) -> Self {
        Self {
            chip: Mutex::new(I8042Device::new(ResetPin(events))),
        }
    }
}

impl fmt::Debug for I8042 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("I8042").finish_non_exhaustive()
    }
}

impl BusDevice for I8042 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // Everything but the status reads as the ones that are there already.
        if let ([byte], STATUS) = (data, offset) {
            *byte = !INPUT_BUFFER_FULL;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (&[value], Ok(offset)) = (data, u8::try_from(offset)) else {
            return;
        };
        let Ok(()) = self
            .chip
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(offset, value);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Heard;
    use super::*;

    fn controller() -> (I8042, Arc<Heard>) {
        let heard = Arc::new(Heard::default());
        (I8042::new(heard.clone()), heard)
    }

    #[test]
    fn command_0xfe_resets() {
        let (controller, heard) = controller();
        controller.write(STATUS, &[0xfe]);
        assert_eq!(heard.take(), [MachineEvent::Reset]);
    }

    #[test]
    fn nothing_else_resets() {
        let (controller, heard) = controller();
        for value in (0..=u8::MAX).filter(|value| *value != 0xfe) {
            controller.write(STATUS, &[value]);
        }
        for offset in [0, 1, 2, 3, LEN, 0x104, u64::MAX] {
            controller.write(offset, &[0xfe]);
        }
        controller.write(STATUS, &[0xfe, 0xfe]);
        controller.write(STATUS, &[]);
        assert_eq!(heard.take(), []);
    }

    #[test]
    fn it_takes_commands_and_looks_absent() {
        let (controller, _) = controller();
        let read = |offset| {
            let mut data = [0xff];
            controller.read(offset, &mut data);
            data[0]
        };
        assert_eq!(read(STATUS) & INPUT_BUFFER_FULL, 0);
        for _ in 0..100 {
            assert_eq!(read(STATUS) & 1, 1, "the output buffer never drains");
            assert_eq!(read(0), 0xff);
        }
        assert_eq!(read(1), 0xff, "port 0x61 is not ours");
        let mut wide = [0xff; 2];
        controller.read(STATUS, &mut wide);
        assert_eq!(wide, [0xff; 2]);
    }
}

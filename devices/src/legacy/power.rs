//! Power: the sleep and reset registers of hardware-reduced ACPI, and the power button.
//!
//! ACPI 6.5 §4.8.3.6 (reset register) and §4.8.3.7 (sleep control and status registers), laid out as
//! three byte-wide registers in a row. The FADT tells the guest where they are. The one sleeping state
//! is S5, soft off.
//!
//! [`PowerBlock`] is on the bus and called by vCPU threads; [`PowerButton`] belongs to the VMM, which
//! presses it from any thread.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::{MachineEvent, MachineEvents};
use crate::bus::BusDevice;
use crate::irq::IrqLine;

/// Offset of the SLEEP_CONTROL register.
pub const SLEEP_CONTROL: u64 = 0;
/// Offset of the SLEEP_STATUS register.
pub const SLEEP_STATUS: u64 = 1;
/// Offset of the reset register.
pub const RESET: u64 = 2;
/// Length of the register block in bytes.
pub const LEN: u64 = 3;

/// The SLP_TYPx value of S5; the DSDT's `\_S5` package gives the same.
pub const SLP_TYP_S5: u8 = 5;
/// The value that resets the machine when written to [`RESET`] (the FADT's RESET_VALUE).
pub const RESET_VALUE: u8 = 1;

/// ACPI 6.5 table 4.20, SLEEP_CONTROL: SLP_TYPx is bits 2 to 4.
const SLP_TYP_SHIFT: u8 = 2;
const SLP_TYP_MASK: u8 = 0b111;
/// ACPI 6.5 table 4.20, SLEEP_CONTROL: SLP_EN, write only.
const SLP_EN: u8 = 1 << 5;
/// ACPI 6.5 table 4.21, SLEEP_STATUS: WAK_STS, cleared by writing a one.
const WAK_STS: u8 = 1 << 7;

/// The registers.
#[derive(Debug, Default)]
struct Registers {
    slp_typ: u8,
    wak_sts: bool,
}

impl Registers {
    fn read(&self, offset: u64) -> Option<u8> {
        match offset {
            SLEEP_CONTROL => Some(self.slp_typ << SLP_TYP_SHIFT),
            SLEEP_STATUS => Some(if self.wak_sts { WAK_STS } else { 0 }),
            RESET => Some(0),
            _ => None,
        }
    }

    fn write(&mut self, offset: u64, value: u8) -> Option<MachineEvent> {
        match offset {
            SLEEP_CONTROL => {
                self.slp_typ = value >> SLP_TYP_SHIFT & SLP_TYP_MASK;
                if value & SLP_EN == 0 {
                    return None;
                }
                if self.slp_typ == SLP_TYP_S5 {
                    return Some(MachineEvent::PowerOff);
                }
                // A state that the DSDT does not offer. Guests wait for WAK_STS without a limit, so
                // the machine wakes at once.
                self.wak_sts = true;
                None
            }
            SLEEP_STATUS => {
                self.wak_sts &= value & WAK_STS == 0;
                None
            }
            RESET => (value == RESET_VALUE).then_some(MachineEvent::Reset),
            _ => None,
        }
    }
}

/// The register block on a bus. Only byte accesses are defined: wider reads give ones, wider writes are
/// ignored.
#[derive(Debug)]
pub struct PowerBlock {
    /// Shared between the vCPU threads.
    registers: Mutex<Registers>,
    events: Arc<dyn MachineEvents>,
}

impl PowerBlock {
    /// A block that tells `events` of [`MachineEvent::PowerOff`] and [`MachineEvent::Reset`].
    #[must_use]
    pub fn new(events: Arc<dyn MachineEvents>) -> Self {
        Self {
            registers: Mutex::default(),
            events,
        }
    }
}

impl BusDevice for PowerBlock {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let registers = self
            .registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let ([byte], Some(value)) = (data, registers.read(offset)) {
            *byte = value;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let &[value] = data else { return };
        let event = self
            .registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(offset, value);
        if let Some(event) = event {
            self.events.notify(event);
        }
    }
}

/// The power button. A press is one edge on a line of the generic event device, whose `_EVT` method
/// notifies the button's device in the guest; there is no register behind it.
#[derive(Debug, Clone)]
pub struct PowerButton {
    line: Arc<dyn IrqLine>,
}

impl PowerButton {
    /// A button on `line`.
    #[must_use]
    pub fn new(line: Arc<dyn IrqLine>) -> Self {
        Self { line }
    }

    /// Asks the guest to shut down. What it makes of that is its own affair: a guest without ACPI, or
    /// without anything that listens to the button, does nothing.
    ///
    /// # Errors
    /// Fails if the interrupt cannot be delivered.
    pub fn press(&self) -> io::Result<()> {
        self.line.trigger()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{FakeLine, Heard};
    use super::*;

    fn block() -> (PowerBlock, Arc<Heard>) {
        let heard = Arc::new(Heard::default());
        (PowerBlock::new(heard.clone()), heard)
    }

    fn read(block: &PowerBlock, offset: u64) -> u8 {
        let mut data = [0xff];
        block.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn s5_powers_off_only_with_slp_en() {
        let (block, heard) = block();
        block.write(SLEEP_CONTROL, &[SLP_TYP_S5 << 2]);
        assert_eq!(heard.take(), []);
        assert_eq!(read(&block, SLEEP_CONTROL), 0x14);
        block.write(SLEEP_CONTROL, &[SLP_TYP_S5 << 2 | SLP_EN]);
        assert_eq!(heard.take(), [MachineEvent::PowerOff]);
        assert_eq!(read(&block, SLEEP_CONTROL), 0x14, "SLP_EN reads as zero");
    }

    #[test]
    fn any_other_sleep_wakes_at_once() {
        let (block, heard) = block();
        for slp_typ in (0..8).filter(|typ| *typ != SLP_TYP_S5) {
            block.write(SLEEP_STATUS, &[WAK_STS]);
            assert_eq!(read(&block, SLEEP_STATUS), 0);
            block.write(SLEEP_CONTROL, &[slp_typ << 2 | SLP_EN]);
            assert_eq!(read(&block, SLEEP_STATUS), WAK_STS, "type {slp_typ}");
            block.write(SLEEP_STATUS, &[0x7f]);
            assert_eq!(read(&block, SLEEP_STATUS), WAK_STS, "only a one clears it");
        }
        assert_eq!(heard.take(), []);
    }

    #[test]
    fn the_reset_value_resets() {
        let (block, heard) = block();
        for value in (0..=u8::MAX).filter(|value| *value != RESET_VALUE) {
            block.write(RESET, &[value]);
        }
        assert_eq!(heard.take(), []);
        block.write(RESET, &[RESET_VALUE]);
        assert_eq!(heard.take(), [MachineEvent::Reset]);
        assert_eq!(read(&block, RESET), 0);
    }

    #[test]
    fn odd_accesses_do_nothing() {
        let (block, heard) = block();
        for len in [0, 2, 4, 8] {
            let mut data = vec![0xff; len];
            block.read(SLEEP_CONTROL, &mut data);
            assert!(data.iter().all(|byte| *byte == 0xff));
            block.write(SLEEP_CONTROL, &vec![SLP_TYP_S5 << 2 | SLP_EN; len]);
            block.write(RESET, &vec![RESET_VALUE; len]);
        }
        for offset in [LEN, u64::MAX] {
            assert_eq!(read(&block, offset), 0xff);
            block.write(offset, &[0xff]);
        }
        assert_eq!(heard.take(), []);
    }

    #[test]
    fn a_press_is_one_edge() {
        let line = Arc::new(FakeLine::default());
        let button = PowerButton::new(line.clone());
        button.press().unwrap();
        button.clone().press().unwrap();
        assert_eq!(line.take(), 2);
    }
}

//! When the receiver is in use: the rule that keeps early input from being thrown away.
//!
//! Input may be waiting long before the guest's driver is up (`echo … | mvm`). A driver that starts
//! discards what it finds in the receiver, so nothing is put there until the guest shows that it wants
//! it. It does so by enabling the receiver's interrupt, or, if it polls, by asking the line status over
//! and over. A pure state machine, fed with the register accesses by [`super::SerialPort`].

use super::regs::{IER_ALL, IER_RDI};

/// How many reads of LSR in a row, with no other access between them, mean that the guest polls. Drivers
/// that only probe the chip read it once or twice.
const POLLS: u8 = 16;

/// Whether the guest's receiver is in use.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// The receiver's interrupt is enabled, and meant.
    interrupt: bool,
    /// All interrupts were enabled at once, which is what Linux' probe does for a moment to see whether
    /// IER holds its bits. It is meant if the driver then turns to another register.
    trial: bool,
    /// The guest polls. It stays so: a polling guest may stop asking for as long as it likes.
    polled: bool,
    polls: u8,
}

/// A register access, as far as the gate cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// IER was read.
    ReadIer,
    /// IER was written.
    WriteIer(u8),
    /// LSR was read.
    ReadLsr,
    /// Anything else.
    Other,
}

impl Gate {
    /// Whether input may be put in the receiver.
    pub(super) fn is_open(&self) -> bool {
        self.interrupt || self.polled
    }

    pub(super) fn note(&mut self, access: Access) {
        self.polls = match access {
            Access::ReadLsr => self.polls.saturating_add(1),
            _ => 0,
        };
        self.polled |= self.polls >= POLLS;
        match access {
            Access::ReadIer => {}
            Access::WriteIer(value) => {
                let enabled = value & IER_RDI != 0;
                self.trial = value & IER_ALL == IER_ALL && !self.interrupt;
                self.interrupt = enabled && !self.trial;
            }
            Access::ReadLsr | Access::Other => {
                self.interrupt |= self.trial;
                self.trial = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(accesses: &[Access]) -> bool {
        let mut gate = Gate::default();
        for access in accesses {
            gate.note(*access);
        }
        gate.is_open()
    }

    #[test]
    fn the_receiver_interrupt_opens_it() {
        assert!(!after(&[]));
        assert!(after(&[Access::WriteIer(0x05)]));
        assert!(
            !after(&[Access::WriteIer(0x02), Access::Other]),
            "transmitter only"
        );
        assert!(after(&[
            Access::WriteIer(0x05),
            Access::Other,
            Access::WriteIer(0x0f)
        ]));
        assert!(
            !after(&[Access::WriteIer(0x05), Access::WriteIer(0)]),
            "closed with it"
        );
    }

    #[test]
    fn the_probe_does_not() {
        use Access::{Other, ReadIer, WriteIer};
        let probe = [
            ReadIer,
            WriteIer(0),
            ReadIer,
            WriteIer(0x0f),
            ReadIer,
            WriteIer(0),
            Other,
        ];
        for end in 0..=probe.len() {
            assert!(!after(&probe[..end]), "{end} steps");
        }
        assert!(
            after(&[WriteIer(0x0f), Other]),
            "a driver that enables all and goes on"
        );
    }

    #[test]
    fn polling_opens_it_for_good() {
        let mut gate = Gate::default();
        for _ in 0..10 {
            for _ in 0..usize::from(POLLS) - 1 {
                gate.note(Access::ReadLsr);
            }
            assert!(!gate.is_open());
            gate.note(Access::Other);
        }
        for _ in 0..1000 {
            gate.note(Access::ReadLsr);
        }
        assert!(gate.is_open());
        gate.note(Access::WriteIer(0));
        assert!(gate.is_open());
    }
}

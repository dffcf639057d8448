//! Legacy PC chips: the few a stock kernel still needs for a console, power and bad news.
//!
//! Each chip is a plain state machine (registers in, effects out) behind a [`crate::bus::BusDevice`].
//! What a guest asks of the machine as a whole goes out through [`MachineEvents`], implemented once by
//! the VMM; the chips do not know what becomes of it.

use std::fmt;

pub mod i8042;
pub mod power;
pub mod pvpanic;
pub mod serial;

/// Something the guest asked of, or said about, the whole machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MachineEvent {
    /// Switch the machine off (ACPI S5).
    PowerOff,
    /// Reset the machine.
    Reset,
    /// The guest's kernel has panicked.
    Panicked,
    /// The guest's kernel has panicked and goes on in its crash kernel.
    CrashLoaded,
}

/// The VMM's ear for [`MachineEvent`]s.
pub trait MachineEvents: fmt::Debug + Send + Sync {
    /// Called on the vCPU thread that made the access, while the guest waits for it to finish. It must
    /// not block, and may be called again: the guest goes on until the VMM stops it.
    fn notify(&self, event: MachineEvent);
}

#[cfg(test)]
pub(crate) mod testing {
    //! Fakes for the tests of the chips.

    use std::io;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::{MachineEvent, MachineEvents};
    use crate::irq::IrqLine;

    /// Remembers what it was told.
    #[derive(Debug, Default)]
    pub(crate) struct Heard(Mutex<Vec<MachineEvent>>);

    impl Heard {
        /// What was heard since the last call.
        pub(crate) fn take(&self) -> Vec<MachineEvent> {
            std::mem::take(&mut *self.0.lock().unwrap())
        }
    }

    impl MachineEvents for Heard {
        fn notify(&self, event: MachineEvent) {
            self.0.lock().unwrap().push(event);
        }
    }

    /// Counts its edges.
    #[derive(Debug, Default)]
    pub(crate) struct FakeLine(AtomicUsize);

    impl FakeLine {
        /// The edges since the last call.
        pub(crate) fn take(&self) -> usize {
            self.0.swap(0, Ordering::SeqCst)
        }
    }

    impl IrqLine for FakeLine {
        fn trigger(&self) -> io::Result<()> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    }
}

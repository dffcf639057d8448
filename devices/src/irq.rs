//! Interrupt lines as a device sees them: something to pulse, with no number attached.

use std::fmt;
use std::io;

use vmm_sys_util::eventfd::EventFd;

/// One edge-triggered interrupt line towards the guest.
///
/// The VMM hands a device its line; which GSI it is wired to is the VMM's business.
pub trait IrqLine: fmt::Debug + Send + Sync {
    /// Raises one edge.
    ///
    /// # Errors
    /// Fails if the event cannot be delivered; the interrupt is then lost.
    fn trigger(&self) -> io::Result<()>;
}

/// A line whose edges KVM injects without a system call of ours beyond one `write` (an irqfd).
impl IrqLine for EventFd {
    fn trigger(&self) -> io::Result<()> {
        match self.write(1) {
            // The counter is saturated: an edge is pending already.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            other => other,
        }
    }
}

//! What consoles of any kind have in common: how a guest's port meets the host.
//!
//! Two chips serve as a guest's console, the [serial port](crate::legacy::serial) and
//! [virtio-console](crate::virtio::console). Both are a [`Receiver`] of what the user types, which comes
//! through an [`InputQueue`] from a descriptor ([`DescriptorInput`]) or from any other subscriber of an
//! I/O loop. What the guest says goes to a plain writer where a vCPU can be made to wait for it, and to
//! an [`Output`] where it cannot.

mod input;

use std::fmt;
use std::os::fd::RawFd;

use vmm_sys_util::eventfd::EventFd;

pub use self::input::{DescriptorInput, InputFilter, InputQueue};

/// A guest's end of the input.
pub trait Receiver: fmt::Debug + Send + Sync {
    /// Takes as many of `bytes` as it has room for now, and says how many. If that is fewer than all,
    /// [`Self::room`] is signalled when it pays to offer the rest.
    fn receive(&self, bytes: &[u8]) -> usize;

    /// Becomes readable, once, when a [`Self::receive`] that was cut short can go on.
    fn room(&self) -> &EventFd;
}

/// The host's end of the output, for a port that must not wait for it.
pub trait Output: fmt::Debug + Send + Sync {
    /// Takes as many of `bytes`, which are at most [`CHUNK`], as there is room for now, and says how
    /// many. If that is fewer than all, [`Self::room`] is signalled when it pays to offer the rest.
    fn offer(&self, bytes: &[u8]) -> usize;

    /// Becomes readable when an [`Self::offer`] that was cut short can go on. Stays open as long as this
    /// lives.
    fn room(&self) -> RawFd;

    /// The signal has been seen.
    fn seen(&self);
}

/// Most that is offered to an [`Output`] at once.
pub const CHUNK: usize = 4096;

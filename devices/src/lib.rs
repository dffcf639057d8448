//! Guest-visible device models: no KVM, no interrupt controller numbers, no process-wide state.
//!
//! A device meets the outside through four small things: a [`bus`] that routes guest accesses to it,
//! an [`irq`] line it pulses, guest [`mem`]ory, and an [`io`] thread that runs its data path. Everything
//! here is tested with fakes of those four and needs no `/dev/kvm`.
//!
//! The guest is hostile: nothing it writes may panic, hang or reach memory it was not given.

pub mod bus;
pub mod console;
pub mod io;
pub mod iovec;
pub mod irq;
pub mod legacy;
pub mod mem;
pub mod rate;
pub mod virtio;

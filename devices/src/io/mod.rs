//! The data-path side of virtio, written once: one I/O loop, one subscriber, one way to take and return
//! descriptor chains.

mod queue_io;

pub use queue_io::{Chain, QueueIo};

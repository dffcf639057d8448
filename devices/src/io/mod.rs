//! The data-path side of virtio, written once: one I/O loop, one subscriber, one way to take and return
//! descriptor chains.

mod chain;
mod linger;
mod queue_io;
mod session;
#[cfg(test)]
mod tests;
mod thread;
mod used;

pub use chain::{Buffers, Chain};
pub use queue_io::{MAX_QUEUES, QueueIo, QueueSet};
pub use session::{Session, SessionParts};
#[cfg(any(test, feature = "testing"))]
pub use thread::IoLoop;
pub use thread::{IoError, IoHandle, IoTask, IoThread, PreparedIo, TaskId};

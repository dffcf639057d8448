//! virtio-vsock, Virtio 1.2 §5.10: stream sockets between the guest and the host.
//!
//! [`Vsock`] is the face: it tells the guest its address. At DRIVER_OK it makes a worker, which an I/O
//! thread owns until the reset, and which owns all connections; the reset closes them. What is on the
//! host's side of a port is up to a [`VsockHost`], which the face keeps from one worker to the next.
//!
//! ```text
//!  guest ◄─rings─► Worker ─► Muxer ─► Table ─► Connection ◄─sendmsg, recvmsg─► socket
//!                             │  ▲               Credit, Backlog
//!                VsockHost ◄──┘  └── Watch (epoll): sockets, callers, time
//! ```
//!
//! Limits: 1024 connections, for each of which at most 256 KiB are kept that its host peer has not taken.
//! Only stream sockets are offered, and only the host (CID 2) can be reached.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::muxer::Muxer;
use self::worker::Worker;
use super::{ActivateError, Features, Lane, QueueIndex, VirtioDevice, VirtioKind, read_from};

mod backlog;
mod callers;
mod connection;
mod credit;
mod host;
mod muxer;
pub(super) mod packet;
mod stream;
mod table;
#[cfg(any(test, feature = "testing"))]
pub(super) mod testing;
#[cfg(test)]
mod tests;
mod watch;
mod worker;

pub use self::host::VsockHost;

/// Packets for the guest. §5.10.2.
const RX: QueueIndex = QueueIndex(0);
/// Packets from the guest.
const TX: QueueIndex = QueueIndex(1);
/// Entries of the two queues for packets. Linux keeps the first filled with buffers of a page.
const QUEUE_SIZE: u16 = 256;
/// Entries of the queue for events.
const EVENT_QUEUE_SIZE: u16 = 16;
/// §5.10.3, VIRTIO_VSOCK_F_STREAM.
const F_STREAM: Features = Features::from_bits_retain(1);

/// A host side as the face and its worker share it: the worker uses it, the face keeps it for the next
/// worker. They never wait for each other, since the face does not lock it.
type SharedHost = Arc<Mutex<Box<dyn VsockHost>>>;

/// The host side, even if a thread panicked with it: it is consistent between calls.
fn lock(host: &SharedHost) -> MutexGuard<'_, Box<dyn VsockHost>> {
    host.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A vsock device. Owned by its transport.
#[derive(Debug)]
pub struct Vsock {
    cid: u32,
    host: SharedHost,
}

impl Vsock {
    /// A device for a guest with the address `cid`, whose connections `host` makes.
    #[must_use]
    pub fn new(cid: u32, host: Box<dyn VsockHost>) -> Self {
        Self {
            cid,
            host: Arc::new(Mutex::new(host)),
        }
    }
}

impl VirtioDevice for Vsock {
    fn kind(&self) -> VirtioKind {
        VirtioKind::Vsock
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE, EVENT_QUEUE_SIZE]
    }

    fn features(&self) -> Features {
        Features::VERSION_1 | Features::INDIRECT_DESC | Features::EVENT_IDX | F_STREAM
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // §5.10.4: guest_cid, of which the upper half is reserved and zero.
        read_from(u64::from(self.cid).to_le_bytes(), offset, data);
    }

    fn activate(&mut self, _acked: Features) -> Result<Vec<Lane>, ActivateError> {
        let muxer =
            Muxer::new(self.cid.into(), self.host.clone()).map_err(|source| ActivateError {
                what: "its sockets cannot be watched",
                source: Some(source),
            })?;
        Ok(Lane::whole(Worker::new(muxer)))
    }
}

//! Virtio 1.2 devices: the contract between a transport, a device's face and its data path.
//!
//! A device is two things. Its *face* ([`VirtioDevice`]) answers configuration and lives behind the
//! transport, on the vCPU threads. Its *worker* ([`QueueWorker`]) moves the data; the face makes one at
//! DRIVER_OK, and an I/O thread owns it until the driver resets the device. They share nothing but what
//! the device itself chooses to share.

use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use bitflags::bitflags;
use thiserror::Error;

use crate::io::{QueueIo, QueueSet};

pub mod balloon;
pub mod block;
pub mod console;
mod errors;
pub mod fs;
#[cfg(any(test, feature = "testing"))]
pub mod hostile;
pub mod net;
pub mod pmem;
pub mod rng;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod transport;
pub mod vsock;

/// The device types of Virtio 1.2 §5 that mvm knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum VirtioKind {
    /// §5.1, a network card.
    Net = 1,
    /// §5.2, a block device.
    Block = 2,
    /// §5.3, a console.
    Console = 3,
    /// §5.4, a source of entropy.
    Entropy = 4,
    /// §5.5, a memory balloon.
    Balloon = 5,
    /// §5.10, a socket device.
    Vsock = 19,
    /// §5.11, a file system.
    FileSystem = 26,
    /// §5.19, persistent memory.
    Pmem = 27,
}

/// Index of a virtqueue within its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueIndex(pub u16);

impl fmt::Display for QueueIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The largest queue a device may offer: Virtio 1.2 §2.7 allows 32768, this keeps a hostile guest cheap.
pub const MAX_QUEUE_SIZE: u16 = 1024;

bitflags! {
    /// Feature bits: the device-type ones (0 to 23, 50 to 127) are the device's own constants, the rest
    /// are named here. Virtio 1.2 §6.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct Features: u64 {
        /// VIRTIO_F_INDIRECT_DESC.
        const INDIRECT_DESC = 1 << 28;
        /// VIRTIO_F_EVENT_IDX.
        const EVENT_IDX = 1 << 29;
        /// VIRTIO_F_VERSION_1.
        const VERSION_1 = 1 << 32;
        const _ = !0;
    }

    /// The device status register, Virtio 1.2 §2.1.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct Status: u8 {
        /// The guest found the device.
        const ACKNOWLEDGE = 1;
        /// The guest has a driver for it.
        const DRIVER = 2;
        /// The driver is set up.
        const DRIVER_OK = 4;
        /// The driver accepts the features it wrote.
        const FEATURES_OK = 8;
        /// The device met an error it cannot recover from; only a reset helps.
        const NEEDS_RESET = 64;
        /// The driver gave up.
        const FAILED = 128;
    }
}

/// What a guest did to a device that it cannot go on from. The transport sets DEVICE_NEEDS_RESET; the
/// rest of the VM goes on.
#[derive(Debug, Error)]
pub enum DeviceFault {
    /// The rings cannot be read or written where the driver put them, or their indices are impossible.
    #[error("queue {queue}: {source}")]
    Ring {
        /// The queue.
        queue: QueueIndex,
        /// What virtio-queue says of it.
        source: virtio_queue::Error,
    },
    /// A descriptor chain that no driver may make (Virtio 1.2 §2.7.5): a loop, an index or address out
    /// of range, device-readable parts after device-writable ones, too long.
    #[error("queue {queue}: descriptor chain {head}: {reason}")]
    Chain {
        /// The queue.
        queue: QueueIndex,
        /// Index of the chain's first descriptor.
        head: u16,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A chain that is well-formed but lacks what this device's requests must have.
    #[error("queue {queue}: malformed request: {reason}")]
    Request {
        /// The queue.
        queue: QueueIndex,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The device's own plumbing failed (an eventfd, a timer): nothing the guest did.
    #[error("{what}: {source}")]
    Host {
        /// The operation.
        what: &'static str,
        /// Its error.
        source: io::Error,
    },
}

/// Why a device could not start its data path at DRIVER_OK.
#[derive(Debug, Error)]
#[error("cannot start the data path: {what}")]
pub struct ActivateError {
    /// What failed.
    pub what: &'static str,
    /// Why, if the host said.
    #[source]
    pub source: Option<io::Error>,
}

/// How a device reaches its driver. One implementation per transport.
pub trait VirtioInterrupt: fmt::Debug + Send + Sync {
    /// Used buffers are waiting in `queue`.
    ///
    /// # Errors
    /// The interrupt could not be delivered.
    fn queue(&self, queue: QueueIndex) -> io::Result<()>;
    /// The configuration space changed.
    ///
    /// # Errors
    /// The interrupt could not be delivered.
    fn config(&self) -> io::Result<()>;
    /// The device cannot go on: sets DEVICE_NEEDS_RESET and tells the driver.
    fn needs_reset(&self);
}

/// Answers a driver's read of `data` at `offset` from a configuration space of `bytes`. What is beyond its
/// end stays as it arrived.
fn read_from(bytes: impl IntoIterator<Item = u8>, offset: u64, data: &mut [u8]) {
    let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
    for (to, from) in data.iter_mut().zip(bytes.into_iter().skip(skipped)) {
        *to = from;
    }
}

/// The face of a device: what the driver sees before and beside the queues. Owned by a transport.
pub trait VirtioDevice: fmt::Debug + Send {
    /// The device type.
    fn kind(&self) -> VirtioKind;
    /// The largest size of each queue: powers of two, at most [`MAX_QUEUE_SIZE`].
    fn queue_sizes(&self) -> &[u16];
    /// Features offered, transport ones included.
    fn features(&self) -> Features;
    /// The driver reads configuration space. `data` arrives filled with zeroes, which is what bytes
    /// beyond its end read as.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// The driver writes configuration space. Most devices ignore it.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    /// The transport took the device: `interrupt` reaches its driver, for good. A device whose
    /// configuration changes by itself keeps it, to say so. Called once.
    fn connect(&mut self, _interrupt: Arc<dyn VirtioInterrupt>) {}
    /// Whether its workers make calls that may take long, such as a file system's. Its lanes then get
    /// a thread of their own, so that no other device has to wait.
    fn blocks(&self) -> bool {
        false
    }
    /// The driver is ready with `acked` features: makes the data path, in one lane or several. Called
    /// again after each reset, once the workers of the time before are gone.
    ///
    /// # Errors
    /// The device goes to NEEDS_RESET; the VM goes on.
    fn activate(&mut self, acked: Features) -> Result<Vec<Lane>, ActivateError>;
}

/// A part of a device's data path that can run on a thread of its own: a worker and the queues that are
/// its own. No queue belongs to two lanes.
pub struct Lane {
    /// The queues it serves.
    pub queues: QueueSet,
    /// Who serves them.
    pub worker: Box<dyn QueueWorker>,
}

impl Lane {
    /// A data path in one lane: one worker for all queues.
    #[must_use]
    pub fn whole(worker: impl QueueWorker + 'static) -> Vec<Self> {
        vec![Self {
            queues: QueueSet::ALL,
            worker: Box::new(worker),
        }]
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane")
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}

/// A descriptor beside the kicks that a worker wants to be woken by: a completion ring, a timer, a tap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// Stays open, and the worker's, as long as the worker lives.
    pub fd: RawFd,
    /// Comes back in [`QueueWorker::on_source`].
    pub token: u32,
    /// When the worker is called.
    pub wake: Wake,
}

/// When a [`Source`] wakes its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// As long as there is something to read.
    Readable,
    /// Once, each time that it becomes readable, writable, or is closed: the worker then goes on until
    /// the descriptor would block, or remembers that it has not.
    Change,
}

/// The data path of a device. Owned by one I/O thread; never runs on a vCPU thread.
pub trait QueueWorker: Send {
    /// What to watch beside the kicks. Asked once, when the I/O thread takes the worker.
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }
    /// The driver put buffers into `queue`: take them with [`QueueIo::pop`] until it gives `None`.
    /// May also be called when there are none. A worker that leaves buffers in the queue gets no further
    /// kicks of it until a `pop` found it empty, and comes back for them by itself.
    ///
    /// # Errors
    /// A fault stops the data path and sets DEVICE_NEEDS_RESET.
    fn on_kick(&mut self, queue: QueueIndex, io: &mut QueueIo<'_>) -> Result<(), DeviceFault>;
    /// The source with `token` woke. May be called spuriously.
    ///
    /// # Errors
    /// As for [`on_kick`](Self::on_kick).
    fn on_source(&mut self, _token: u32, _io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        Ok(())
    }
    /// Brings everything under way to its end, before a reset or a pause: afterwards no request is in
    /// flight and nothing of the worker touches guest memory.
    ///
    /// # Errors
    /// As for [`on_kick`](Self::on_kick).
    fn drain(&mut self, _io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        Ok(())
    }
}

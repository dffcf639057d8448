//! virtio-blk, Virtio 1.2 §5.2: the face of the device, and the rooms behind it.
//!
//! [`Block`] is what the driver sees beside its queue: capacity, limits, features. At DRIVER_OK it makes
//! a worker, which an I/O thread owns until the reset. What the data is stored on is a [`disk::Disk`],
//! which [`open`] makes of an image.
//!
//! ```text
//! queue ─► worker ─► disk::DiskLane ─► engine: sync, uring ─► file
//!            │                            └─ asks the store where the bytes are
//!          Block ──► disk::Disk ─────────► store: raw, qcow2, overlay over another
//! ```
//!
//! The sector size told to the driver is always 512, as images are made for that; what suits the host
//! goes into the topology. The cache mode cannot be switched at run time (VIRTIO_BLK_F_CONFIG_WCE): a
//! driver that wants write-through does not accept FLUSH, and gets it.
//!
//! ```
//! use devices::virtio::VirtioDevice;
//! use devices::virtio::block::{Block, Options, open};
//!
//! # let image = tempfile::NamedTempFile::new()?;
//! # image.as_file().set_len(1 << 20)?;
//! let disk = open(&[image.path()], &Options::default())?;
//! let device = Block::new(disk, "root");
//! let mut capacity = [0; 8];
//! device.read_config(0, &mut capacity);
//! assert_eq!(u64::from_le_bytes(capacity), (1 << 20) / 512);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::sync::Arc;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};

use self::disk::{Disk, DiskInfo, SECTOR};
use self::request::{MAX_DISCARD_SECTORS, MAX_SEGMENTS, MAX_WRITE_ZEROES_SECTORS, Rules};
use self::shared::Shared;
use self::worker::{Work, Worker};
use super::{
    ActivateError, Features, Lane, QueueIndex, VirtioDevice, VirtioInterrupt, VirtioKind, read_from,
};
use crate::io::{MAX_QUEUES, QueueSet};
use crate::rate::{Limiter, RateControl, Throttle};

mod buffers;
mod control;
mod direct;
pub mod disk;
mod engine;
mod file;
mod flight;
mod id;
pub mod image;
mod layout;
mod open;
mod overlay;
mod qcow2;
mod raw;
mod request;
mod shared;
mod statistics;
mod store;
#[cfg(test)]
mod tests;
mod whole;
mod worker;

pub use self::control::{DiskControl, DiskControlError, DiskState};
pub use self::disk::ResizeError;
pub use self::engine::Engine;
pub use self::id::id_of;
pub use self::image::ImageError;
pub use self::layout::Layout;
pub use self::open::{Cache, Format, Keep, Options, open};
pub use self::overlay::format::FormatError;
pub use self::qcow2::header::Qcow2Error;
pub use self::statistics::{BUCKETS, DiskStatistics, Operation, OperationStatistics};
pub(super) use self::whole::WholeFile;

/// [`SECTOR`] as configuration space has it.
const BLK_SIZE: u32 = 512;
const _: () = assert!(BLK_SIZE as u64 == SECTOR);
/// Requests the driver can have under way.
const QUEUE_SIZE: u16 = 256;
/// Bytes of `struct virtio_blk_config` up to the write-zeroes limits. §5.2.4.
const CONFIG_SIZE: usize = 60;

/// The most queues a disk may have.
pub const MAX_BLOCK_QUEUES: u16 = MAX_QUEUES;

/// What is to be done about requests that the host fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnError {
    /// The driver is told, and the disk goes on.
    #[default]
    Report,
    /// The request is kept, and the disk waits until somebody has it go on: see [`DiskControl::on_trouble`].
    Stop,
}

/// How a disk appears to its guest, beside what it stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manner {
    /// What is to be done about requests that the host fails.
    pub on_error: OnError,
    /// How many queues it has, from 1 to [`MAX_BLOCK_QUEUES`].
    pub queues: u16,
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            on_error: OnError::default(),
            queues: 1,
        }
    }
}

/// A block device. Owned by its transport.
#[derive(Debug)]
pub struct Block {
    shared: Arc<Shared>,
    /// Each worker holds it too.
    alive: Arc<()>,
    /// As the disk was when the device was made; of it only the capacity may change.
    info: DiskInfo,
    config: [u8; CONFIG_SIZE],
    queue_sizes: Vec<u16>,
    limiter: Arc<Limiter>,
}

impl Block {
    /// A device that stands on `disk`, and is called `id`, of which the guest sees the first 20 bytes.
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>, id: &str) -> Self {
        Self::with_manner(disk, id, Manner::default())
    }

    /// The same, with more said of it.
    #[must_use]
    pub fn with_manner(disk: Arc<dyn Disk>, id: &str, manner: Manner) -> Self {
        let info = disk.info();
        let queues = manner.queues.clamp(1, MAX_BLOCK_QUEUES);
        Self {
            shared: Shared::new(disk, id, queues, manner.on_error == OnError::Stop),
            alive: Arc::default(),
            info,
            config: config_space(&info, queues),
            queue_sizes: vec![QUEUE_SIZE; queues.into()],
            limiter: Limiter::new(),
        }
    }

    /// Controls the disk from any thread.
    #[must_use]
    pub fn control(&self) -> DiskControl {
        DiskControl(self.shared.clone())
    }

    /// Changes the limits on what the disk reads and writes, also while the device is in use.
    #[must_use]
    pub fn rate_control(&self) -> RateControl {
        RateControl::new([self.limiter.clone()])
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> VirtioKind {
        VirtioKind::Block
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> Features {
        let always = [
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_FLUSH,
            VIRTIO_BLK_F_TOPOLOGY,
        ];
        let writable = !self.info.read_only;
        let sometimes = [
            (VIRTIO_BLK_F_RO, !writable),
            (VIRTIO_BLK_F_MQ, self.queue_sizes.len() > 1),
            (VIRTIO_BLK_F_DISCARD, writable && self.info.discard),
            (VIRTIO_BLK_F_WRITE_ZEROES, writable),
        ];
        let offered = sometimes.into_iter().filter(|(_, offer)| *offer);
        always.into_iter().chain(offered.map(|(bit, _)| bit)).fold(
            Features::VERSION_1 | Features::INDIRECT_DESC | Features::EVENT_IDX,
            |features, bit| features | feature(bit),
        )
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = self.config;
        config[..8].copy_from_slice(&self.shared.sectors().to_le_bytes());
        read_from(config, offset, data);
    }

    fn connect(&mut self, interrupt: Arc<dyn VirtioInterrupt>) {
        // Called once.
        let _ = self.shared.interrupt.set(interrupt);
    }

    fn activate(&mut self, acked: Features) -> Result<Vec<Lane>, ActivateError> {
        if Arc::strong_count(&self.alive) > 1 {
            return Err(ActivateError {
                what: "the data path from before the reset still has the disk",
                source: None,
            });
        }
        let negotiated = |bit| acked.contains(feature(bit));
        let work = Work {
            rules: Rules {
                sectors: 0,
                read_only: self.info.read_only,
                discard: negotiated(VIRTIO_BLK_F_DISCARD),
                write_zeroes: negotiated(VIRTIO_BLK_F_WRITE_ZEROES),
            },
            through: !negotiated(VIRTIO_BLK_F_FLUSH),
            _alive: self.alive.clone(),
        };
        // §5.2.5.1: a driver that does not know of several queues uses the first.
        let queues = match negotiated(VIRTIO_BLK_F_MQ) {
            true => u16::try_from(self.queue_sizes.len()).unwrap_or(1),
            false => 1,
        };
        // Each queue has a lane of its own, unless the disk wants all requests to pass through one.
        let parts = match self.shared.disk().is_parallel() {
            true => 1,
            false => queues,
        };
        (0..queues)
            .step_by(parts.into())
            .map(|first| {
                let queues = QueueSet::of((first..first + parts).map(QueueIndex));
                self.lane(work.clone(), queues, QUEUE_SIZE.saturating_mul(parts))
            })
            .collect()
    }
}

impl Block {
    fn lane(&self, work: Work, queues: QueueSet, depth: u16) -> Result<Lane, ActivateError> {
        let throttle = Throttle::new(&self.limiter)?;
        let seat = self.shared.seat();
        let worker = seat.and_then(|seat| Worker::new(work, seat, queues, throttle, depth));
        let worker = worker.map_err(|source| ActivateError {
            what: "no descriptor for its disk",
            source: Some(source),
        })?;
        Ok(Lane {
            queues,
            worker: Box::new(worker),
        })
    }
}

/// The feature with number `bit`.
fn feature(bit: u32) -> Features {
    Features::from_bits_retain(1 << bit)
}

/// Configuration space, §5.2.4, but for the capacity, which may change. Fields that belong to features not
/// offered stay zero.
fn config_space(info: &DiskInfo, queues: u16) -> [u8; CONFIG_SIZE] {
    let mut config = [0; CONFIG_SIZE];
    let mut put = |offset: usize, bytes: &[u8]| {
        config[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    // Physical blocks are this many sectors, a power of two.
    let block = (info.block_size / BLK_SIZE).max(1);
    let exponent = u8::try_from(block.ilog2()).unwrap_or(0);

    // seg_max: what is left of a chain beside the header and the status byte.
    put(12, &u32::from(QUEUE_SIZE - 2).to_le_bytes());
    put(20, &BLK_SIZE.to_le_bytes()); // blk_size
    put(24, &[exponent]); // physical_block_exp
    put(26, &u16::try_from(block).unwrap_or(0).to_le_bytes()); // min_io_size
    if queues > 1 {
        put(34, &queues.to_le_bytes()); // num_queues
    }
    if !info.read_only {
        if info.discard {
            put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
            put(40, &u32::from(MAX_SEGMENTS).to_le_bytes()); // max_discard_seg
            put(44, &block.to_le_bytes()); // discard_sector_alignment
        }
        put(48, &MAX_WRITE_ZEROES_SECTORS.to_le_bytes());
        put(52, &u32::from(MAX_SEGMENTS).to_le_bytes()); // max_write_zeroes_seg
        put(56, &[u8::from(info.discard)]); // write_zeroes_may_unmap
    }
    config
}

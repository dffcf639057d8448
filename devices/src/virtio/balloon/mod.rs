//! virtio-balloon, Virtio 1.2 §5.5: takes memory out of a running guest, and gives it back.
//!
//! Memory goes back to the host in two ways. The guest fills the *balloon* with pages until it has the
//! size that [`BalloonControl::set_target`] asked for; and, without being asked, it *reports* the larger
//! blocks of memory that it has no use for. Either way the pages are discarded, and the host puts fresh
//! ones behind them when the guest touches them again; so a deflated page needs nothing done.
//!
//! A guest may take pages out of the balloon without asking first (VIRTIO_BALLOON_F_MUST_TELL_HOST is
//! not offered). Hints of free pages, which serve migration, are not offered either.
//!
//! ```
//! use devices::virtio::balloon::{Balloon, BalloonOptions};
//!
//! let balloon = Balloon::new(BalloonOptions::of_memory(1 << 30))?;
//! let control = balloon.control();
//! control.set_target(256 << 20)?;
//! assert_eq!(control.target(), 256 << 20);
//! assert!(control.set_target(1 << 30).is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use self::control::Shared;
use self::pages::PAGE;
use self::worker::Worker;
use super::{
    ActivateError, Features, Lane, QueueIndex, VirtioDevice, VirtioInterrupt, VirtioKind, read_from,
};

mod control;
mod pages;
mod statistics;
#[cfg(test)]
mod tests;
mod worker;

pub use self::control::{BalloonControl, TooLarge};
pub use self::statistics::{Figure, Statistics};

/// §5.5.3: the driver's statistics come through a queue of their own.
const F_STATS_VQ: Features = Features::from_bits_retain(1 << 1);
/// §5.5.3: the guest takes pages out of the balloon rather than run out of memory.
const F_DEFLATE_ON_OOM: Features = Features::from_bits_retain(1 << 2);
/// §5.5.3: the driver says what it fills free pages with.
const F_PAGE_POISON: Features = Features::from_bits_retain(1 << 4);
/// §5.5.3: the driver reports free pages.
const F_REPORTING: Features = Features::from_bits_retain(1 << 5);

/// Requests the driver can have under way in each queue. Linux reports 32 blocks with one.
const QUEUE_SIZE: u16 = 128;

/// Fields of `struct virtio_balloon_config` that the driver writes, §5.5.4.
mod field {
    pub const ACTUAL: u64 = 4;
    pub const POISON_VAL: u64 = 12;
}

/// How a balloon is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BalloonOptions {
    /// Bytes of memory the guest has.
    pub memory: u64,
    /// Bytes the balloon should have at first, less than that.
    pub target: u64,
    /// Whether the guest takes pages out of the balloon rather than run out of memory.
    pub deflate_on_oom: bool,
    /// Whether the guest reports free pages.
    pub free_page_reporting: bool,
    /// How often the guest is asked for its statistics; zero is never.
    pub stats_interval: Duration,
}

impl BalloonOptions {
    /// An empty balloon for a guest with so many bytes of memory, which takes nothing from it but what
    /// it has no use for.
    #[must_use]
    pub fn of_memory(bytes: u64) -> Self {
        Self {
            memory: bytes,
            target: 0,
            deflate_on_oom: true,
            free_page_reporting: true,
            stats_interval: Duration::ZERO,
        }
    }
}

/// Whole pages in so many bytes.
fn pages_of(bytes: u64) -> u32 {
    u32::try_from(bytes / PAGE).unwrap_or(u32::MAX)
}

/// A balloon device. Owned by its transport.
#[derive(Debug)]
pub struct Balloon {
    shared: Arc<Shared>,
}

impl Balloon {
    /// A balloon, empty until a driver fills it.
    ///
    /// # Errors
    /// No descriptors are left, or no clock counts as far as the interval.
    pub fn new(options: BalloonOptions) -> io::Result<Self> {
        let shared = Arc::new(Shared::new(options)?);
        Ok(Self { shared })
    }

    /// What controls this balloon while its guest runs.
    #[must_use]
    pub fn control(&self) -> BalloonControl {
        BalloonControl(self.shared.clone())
    }
}

/// What the queues are for.
///
/// §5.5.2 numbers them from 0 to 4 whether they are there or not. Linux before 6.11 leaves no gaps for
/// those that are not; as hints (queue 3) are never there, it can be told what is meant all the same.
#[derive(Debug, Clone, Copy)]
struct Roles {
    stats: Option<QueueIndex>,
    reporting: bool,
    /// The driver says what it fills free pages with.
    poison: bool,
}

impl Roles {
    const INFLATE: QueueIndex = QueueIndex(0);
    const STATS: QueueIndex = QueueIndex(2);
    const ALL: [QueueIndex; 5] = [
        Self::INFLATE,
        QueueIndex(1),
        Self::STATS,
        QueueIndex(3),
        QueueIndex(4),
    ];

    fn of(acked: Features) -> Self {
        Self {
            stats: acked.contains(F_STATS_VQ).then_some(Self::STATS),
            reporting: acked.contains(F_REPORTING),
            poison: acked.contains(F_PAGE_POISON),
        }
    }

    fn is_reporting(self, queue: QueueIndex) -> bool {
        self.reporting && queue >= Self::STATS && self.stats != Some(queue)
    }
}

impl VirtioDevice for Balloon {
    fn kind(&self) -> VirtioKind {
        VirtioKind::Balloon
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; Roles::ALL.len()]
    }

    fn features(&self) -> Features {
        let options = &self.shared.options;
        let mut features = Features::VERSION_1
            | Features::INDIRECT_DESC
            | Features::EVENT_IDX
            | F_STATS_VQ
            | F_PAGE_POISON;
        features.set(F_DEFLATE_ON_OOM, options.deflate_on_oom);
        features.set(F_REPORTING, options.free_page_reporting);
        features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let words = [
            &self.shared.target,
            &self.shared.actual,
            // free_page_hint_cmd_id, of a feature that is not offered.
            &0.into(),
            &self.shared.poison,
        ];
        let bytes = words
            .iter()
            .flat_map(|word| word.load(Ordering::Acquire).to_le_bytes());
        read_from(bytes, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let Ok(word) = <[u8; 4]>::try_from(data) else {
            return;
        };
        let value = u32::from_le_bytes(word);
        match offset {
            field::ACTUAL => self.shared.actual.store(value, Ordering::Release),
            field::POISON_VAL => self.shared.poison.store(value, Ordering::Release),
            // §5.5.4.2: the rest is the device's.
            _ => {}
        }
    }

    fn connect(&mut self, interrupt: Arc<dyn VirtioInterrupt>) {
        // Called once, so it is not set yet.
        let _ = self.shared.interrupt.set(interrupt);
    }

    fn activate(&mut self, acked: Features) -> Result<Vec<Lane>, ActivateError> {
        let worker = Worker::new(self.shared.clone(), Roles::of(acked));
        Ok(Lane::whole(worker))
    }
}

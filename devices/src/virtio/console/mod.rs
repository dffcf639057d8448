//! virtio-console, Virtio 1.2 §5.3: a console for drivers that would rather hand over a page than send
//! bytes one by one; `hvc0` in Linux.
//!
//! One port, without VIRTIO_CONSOLE_F_MULTIPORT: Linux then has its console as soon as it finds the
//! device, and not after a talk with it that the start of init may overtake. Its size is in the
//! configuration space, and changes with [`ConsoleControl::resize`].
//!
//! ```text
//!                 receive() ──► fifo ──► receiveq buffers          I/O thread
//! guest's output: transmitq chain ──► Output::offer ──► all taken? used : later, from where it stopped
//! ```
//!
//! Input waits until the driver has looked at the size that it is told of when it starts. Linux gives
//! buffers for input earlier than it has somewhere to put it, and throws away what comes in between; it
//! looks at the size when its port is complete.
//!
//! Linux waits for each piece of output to be taken, in a loop and with interrupts off: a host that reads
//! slowly makes it wait, as a slow serial line would.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use self::shared::Shared;
use self::worker::Worker;
use super::{ActivateError, Features, Lane, VirtioDevice, VirtioInterrupt, VirtioKind, read_from};
use crate::console::{Output, Receiver};

mod shared;
#[cfg(test)]
mod tests;
mod worker;

pub use self::shared::ConsoleControl;

/// §5.3.3: the configuration space has the console's size.
const F_SIZE: Features = Features::from_bits_retain(1 << 0);
/// §5.3.3: the driver can write characters before it has a queue.
const F_EMERG_WRITE: Features = Features::from_bits_retain(1 << 2);

/// Buffers for input, and pieces of output under way. Linux fills the first queue with pages.
const QUEUE_SIZES: [u16; 2] = [16, 64];

/// What comes behind `cols` and `rows` in `struct virtio_console_config`, §5.3.4.
const SIZE_END: u64 = 4;
/// `emerg_wr` in `struct virtio_console_config`, §5.3.4.
const EMERG_WR: u64 = 8;

/// A console device. Owned by its transport.
pub struct Console {
    shared: Arc<Shared>,
    output: Arc<dyn Output>,
}

impl Console {
    /// A console that says what its guest says to `output`. Its size is unknown.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn new(output: Arc<dyn Output>) -> io::Result<Self> {
        Ok(Self {
            shared: Arc::new(Shared::new()?),
            output,
        })
    }

    /// What takes the user's input.
    #[must_use]
    pub fn receiver(&self) -> Arc<dyn Receiver> {
        self.shared.clone()
    }

    /// What controls this console while its guest runs.
    #[must_use]
    pub fn control(&self) -> ConsoleControl {
        ConsoleControl::new(self.shared.clone())
    }
}

impl VirtioDevice for Console {
    fn kind(&self) -> VirtioKind {
        VirtioKind::Console
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> Features {
        Features::VERSION_1 | Features::INDIRECT_DESC | Features::EVENT_IDX | F_SIZE | F_EMERG_WRITE
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        if offset < SIZE_END {
            self.shared.listen();
        }
        // cols and rows; the ports of a feature that is not offered, and emerg_wr, read as zeroes.
        let bytes = self.shared.size.load(Ordering::Acquire).to_le_bytes();
        read_from(bytes, offset, data);
    }

    /// §5.3.4: the low byte of what is written is a character. It has to be taken here and now, on the
    /// vCPU's thread; if there is no room for it, it is lost.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (EMERG_WR, Some(character)) = (offset, data.first()) {
            self.output.offer(&[*character]);
        }
    }

    fn connect(&mut self, interrupt: Arc<dyn VirtioInterrupt>) {
        // Called once, so it is not set yet.
        let _ = self.shared.interrupt.set(interrupt);
    }

    fn activate(&mut self, acked: Features) -> Result<Vec<Lane>, ActivateError> {
        let tells = acked.contains(F_SIZE);
        self.shared.listens.store(!tells, Ordering::Release);
        if tells {
            // Linux reads the size when it is told that it has changed, and not before.
            self.shared.tell_size();
        }
        let worker = Worker::new(self.shared.clone(), self.output.clone());
        Ok(Lane::whole(worker))
    }
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console")
            .field("shared", &self.shared)
            .field("output", &self.output)
            .finish()
    }
}

//! virtio-rng, Virtio 1.2 §5.4: the host kernel's random bytes for the guest's.
//!
//! The device has one queue of buffers to fill and no configuration. A guest that boots has little
//! entropy of its own; with this device it need not wait for any.

mod entropy;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use vm_memory::VolatileMemory;

use super::{
    ActivateError, DeviceFault, Features, Lane, QueueIndex, QueueWorker, Source, VirtioDevice,
    VirtioKind,
};
use crate::io::{Chain, QueueIo};
use crate::rate::{Limiter, RateControl, Throttle};

/// §5.4.2: the one queue.
const QUEUE: QueueIndex = QueueIndex(0);
/// Linux has one request under way.
const QUEUE_SIZE: u16 = 64;
/// The most bytes one request gets. §5.4.6.2 lets the device fill less than it was given; a driver that
/// asks for gigabytes comes again, and the other devices of the I/O thread get their turn in between.
const REQUEST_MAX: usize = 4096;

/// A source of entropy. Owned by its transport.
#[derive(Debug)]
pub struct Rng {
    limiter: Arc<Limiter>,
}

impl Default for Rng {
    /// A source that gives what it is asked for.
    fn default() -> Self {
        Self {
            limiter: Limiter::new(),
        }
    }
}

impl Rng {
    /// Changes the limits on what it gives, also while the device is in use.
    #[must_use]
    pub fn rate_control(&self) -> RateControl {
        RateControl::new([self.limiter.clone()])
    }
}

impl VirtioDevice for Rng {
    fn kind(&self) -> VirtioKind {
        VirtioKind::Entropy
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> Features {
        Features::VERSION_1 | Features::INDIRECT_DESC | Features::EVENT_IDX
    }

    /// §5.4.4: there is none.
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, _acked: Features) -> Result<Vec<Lane>, ActivateError> {
        Ok(Lane::whole(Worker {
            throttle: Throttle::new(&self.limiter)?,
        }))
    }
}

/// The throttle's timer, the only source.
const THROTTLE: u32 = 0;

/// The data path. Owned by one I/O thread.
#[derive(Debug)]
struct Worker {
    throttle: Throttle,
}

impl QueueWorker for Worker {
    fn sources(&self) -> Vec<Source> {
        vec![self.throttle.source(THROTTLE)]
    }

    fn on_kick(&mut self, queue: QueueIndex, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        while self.throttle.admits(queue)? {
            let Some(chain) = io.pop(queue)? else { break };
            let filled = fill(&chain)?;
            self.throttle.charge(filled.into());
            io.complete(queue, chain.head, filled)?;
        }
        Ok(())
    }

    fn on_source(&mut self, _token: u32, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        let left = self.throttle.resume();
        left.into_iter()
            .try_for_each(|queue| self.on_kick(queue, io))
    }
}

/// Fills the buffers of a request, as far as one request gets; returns how many bytes.
fn fill(chain: &Chain<'_>) -> Result<u32, DeviceFault> {
    let malformed = |reason| DeviceFault::Request {
        queue: QUEUE,
        reason,
    };
    // §5.4.6.1.
    if !chain.readable.is_empty() {
        return Err(malformed("a device-readable buffer"));
    }
    let mut filled = 0;
    for buffer in &chain.writable {
        let now = buffer.len().min(REQUEST_MAX - filled);
        let part = buffer
            .get_slice(0, now)
            .map_err(|_| malformed("no slice"))?;
        entropy::fill(&part).map_err(|source| DeviceFault::Host {
            what: "getrandom",
            source,
        })?;
        filled += now;
        if filled == REQUEST_MAX {
            break;
        }
    }
    // At most REQUEST_MAX.
    Ok(u32::try_from(filled).unwrap_or(0))
}

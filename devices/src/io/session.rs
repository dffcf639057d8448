//! One lane of an activated virtio device: its worker, its queues, and the descriptors that wake it.
//!
//! Made by a transport at DRIVER_OK, owned by an I/O thread until the driver resets the device. This is
//! the only event subscriber of virtio, for all device kinds.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::linger::Linger;
use super::{QueueIo, QueueSet, used};
use crate::mem::GuestMemory;
use crate::virtio::{
    DeviceFault, Features, QueueIndex, QueueWorker, Source, VirtioInterrupt, Wake,
};

#[cfg(test)]
mod tests;

/// Event tokens below this are kicks of the queue with that number, those from here on are sources.
const FIRST_SOURCE: u32 = 1 << 16;

fn ring_fault(queue: QueueIndex) -> impl Fn(virtio_queue::Error) -> DeviceFault {
    move |source| DeviceFault::Ring { queue, source }
}

impl From<Wake> for EventSet {
    fn from(wake: Wake) -> Self {
        match wake {
            Wake::Readable => Self::IN,
            Wake::Change => Self::IN | Self::OUT | Self::EDGE_TRIGGERED,
        }
    }
}

/// One lane of an activated device, ready to be handed to an I/O thread.
pub struct Session {
    /// None after a fault.
    worker: Option<Box<dyn QueueWorker>>,
    queues: Vec<Queue>,
    /// One per queue, written by KVM; shared with the transport, which kicks where KVM cannot.
    kicks: Arc<[EventFd]>,
    memory: GuestMemory,
    features: Features,
    interrupt: Arc<dyn VirtioInterrupt>,
    /// Of each queue, how far the used ring was when the driver was last told of it.
    announced: Vec<u16>,
    linger: Linger,
    sources: Vec<Source>,
}

/// What a transport puts into a [`Session`] beside the worker.
#[derive(Debug)]
pub struct SessionParts {
    /// All queues of the device by their index. Those of other lanes, or that the driver does not use,
    /// are not ready.
    pub queues: Vec<Queue>,
    /// One doorbell per queue.
    pub kicks: Arc<[EventFd]>,
    /// Guest memory.
    pub memory: GuestMemory,
    /// What the driver accepted.
    pub features: Features,
    /// The way back to the driver.
    pub interrupt: Arc<dyn VirtioInterrupt>,
}

impl Session {
    /// A session around `worker`.
    #[must_use]
    pub fn new(worker: Box<dyn QueueWorker>, parts: SessionParts) -> Self {
        let SessionParts {
            queues,
            kicks,
            memory,
            features,
            interrupt,
        } = parts;
        let sources = worker.sources();
        Self {
            worker: Some(worker),
            announced: queues.iter().map(Queue::next_used).collect(),
            linger: Linger::new(queues.len()),
            queues,
            kicks,
            memory,
            features,
            interrupt,
            sources,
        }
    }

    /// Runs the worker on one event, then tells the driver of what was completed and sees to it that the
    /// worker is called again when there is more to do. The driver does not kick for `hushed` at the moment.
    fn run(
        &mut self,
        hushed: Option<QueueIndex>,
        step: impl FnOnce(&mut dyn QueueWorker, &mut QueueIo<'_>) -> Result<(), DeviceFault>,
    ) -> Result<(), DeviceFault> {
        let Some(worker) = &mut self.worker else {
            return Ok(());
        };
        let began = Instant::now();
        let mut io = QueueIo::new(&self.memory, &mut self.queues, self.features);
        let outcome = step(worker.as_mut(), &mut io);
        if let Some(queue) = self.linger.after(&io, began, Instant::now) {
            io.come_again(queue);
        }
        let (completed, empty, cut_short) = (io.completed(), io.empty(), io.cut_short());
        io.finish()?;
        // What was completed before a fault is announced all the same.
        self.announce(completed)?;
        outcome?;
        for (index, queue) in (0u16..).map(QueueIndex).zip(self.queues.iter_mut()) {
            // The driver may have filled a queue between its being found empty and this.
            let again = cut_short.contains(index)
                || (empty.contains(index) || hushed == Some(index))
                    && queue
                        .enable_notification(&self.memory)
                        .map_err(ring_fault(index))?;
            if again && let Some(kick) = self.kicks.get(usize::from(index.0)) {
                // A driver that never stops must not starve the other devices of this thread, nor hold
                // up its own reset: come back after they had their turn.
                kick.write(1).map_err(|source| DeviceFault::Host {
                    what: "doorbell",
                    source,
                })?;
            }
        }
        Ok(())
    }

    /// Interrupts the driver for the queues that got chains back, where it wants that.
    fn announce(&mut self, completed: QueueSet) -> Result<(), DeviceFault> {
        let queues = self.queues.iter().zip(&mut self.announced);
        for (index, (queue, announced)) in (0u16..).map(QueueIndex).zip(queues) {
            if !completed.contains(index) {
                continue;
            }
            let before = std::mem::replace(announced, queue.next_used());
            if used::wants_interrupt(queue, &self.memory, before).map_err(ring_fault(index))? {
                self.interrupt
                    .queue(index)
                    .map_err(|source| DeviceFault::Host {
                        what: "interrupt",
                        source,
                    })?;
            }
        }
        Ok(())
    }

    /// The driver kicked `index`: take all there is, without kicks in the meantime.
    fn kicked(&mut self, index: QueueIndex) -> Result<(), DeviceFault> {
        let at = usize::from(index.0);
        let Some(queue) = self.queues.get_mut(at).filter(|queue| queue.ready()) else {
            return Ok(());
        };
        queue
            .disable_notification(&self.memory)
            .map_err(ring_fault(index))?;
        self.run(None, |worker, io| worker.on_kick(index, io))
    }

    /// Something happened to a source.
    fn roused(&mut self, source: u32) -> Result<(), DeviceFault> {
        // A driver that answers what comes for it is done before this is: it need not kick.
        let hushed = self.linger.expected();
        if let Some(index) = hushed
            && let Some(queue) = self.queues.get_mut(usize::from(index.0))
        {
            used::hush(queue, &self.memory).map_err(ring_fault(index))?;
        }
        self.run(hushed, |worker, io| worker.on_source(source, io))
    }

    fn dispatch(&mut self, token: u32) -> Result<(), DeviceFault> {
        match token.checked_sub(FIRST_SOURCE) {
            Some(source) => self.roused(source),
            None => {
                let at = usize::try_from(token).unwrap_or(usize::MAX);
                let (Some(kick), Ok(index)) = (self.kicks.get(at), u16::try_from(token)) else {
                    return Ok(());
                };
                // Non-blocking: a spurious event finds nothing to read.
                let _ = kick.read();
                self.kicked(QueueIndex(index))
            }
        }
    }

    /// Every descriptor this session watches.
    fn events(&self) -> Vec<Events> {
        let kicks = (0u32..).zip(self.kicks.iter()).zip(&self.queues);
        kicks
            .filter(|(_, queue)| queue.ready())
            .map(|((token, kick), _)| Events::with_data(kick, token, EventSet::IN))
            .chain(self.sources.iter().map(|source| {
                let token = FIRST_SOURCE.saturating_add(source.token);
                Events::with_data_raw(source.fd, token, source.wake.into())
            }))
            .collect()
    }

    /// The device stays down until the driver resets it. Its worker goes now: it would not be called again,
    /// whoever waited for it.
    fn fault(&mut self, fault: &DeviceFault, ops: &mut EventOps) {
        log::warn!("virtio device needs reset: {fault}");
        for events in self.events() {
            let _ = ops.remove(events);
        }
        self.worker = None;
        self.interrupt.needs_reset();
    }
}

impl MutEventSubscriber for Session {
    fn init(&mut self, ops: &mut EventOps) {
        for events in self.events() {
            if let Err(error) = ops.add(events) {
                let source = std::io::Error::other(error.to_string());
                return self.fault(
                    &DeviceFault::Host {
                        what: "watching a doorbell",
                        source,
                    },
                    ops,
                );
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if let Err(fault) = self.dispatch(events.data()) {
            self.fault(&fault, ops);
        }
    }
}

impl Drop for Session {
    /// Nothing of a device touches guest memory after its reset.
    fn drop(&mut self) {
        if let Err(fault) = self.run(None, |worker, io| worker.drain(io)) {
            log::debug!("virtio device drained with a fault: {fault}");
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("queues", &self.queues)
            .field("features", &self.features)
            .field("faulted", &self.worker.is_none())
            .finish_non_exhaustive()
    }
}

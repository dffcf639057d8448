//! The data path of a balloon: pages given up go back to the host. Owned by one I/O thread.
//!
//! ```text
//! inflate   page numbers ─► runs ─► discard ─► used      the driver waits for it
//! deflate   page numbers ─────────────────────► used      the pages come back when they are touched
//! reporting buffers that are the free pages ─► discard ─► used
//! stats     an answer ─► published, the buffer kept ─── timer or request ─► used: the next question
//! ```

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use vm_memory::GuestMemoryBackend;

use super::Roles;
use super::control::Shared;
use super::pages::PageList;
use super::statistics::Statistics;
use crate::io::{Chain, QueueIo};
use crate::mem::{GuestSlice, discard};
use crate::virtio::{DeviceFault, QueueIndex, QueueWorker, Source, Wake};

/// Somebody wants statistics.
const ASKED: u32 = 0;
/// The interval is over.
const TIMER: u32 = 1;

/// What a call of the host's is worth of an event's share, whatever its size.
const CALL: u64 = 16 << 10;

/// The worker.
#[derive(Debug)]
pub(super) struct Worker {
    shared: Arc<Shared>,
    roles: Roles,
    list: PageList,
    /// The buffer of the last answer, with which the next is asked for.
    question: Option<u16>,
    back: WayBack,
}

/// The way of memory back to the host.
#[derive(Debug, Default)]
struct WayBack {
    /// The host's refusal has been told.
    refused: bool,
}

impl WayBack {
    fn give(&mut self, slice: &GuestSlice<'_>, io: &mut QueueIo<'_>) {
        io.charge(CALL);
        if let Err(error) = discard(io.memory(), slice)
            && !std::mem::replace(&mut self.refused, true)
        {
            log::warn!("balloon: the host does not take memory back: {error}");
        }
    }
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, roles: Roles) -> Self {
        Self {
            shared,
            roles,
            list: PageList::new(),
            question: None,
            back: WayBack::default(),
        }
    }

    /// §5.5.6.1: the driver gives pages up. Numbers beyond guest memory are nobody's pages.
    fn inflate(&mut self, chain: &Chain<'_>, io: &mut QueueIo<'_>) {
        for run in self.list.runs(&chain.readable) {
            let len = usize::try_from(run.len).unwrap_or(usize::MAX);
            let slices = GuestMemoryBackend::get_slices(io.memory(), run.start, len);
            for slice in slices.map_while(Result::ok) {
                self.back.give(&slice, io);
            }
        }
    }

    /// §5.5.6.7: the buffers are free pages. If the driver expects to find them filled with something
    /// other than zeroes, they must stay.
    fn reported(&mut self, chain: &Chain<'_>, io: &mut QueueIo<'_>) {
        if self.roles.poison && self.shared.poison.load(Ordering::Acquire) != 0 {
            return;
        }
        for slice in &chain.writable {
            self.back.give(slice, io);
        }
    }

    /// §5.5.6.3: the driver's statistics, in a buffer that is kept until the next are wanted.
    fn answered(
        &mut self,
        queue: QueueIndex,
        chain: &Chain<'_>,
        io: &mut QueueIo<'_>,
    ) -> Result<(), DeviceFault> {
        self.shared
            .publish(Statistics::read(&chain.readable, Instant::now()));
        // A driver has one such buffer; one that sends more gets the older back.
        match self.question.replace(chain.head) {
            Some(older) => io.complete(queue, older, 0),
            None => Ok(()),
        }
    }

    fn ask(&mut self, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        match (self.roles.stats, self.question.take()) {
            (Some(queue), Some(head)) => io.complete(queue, head, 0),
            // The driver is about to answer anyway, or never will.
            _ => Ok(()),
        }
    }
}

impl QueueWorker for Worker {
    fn sources(&self) -> Vec<Source> {
        let source = |fd, token| Source {
            fd,
            token,
            wake: Wake::Readable,
        };
        vec![
            source(self.shared.ask.as_raw_fd(), ASKED),
            source(self.shared.timer.as_raw_fd(), TIMER),
        ]
    }

    fn on_kick(&mut self, queue: QueueIndex, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        while let Some(chain) = io.pop(queue)? {
            if self.roles.stats == Some(queue) {
                self.answered(queue, &chain, io)?;
                continue;
            }
            if queue == Roles::INFLATE {
                self.inflate(&chain, io);
            } else if self.roles.is_reporting(queue) {
                self.reported(&chain, io);
            }
            io.complete(queue, chain.head, 0)?;
        }
        Ok(())
    }

    fn on_source(&mut self, token: u32, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        // Both are non-blocking: where there is nothing to read, the event was spurious.
        match token {
            ASKED if self.shared.ask.read().is_ok() => self.ask(io),
            TIMER if rustix::io::read(&self.shared.timer, &mut [0; 8]).is_ok() => self.ask(io),
            _ => Ok(()),
        }
    }
}

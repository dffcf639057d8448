//! The data path: flushes, §5.19.6. Each is one request to sync the file, which the host works on while
//! the I/O thread does other things. Owned by one I/O thread.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vmm_sys_util::epoll::Epoll;

use super::{QUEUE, QUEUE_SIZE, Window};
use crate::io::{Buffers, Chain, QueueIo};
use crate::iovec::{self, HeldBuffers, IoVec};
use crate::mem::GuestSlice;
use crate::virtio::block::disk::{DiskLane, DiskOp, Progress, Tag, watched};
use crate::virtio::errors::ErrorLog;
use crate::virtio::{DeviceFault, QueueIndex, QueueWorker, Source, Wake};

/// §5.19.6, VIRTIO_PMEM_REQ_TYPE_FLUSH.
const FLUSH: [u8; 4] = 0u32.to_le_bytes();
/// §5.19.6: what a request is answered with.
const DONE: [u8; 4] = 0i32.to_le_bytes();
/// §5.19.7: -1 for a failure.
const FAILED: [u8; 4] = (-1i32).to_le_bytes();

/// A flush that the host has.
#[derive(Debug)]
struct Flight {
    head: u16,
    /// Room for the answer.
    answer: HeldBuffers,
}

/// The worker of the queue.
pub(super) struct Worker {
    window: Arc<Window>,
    name: Arc<str>,
    /// Opened with the first flush, by the thread that uses it.
    lane: Option<Box<dyn DiskLane>>,
    /// What the lane wakes.
    wake: Epoll,
    /// What is under way; its index is the tag.
    flights: Vec<Option<Flight>>,
    errors: ErrorLog,
}

impl Worker {
    pub(super) fn new(window: Arc<Window>, name: Arc<str>) -> io::Result<Self> {
        Ok(Self {
            window,
            name,
            lane: None,
            wake: Epoll::new()?,
            flights: (0..QUEUE_SIZE).map(|_| None).collect(),
            errors: ErrorLog::default(),
        })
    }

    fn lane(&mut self) -> Result<&mut dyn DiskLane, DeviceFault> {
        if self.lane.is_none() {
            let lane = self.window.file.lane(QUEUE_SIZE);
            let opened = lane.and_then(|lane| watched(lane, &self.wake));
            self.lane = Some(opened.map_err(|source| DeviceFault::Host {
                what: "opening the file",
                source,
            })?);
        }
        match &mut self.lane {
            Some(lane) => Ok(lane.as_mut()),
            None => unreachable!("just opened"),
        }
    }

    /// Starts the request in `chain`.
    fn serve(&mut self, chain: &Chain<'_>, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        let (kind, answer) = parse(chain)?;
        if kind != FLUSH {
            answer_with(FAILED, &answer);
            return io.complete(QUEUE, chain.head, answered(FAILED));
        }
        // There are as many places as the queue can have heads.
        let free = self.flights.iter().position(Option::is_none);
        let tag = free.and_then(|free| u32::try_from(free).ok());
        let tag = tag.ok_or_else(|| malformed("a descriptor is used by two requests"))?;
        let mut held = HeldBuffers::default();
        // SAFETY: the slices are of a chain of this guest memory.
        unsafe { held.push(io.memory(), &answer) };
        self.flights[tag as usize] = Some(Flight {
            head: chain.head,
            answer: held,
        });
        match self.lane()?.submit(Tag(tag), DiskOp::Flush) {
            Progress::Done(result) => self.land(Tag(tag), result, io),
            Progress::Pending => Ok(()),
        }
    }

    /// Starts what was submitted, and answers what has ended.
    fn settle(&mut self, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        loop {
            let Some(lane) = &mut self.lane else {
                return Ok(());
            };
            lane.start();
            let done = lane.completed(false);
            if done.is_empty() {
                return Ok(());
            }
            self.land_all(done, io)?;
        }
    }

    /// Every flush leaves its place, also those behind one that cannot be answered.
    fn land_all(
        &mut self,
        done: Vec<(Tag, io::Result<()>)>,
        io: &mut QueueIo<'_>,
    ) -> Result<(), DeviceFault> {
        let landed = done
            .into_iter()
            .map(|(tag, result)| self.land(tag, result, io));
        landed.fold(Ok(()), Result::and)
    }

    /// Answers the flush with `tag`.
    fn land(
        &mut self,
        tag: Tag,
        result: io::Result<()>,
        io: &mut QueueIo<'_>,
    ) -> Result<(), DeviceFault> {
        let Some(flight) = self.flights.get_mut(tag.0 as usize).and_then(Option::take) else {
            return Ok(());
        };
        let answer = match result {
            Ok(()) => DONE,
            Err(error) => {
                self.errors
                    .note(format_args!("pmem {}", self.name), "flush", &error);
                FAILED
            }
        };
        iovec::scatter(flight.answer.as_slice(), 0, &answer);
        io.complete(QUEUE, flight.head, answered(answer))
    }

    fn is_busy(&self) -> bool {
        self.flights.iter().any(Option::is_some)
    }
}

impl QueueWorker for Worker {
    fn sources(&self) -> Vec<Source> {
        vec![Source {
            fd: self.wake.as_raw_fd(),
            token: 0,
            wake: Wake::Readable,
        }]
    }

    fn on_kick(&mut self, queue: QueueIndex, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        while let Some(chain) = io.pop(queue)? {
            self.serve(&chain, io)?;
        }
        self.settle(io)
    }

    fn on_source(&mut self, _token: u32, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        self.settle(io)
    }

    fn drain(&mut self, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        while self.is_busy() {
            let Some(lane) = &mut self.lane else { break };
            let done = lane.completed(true);
            if done.is_empty() {
                return Err(DeviceFault::Host {
                    what: "waiting for the file",
                    source: io::Error::other("a flush was lost"),
                });
            }
            self.land_all(done, io)?;
        }
        Ok(())
    }
}

fn malformed(reason: &'static str) -> DeviceFault {
    DeviceFault::Request {
        queue: QUEUE,
        reason,
    }
}

/// The type of a request and the room for its answer, however its buffers are cut.
fn parse<'m>(chain: &Chain<'m>) -> Result<([u8; 4], Buffers<'m>), DeviceFault> {
    let readable: Vec<_> = chain.readable.iter().map(IoVec::new).collect();
    let mut kind = [0; 4];
    if iovec::gather(&readable, 0, &mut kind) < kind.len() {
        return Err(malformed("no request type"));
    }
    let mut writable: Vec<_> = chain.writable.iter().map(IoVec::new).collect();
    let writable = iovec::truncate(&mut writable, DONE.len());
    if iovec::total(writable) < DONE.len() {
        return Err(malformed("no room for an answer"));
    }
    Ok((kind, writable.iter().map(IoVec::slice).collect()))
}

fn answer_with(answer: [u8; 4], room: &[GuestSlice<'_>]) {
    let room: Vec<_> = room.iter().map(IoVec::new).collect();
    iovec::scatter(&room, 0, &answer);
}

/// Bytes that an answer has.
fn answered(answer: [u8; 4]) -> u32 {
    // Four.
    u32::try_from(answer.len()).unwrap_or(0)
}

//! The data path of a block device: requests from the ring to the disk, answers back.
//!
//! One for each lane of the device, owned by one I/O thread. The disk may finish an operation at once or later; either way the request
//! sits in a table of fixed size under the [`Tag`] the disk knows it by, and is answered from there:
//!
//! ```text
//! chain ─parse─► Request ─► Flight[tag] ─submit─► Done ───────────────► status byte, used ring
//!                                │  ▲              Pending ─completed()─►     ▲
//!                                └──┴── next segment of a discard ◄─┘    (or) ┘
//! ```

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use vm_memory::Bytes;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::disk::{Disk, DiskLane, DiskOp, Progress, Tag};
use super::request::{Action, Clear, ID_BYTES, Range, Request, Rules, Status, parse};
use crate::io::{Chain, QueueIo, QueueSet};
use crate::iovec::{self, IoVec};
use crate::mem::{GuestAddress, GuestMemory, GuestSlice};
use crate::rate::Throttle;
use crate::virtio::errors::ErrorLog;
use crate::virtio::{DeviceFault, QueueIndex, QueueWorker, Source, Wake};

/// Something happened to the disk.
const DISK: u32 = 0;
/// More requests may pass.
const THROTTLE: u32 = 1;

/// A request that the disk has.
#[derive(Debug)]
struct Flight {
    queue: QueueIndex,
    head: u16,
    status: GuestAddress,
    room: u32,
    /// Bytes of the room that are filled when all goes well.
    fills: u32,
    /// For the log.
    what: &'static str,
    /// Segments still to do, last one first.
    rest: Vec<Range>,
}

/// What the face hands to each of its workers.
#[derive(Debug, Clone)]
pub(super) struct Work {
    /// The disk.
    pub(super) disk: Arc<dyn Disk>,
    /// What it is called.
    pub(super) id: Arc<str>,
    /// What is served.
    pub(super) rules: Rules,
    /// Without a flush request the driver takes every finished write for durable: §5.2.6.2.
    pub(super) through: bool,
    /// The face's, to see whether there are workers from before a reset.
    pub(super) _alive: Arc<()>,
}

/// The worker of some of the queues.
#[derive(Debug)]
pub(super) struct Worker {
    queues: QueueSet,
    depth: u16,
    /// Opened with the first event: by the thread that will use it, and after the driver was told that its
    /// device is ready.
    lane: Option<Box<dyn DiskLane>>,
    /// What the lane wakes.
    wake: Epoll,
    table: Table,
}

/// Everything but the lane, so that the lane can be used while this changes.
#[derive(Debug)]
struct Table {
    work: Work,
    throttle: Throttle,
    /// What a disk has; its index is the tag.
    flights: Vec<Option<Flight>>,
    /// Tags without a flight.
    free: Vec<Tag>,
    errors: ErrorLog,
}

impl Worker {
    /// A worker that serves `queues` as fast as `throttle` lets it, with at most `depth` requests under way
    /// in all of them.
    ///
    /// # Errors
    /// No descriptors are left.
    pub(super) fn new(
        work: Work,
        queues: QueueSet,
        throttle: Throttle,
        depth: u16,
    ) -> io::Result<Self> {
        Ok(Self {
            queues,
            depth,
            lane: None,
            wake: Epoll::new()?,
            table: Table {
                work,
                throttle,
                flights: (0..depth).map(|_| None).collect(),
                free: (0..u32::from(depth)).rev().map(Tag).collect(),
                errors: ErrorLog::default(),
            },
        })
    }

    /// The lane, and what goes through it.
    fn open(&mut self) -> Result<(&mut dyn DiskLane, &mut Table), DeviceFault> {
        if self.lane.is_none() {
            let opened = self.table.work.disk.lane(self.depth).and_then(|lane| {
                if let Some(event) = lane.completion_event() {
                    watch(&self.wake, event)?;
                }
                Ok(lane)
            });
            self.lane = Some(opened.map_err(|source| DeviceFault::Host {
                what: "opening the disk",
                source,
            })?);
        }
        match &mut self.lane {
            Some(lane) => Ok((lane.as_mut(), &mut self.table)),
            None => unreachable!("just opened"),
        }
    }
}

fn watch(wake: &Epoll, fd: RawFd) -> io::Result<()> {
    wake.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0))
}

impl QueueWorker for Worker {
    fn sources(&self) -> Vec<Source> {
        let disk = Source {
            fd: self.wake.as_raw_fd(),
            token: DISK,
            wake: Wake::Readable,
        };
        vec![disk, self.table.throttle.source(THROTTLE)]
    }

    fn on_kick(&mut self, queue: QueueIndex, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        if !self.queues.contains(queue) {
            return Ok(());
        }
        let (lane, table) = self.open()?;
        while table.throttle.admits(queue)? {
            let Some(chain) = io.pop(queue)? else { break };
            table.serve(lane, queue, chain, io)?;
        }
        table.settle(lane, io)
    }

    fn on_source(&mut self, token: u32, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        if token == THROTTLE {
            let left = self.table.throttle.resume();
            return left
                .into_iter()
                .try_for_each(|queue| self.on_kick(queue, io));
        }
        match &mut self.lane {
            Some(lane) => self.table.settle(lane.as_mut(), io),
            None => Ok(()),
        }
    }

    fn drain(&mut self, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        let Some(lane) = &mut self.lane else {
            return Ok(());
        };
        while self.table.is_busy() {
            let done = lane.completed(true);
            if done.is_empty() {
                return Err(DeviceFault::Host {
                    what: "waiting for the disk",
                    source: lost_request(),
                });
            }
            self.table.advance_all(lane.as_mut(), done, io)?;
        }
        Ok(())
    }
}

/// A worker may go without being drained (after a fault). What the disk still has then goes unanswered,
/// but must have let go of guest memory.
impl Drop for Worker {
    fn drop(&mut self) {
        let Some(lane) = &mut self.lane else { return };
        while self.table.is_busy() {
            let done = lane.completed(true);
            if done.is_empty() {
                log::error!("disk {}: {}", self.table.work.id, lost_request());
                return;
            }
            for (tag, _) in done {
                self.table.land(tag);
            }
        }
    }
}

fn lost_request() -> io::Error {
    io::Error::other("the disk lost a request")
}

impl Table {
    fn is_busy(&self) -> bool {
        self.free.len() < self.flights.len()
    }

    /// Starts what was submitted, and answers what has ended.
    fn settle(&mut self, lane: &mut dyn DiskLane, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        loop {
            lane.start();
            let done = lane.completed(false);
            if done.is_empty() {
                return Ok(());
            }
            self.advance_all(lane, done, io)?;
        }
    }

    /// Starts the request in `chain`, and ends it if that is possible at once.
    fn serve(
        &mut self,
        lane: &mut dyn DiskLane,
        queue: QueueIndex,
        chain: Chain<'_>,
        io: &mut QueueIo<'_>,
    ) -> Result<(), DeviceFault> {
        let Request {
            head,
            status,
            room,
            action,
        } = parse(chain, &self.work.rules).map_err(|malformed| fault(queue, malformed.0))?;
        self.throttle.charge(action.bytes());
        let mut flight = Flight {
            queue,
            head,
            status,
            room,
            fills: 0,
            what: "flush",
            rest: Vec::new(),
        };
        match action {
            Action::Refuse(status) => flight.land(status, io),
            Action::GetId(buffers) => {
                flight.fills = put_id(&self.work.id, &buffers);
                flight.land(Status::Ok, io)
            }
            Action::Read(offset, buffers) => {
                (flight.what, flight.fills) = ("read", room);
                let op = DiskOp::Read {
                    offset,
                    buffers: &buffers,
                };
                self.launch(lane, flight, op, io)
            }
            Action::Write(offset, buffers) => {
                flight.what = "write";
                let op = DiskOp::Write {
                    offset,
                    buffers: &buffers,
                    through: self.work.through,
                };
                self.launch(lane, flight, op, io)
            }
            Action::Flush => self.launch(lane, flight, DiskOp::Flush, io),
            Action::Clear(mut ranges) => {
                // Where the host has no better way, zeroes are written.
                io.charge(ranges.iter().map(|range| range.len).sum());
                ranges.reverse();
                let Some(first) = ranges.pop() else {
                    return flight.land(Status::Ok, io);
                };
                flight.what = match first.clear {
                    Clear::Discard => "discard",
                    Clear::Zero { .. } => "write-zeroes",
                };
                flight.rest = ranges;
                self.launch(lane, flight, clear_op(first, self.work.through), io)
            }
        }
    }

    /// Hands the first operation of `flight` to the disk.
    fn launch(
        &mut self,
        lane: &mut dyn DiskLane,
        flight: Flight,
        op: DiskOp<'_>,
        io: &mut QueueIo<'_>,
    ) -> Result<(), DeviceFault> {
        // There are as many tags as the queue can have heads: a driver that exhausts them makes a chain
        // available again that it does not own.
        let tag = self
            .free
            .pop()
            .ok_or_else(|| fault(flight.queue, "a descriptor is used by two requests"))?;
        self.flights[tag.0 as usize] = Some(flight);
        match lane.submit(tag, op) {
            Progress::Done(result) => self.advance(lane, tag, result, io),
            Progress::Pending => Ok(()),
        }
    }

    /// Operations ended. After a fault the rest of them is only taken off the table: the disk does not
    /// have them any more, and there is nobody to answer.
    fn advance_all(
        &mut self,
        lane: &mut dyn DiskLane,
        done: Vec<(Tag, io::Result<()>)>,
        io: &mut QueueIo<'_>,
    ) -> Result<(), DeviceFault> {
        let mut outcome = Ok(());
        for (tag, result) in done {
            if outcome.is_ok() {
                outcome = self.advance(lane, tag, result, io);
            } else {
                self.land(tag);
            }
        }
        outcome
    }

    /// An operation of flight `tag` ended: starts the next one, or answers the request.
    fn advance(
        &mut self,
        lane: &mut dyn DiskLane,
        tag: Tag,
        mut result: io::Result<()>,
        io: &mut QueueIo<'_>,
    ) -> Result<(), DeviceFault> {
        loop {
            if let (Ok(()), Some(range)) = (&result, self.next_range(tag)) {
                match lane.submit(tag, clear_op(range, self.work.through)) {
                    Progress::Done(next) => result = next,
                    Progress::Pending => return Ok(()),
                }
                continue;
            }
            let Some(flight) = self.land(tag) else {
                log::error!(
                    "disk {}: finished a request that it did not have",
                    self.work.id
                );
                return Ok(());
            };
            return match result {
                Ok(()) => flight.land(Status::Ok, io),
                Err(error) => {
                    self.errors
                        .note(format_args!("disk {}", self.work.id), flight.what, &error);
                    Flight { fills: 0, ..flight }.land(Status::IoErr, io)
                }
            };
        }
    }

    fn next_range(&mut self, tag: Tag) -> Option<Range> {
        self.flights.get_mut(tag.0 as usize)?.as_mut()?.rest.pop()
    }

    /// Takes the flight out of the table.
    fn land(&mut self, tag: Tag) -> Option<Flight> {
        let flight = self.flights.get_mut(tag.0 as usize)?.take()?;
        self.free.push(tag);
        Some(flight)
    }
}

impl Flight {
    /// Answers the request.
    ///
    /// The used length promises that this many bytes *from the start* of the writable buffers were
    /// written (§2.7.8.2), so the status byte counts only where everything before it was filled.
    fn land(self, status: Status, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        put_status(io.memory(), self.status, status)
            .map_err(|_| fault(self.queue, "the status byte lies outside guest memory"))?;
        let len = if self.fills == self.room {
            self.fills.saturating_add(1)
        } else {
            self.fills
        };
        io.complete(self.queue, self.head, len)
    }
}

fn clear_op(range: Range, through: bool) -> DiskOp<'static> {
    let Range { offset, len, clear } = range;
    match clear {
        Clear::Discard => DiskOp::Discard { offset, len },
        Clear::Zero { unmap } => DiskOp::WriteZeroes {
            offset,
            len,
            unmap,
            through,
        },
    }
}

/// Writes the disk's name, padded with zeroes, as far as there is room; returns how many bytes.
fn put_id(id: &str, buffers: &[GuestSlice<'_>]) -> u32 {
    let mut name = [0; ID_BYTES];
    for (to, from) in name.iter_mut().zip(id.bytes()) {
        *to = from;
    }
    let buffers: Vec<_> = buffers.iter().map(IoVec::new).collect();
    // At most ID_BYTES.
    u32::try_from(iovec::scatter(&buffers, 0, &name)).unwrap_or(0)
}

fn put_status(
    memory: &GuestMemory,
    at: GuestAddress,
    status: Status,
) -> Result<(), vm_memory::GuestMemoryError> {
    memory.write_obj(status as u8, at)
}

fn fault(queue: QueueIndex, reason: &'static str) -> DeviceFault {
    DeviceFault::Request { queue, reason }
}

//! The data path of a block device: requests from the ring to the disk, answers back.
//!
//! Owned by one I/O thread. The disk may finish an operation at once or later; either way the request
//! sits in a table of fixed size under the [`Tag`] the disk knows it by, and is answered from there:
//!
//! ```text
//! chain ─parse─► Request ─► Flight[tag] ─submit─► Done ───────────────► status byte, used ring
//!                                │  ▲              Pending ─completed()─►     ▲
//!                                └──┴── next segment of a discard ◄─┘    (or) ┘
//! ```

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::Bytes;

use super::disk::{Disk, DiskOp, Progress, Tag};
use super::errors::ErrorLog;
use super::request::{Action, Clear, ID_BYTES, Range, Request, Rules, Status, parse};
use crate::io::{Chain, QueueIo};
use crate::mem::{GuestAddress, GuestMemory, GuestSlice};
use crate::virtio::{DeviceFault, QueueIndex, QueueWorker, Source, Wake};

/// The one request queue.
pub(super) const QUEUE: QueueIndex = QueueIndex(0);
/// The disk's completion event.
const COMPLETION: u32 = 0;

/// A disk as a face and its worker share it: the worker uses it, the face keeps it for the next worker.
/// They never wait for each other, since the face does not lock it while there is a worker.
pub(super) type SharedDisk = Arc<Mutex<Box<dyn Disk>>>;

/// A request that the disk has.
#[derive(Debug)]
struct Flight {
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

/// The worker.
#[derive(Debug)]
pub(super) struct Worker {
    disk: SharedDisk,
    lane: Lane,
}

/// Everything but the disk, so that the disk can be locked while this changes.
#[derive(Debug)]
struct Lane {
    rules: Rules,
    /// Without a flush request the driver takes every finished write for durable: §5.2.6.2.
    through: bool,
    /// What a disk has; its index is the tag.
    flights: Vec<Option<Flight>>,
    /// Tags without a flight.
    free: Vec<Tag>,
    errors: ErrorLog,
}

impl Worker {
    /// A worker that serves `disk` by `rules`, with at most `depth` requests under way.
    pub(super) fn new(disk: SharedDisk, rules: Rules, through: bool, depth: u16) -> Self {
        Self {
            disk,
            lane: Lane {
                rules,
                through,
                flights: (0..depth).map(|_| None).collect(),
                free: (0..u32::from(depth)).rev().map(Tag).collect(),
                errors: ErrorLog::default(),
            },
        }
    }
}

/// The disk, even if a thread panicked with it: its own state is consistent between operations.
fn lock(disk: &SharedDisk) -> MutexGuard<'_, Box<dyn Disk>> {
    disk.lock().unwrap_or_else(PoisonError::into_inner)
}

impl QueueWorker for Worker {
    fn sources(&self) -> Vec<Source> {
        let event = lock(&self.disk).completion_event();
        let source = |fd| Source {
            fd,
            token: COMPLETION,
            wake: Wake::Readable,
        };
        event.map(source).into_iter().collect()
    }

    fn on_kick(&mut self, queue: QueueIndex, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        if queue != QUEUE {
            return Ok(());
        }
        let mut disk = lock(&self.disk);
        while let Some(chain) = io.pop(QUEUE)? {
            self.lane.serve(disk.as_mut(), chain, io)?;
        }
        Ok(())
    }

    fn on_source(&mut self, _token: u32, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        let mut disk = lock(&self.disk);
        let done = disk.completed(false);
        self.lane.advance_all(disk.as_mut(), done, io)
    }

    fn drain(&mut self, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        let mut disk = lock(&self.disk);
        while self.lane.is_busy() {
            let done = disk.completed(true);
            if done.is_empty() {
                return Err(DeviceFault::Host {
                    what: "waiting for the disk",
                    source: lost_request(),
                });
            }
            self.lane.advance_all(disk.as_mut(), done, io)?;
        }
        Ok(())
    }
}

/// A worker may go without being drained (after a fault). What the disk still has then goes unanswered,
/// but must have let go of guest memory, and its tags must not come back to the next worker.
impl Drop for Worker {
    fn drop(&mut self) {
        let mut disk = lock(&self.disk);
        while self.lane.is_busy() {
            let done = disk.completed(true);
            if done.is_empty() {
                log::error!("disk {}: {}", disk.id(), lost_request());
                return;
            }
            for (tag, _) in done {
                self.lane.land(tag);
            }
        }
    }
}

fn lost_request() -> io::Error {
    io::Error::other("the disk lost a request")
}

impl Lane {
    fn is_busy(&self) -> bool {
        self.free.len() < self.flights.len()
    }

    /// Starts the request in `chain`, and ends it if that is possible at once.
    fn serve(
        &mut self,
        disk: &mut dyn Disk,
        chain: Chain<'_>,
        io: &mut QueueIo<'_>,
    ) -> Result<(), DeviceFault> {
        let Request {
            head,
            status,
            room,
            action,
        } = parse(chain, &self.rules).map_err(|malformed| fault(malformed.0))?;
        let mut flight = Flight {
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
                flight.fills = put_id(disk.id(), &buffers);
                flight.land(Status::Ok, io)
            }
            Action::Read(offset, buffers) => {
                (flight.what, flight.fills) = ("read", room);
                let op = DiskOp::Read {
                    offset,
                    buffers: &buffers,
                };
                self.launch(disk, flight, op, io)
            }
            Action::Write(offset, buffers) => {
                flight.what = "write";
                let op = DiskOp::Write {
                    offset,
                    buffers: &buffers,
                    through: self.through,
                };
                self.launch(disk, flight, op, io)
            }
            Action::Flush => self.launch(disk, flight, DiskOp::Flush, io),
            Action::Clear(mut ranges) => {
                ranges.reverse();
                let Some(first) = ranges.pop() else {
                    return flight.land(Status::Ok, io);
                };
                flight.what = match first.clear {
                    Clear::Discard => "discard",
                    Clear::Zero { .. } => "write-zeroes",
                };
                flight.rest = ranges;
                self.launch(disk, flight, clear_op(first, self.through), io)
            }
        }
    }

    /// Hands the first operation of `flight` to the disk.
    fn launch(
        &mut self,
        disk: &mut dyn Disk,
        flight: Flight,
        op: DiskOp<'_>,
        io: &mut QueueIo<'_>,
    ) -> Result<(), DeviceFault> {
        // There are as many tags as the queue can have heads: a driver that exhausts them makes a chain
        // available again that it does not own.
        let tag = self
            .free
            .pop()
            .ok_or_else(|| fault("a descriptor is used by two requests"))?;
        self.flights[tag.0 as usize] = Some(flight);
        match disk.submit(tag, op) {
            Progress::Done(result) => self.advance(disk, tag, result, io),
            Progress::Pending => Ok(()),
        }
    }

    /// Operations ended. After a fault the rest of them is only taken off the table: the disk does not
    /// have them any more, and there is nobody to answer.
    fn advance_all(
        &mut self,
        disk: &mut dyn Disk,
        done: Vec<(Tag, io::Result<()>)>,
        io: &mut QueueIo<'_>,
    ) -> Result<(), DeviceFault> {
        let mut outcome = Ok(());
        for (tag, result) in done {
            if outcome.is_ok() {
                outcome = self.advance(disk, tag, result, io);
            } else {
                self.land(tag);
            }
        }
        outcome
    }

    /// An operation of flight `tag` ended: starts the next one, or answers the request.
    fn advance(
        &mut self,
        disk: &mut dyn Disk,
        tag: Tag,
        mut result: io::Result<()>,
        io: &mut QueueIo<'_>,
    ) -> Result<(), DeviceFault> {
        loop {
            if let (Ok(()), Some(range)) = (&result, self.next_range(tag)) {
                match disk.submit(tag, clear_op(range, self.through)) {
                    Progress::Done(next) => result = next,
                    Progress::Pending => return Ok(()),
                }
                continue;
            }
            let Some(flight) = self.land(tag) else {
                log::error!(
                    "disk {}: finished a request that it did not have",
                    disk.id()
                );
                return Ok(());
            };
            return match result {
                Ok(()) => flight.land(Status::Ok, io),
                Err(error) => {
                    self.errors.note(disk.id(), flight.what, &error);
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
        put_status(io.memory(), self.status, status)?;
        let len = if self.fills == self.room {
            self.fills.saturating_add(1)
        } else {
            self.fills
        };
        io.complete(QUEUE, self.head, len)
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
    let mut rest = &name[..];
    let mut written = 0;
    for buffer in buffers {
        let (now, later) = rest.split_at(rest.len().min(buffer.len()));
        buffer.copy_from(now);
        rest = later;
        written += now.len();
    }
    // At most ID_BYTES.
    u32::try_from(written).unwrap_or(0)
}

fn put_status(memory: &GuestMemory, at: GuestAddress, status: Status) -> Result<(), DeviceFault> {
    memory
        .write_obj(status as u8, at)
        .map_err(|_| fault("the status byte lies outside guest memory"))
}

fn fault(reason: &'static str) -> DeviceFault {
    DeviceFault::Request {
        queue: QUEUE,
        reason,
    }
}

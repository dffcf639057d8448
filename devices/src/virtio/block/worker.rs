//! The data path of a block device: requests from the ring to the disk, answers back.
//!
//! One for each lane of the device, owned by one I/O thread. The disk may finish an operation at once or later; either way the request
//! sits in a table of fixed size under the [`Tag`] the disk knows it by, and is answered from there:
//!
//! The lane is opened when there is a first request for it, and closed when a control has the requests wait:
//! they stay in their queues then, and the image may be another when it is opened again.
//!
//! ```text
//! chain ─parse─► Request ─► Flight[tag] ─submit─► Done ───────────────► status byte, used ring
//!                                │  ▲              Pending ─completed()─►     ▲
//!                                └──┴── next segment of a discard ◄─┘    (or) ┘
//! ```
//!
//! A request that the host fails is answered so, or kept by its chain's head and begun anew when the disk
//! goes on.

use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use vmm_sys_util::epoll::Epoll;

use super::disk::{DiskLane, DiskOp, Progress, SECTOR, Tag, watched};
use super::flight::{Flight, clear_op, fault, put_id};
use super::request::{Action, Range, Request, Rules, Status, parse};
use super::shared::Seat;
use super::statistics::Operation;
use crate::io::{Chain, QueueIo, QueueSet};
use crate::rate::Throttle;
use crate::virtio::errors::ErrorLog;
use crate::virtio::{DeviceFault, QueueIndex, QueueWorker, Source, Wake};

/// Something happened to the disk.
const DISK: u32 = 0;
/// More requests may pass.
const THROTTLE: u32 = 1;
/// Requests are to wait, or to go on.
const BELL: u32 = 2;

/// What the face hands to each of its workers.
#[derive(Debug, Clone)]
pub(super) struct Work {
    /// What is served, but for the size of the disk, which may change.
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
    /// Somebody waits until nothing is under way.
    called: bool,
    table: Table,
}

/// Everything but the lane, so that the lane can be used while this changes.
#[derive(Debug)]
struct Table {
    work: Work,
    seat: Seat,
    /// Which of the disk's tallies is this lane's.
    tally: usize,
    throttle: Throttle,
    /// When what is begun now was taken, and what ends now has ended.
    now: Instant,
    /// Requests that the host has failed, by their chains, which are begun anew when the disk goes on. Never
    /// more than a queue has.
    kept: Vec<(QueueIndex, u16)>,
    /// What a disk has; its index is the tag.
    flights: Vec<Option<Flight>>,
    /// Tags without a flight.
    free: Vec<Tag>,
    errors: ErrorLog,
}

impl Worker {
    /// A worker at `seat` that serves `queues` as fast as `throttle` lets it, with at most `depth` requests
    /// under way in all of them.
    ///
    /// # Errors
    /// No descriptors are left.
    pub(super) fn new(
        work: Work,
        seat: Seat,
        queues: QueueSet,
        throttle: Throttle,
        depth: u16,
    ) -> io::Result<Self> {
        Ok(Self {
            queues,
            depth,
            lane: None,
            wake: Epoll::new()?,
            called: false,
            table: Table {
                work,
                seat,
                tally: queues.iter().next().map_or(0, |first| first.0.into()),
                throttle,
                now: Instant::now(),
                kept: Vec::new(),
                flights: (0..depth).map(|_| None).collect(),
                free: (0..u32::from(depth)).rev().map(Tag).collect(),
                errors: ErrorLog::default(),
            },
        })
    }

    /// The lane, and what goes through it.
    fn open(&mut self) -> Result<(&mut dyn DiskLane, &mut Table), DeviceFault> {
        if self.lane.is_none() {
            let disk = self.table.seat.shared.disk();
            self.table.work.rules.sectors = disk.info().capacity / SECTOR;
            let lane = disk.lane(self.depth);
            let opened = lane.and_then(|lane| watched(lane, &self.wake));
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

    /// Once nothing is under way, says so to whoever waits for that, and lets go of the image.
    fn rest_if_called(&mut self) {
        if self.called && !self.table.is_busy() {
            self.called = false;
            self.lane = None;
            self.table.seat.rest();
        }
    }

    /// The bell has rung.
    fn answer_bell(&mut self, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        // Non-blocking: where there is nothing to read, the event was spurious.
        let _ = self.table.seat.bell.read();
        self.called = self.table.seat.is_held();
        if self.called {
            return Ok(());
        }
        let kept = std::mem::take(&mut self.table.kept);
        if !kept.is_empty() {
            let (lane, table) = self.open()?;
            table.now = Instant::now();
            for (queue, head) in kept {
                let chain = io.again(queue, head)?;
                table.serve(lane, queue, chain, io)?;
            }
            table.settle(lane, io)?;
        }
        let queues: Vec<_> = self
            .queues
            .iter()
            .filter(|queue| io.is_ready(*queue))
            .collect();
        queues
            .into_iter()
            .try_for_each(|queue| self.on_kick(queue, io))
    }
}

impl QueueWorker for Worker {
    fn sources(&self) -> Vec<Source> {
        let disk = Source {
            fd: self.wake.as_raw_fd(),
            token: DISK,
            wake: Wake::Readable,
        };
        let bell = Source {
            fd: self.table.seat.bell.as_raw_fd(),
            token: BELL,
            wake: Wake::Readable,
        };
        vec![disk, self.table.throttle.source(THROTTLE), bell]
    }

    fn on_kick(&mut self, queue: QueueIndex, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        // Those that wait are looked for when the bell rings.
        if !self.queues.contains(queue) || self.table.seat.is_held() {
            return Ok(());
        }
        let (lane, table) = self.open()?;
        table.now = Instant::now();
        while !table.seat.is_held() && table.throttle.admits(queue)? {
            let Some(chain) = io.pop(queue)? else { break };
            table.serve(lane, queue, chain, io)?;
        }
        table.settle(lane, io)?;
        self.rest_if_called();
        Ok(())
    }

    fn on_source(&mut self, token: u32, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        if token == THROTTLE {
            let left = self.table.throttle.resume();
            return left
                .into_iter()
                .try_for_each(|queue| self.on_kick(queue, io));
        }
        if token == BELL {
            self.answer_bell(io)?;
        } else if let Some(lane) = &mut self.lane {
            self.table.settle(lane.as_mut(), io)?;
        }
        self.rest_if_called();
        Ok(())
    }

    fn drain(&mut self, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        // Their driver is done with them.
        self.table.kept.clear();
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
                log::error!("disk {}: {}", self.table.seat.shared.id, lost_request());
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
            operation: Operation::Flush,
            bytes: action.bytes(),
            began: self.now,
            rest: Vec::new(),
        };
        match action {
            Action::Refuse(status) => flight.land(status, io),
            Action::GetId(buffers) => {
                flight.fills = put_id(&self.seat.shared.id, &buffers);
                flight.land(Status::Ok, io)
            }
            Action::Read(offset, buffers) => {
                (flight.operation, flight.fills) = (Operation::Read, room);
                let op = DiskOp::Read {
                    offset,
                    buffers: &buffers,
                };
                self.launch(lane, flight, op, io)
            }
            Action::Write(offset, buffers) => {
                flight.operation = Operation::Write;
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
                flight.bytes = ranges.iter().map(|range| range.len).sum();
                io.charge(flight.bytes);
                ranges.reverse();
                let Some(first) = ranges.pop() else {
                    return flight.land(Status::Ok, io);
                };
                flight.operation = first.clear.operation();
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
            Progress::Done(result) => {
                self.now = Instant::now();
                self.advance(lane, tag, result, io)
            }
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
        self.now = Instant::now();
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
                    self.seat.shared.id
                );
                return Ok(());
            };
            return self.end(flight, result, io);
        }
    }

    /// A request has come to its end, good or bad.
    fn end(
        &mut self,
        flight: Flight,
        result: io::Result<()>,
        io: &mut QueueIo<'_>,
    ) -> Result<(), DeviceFault> {
        let took = self.now.saturating_duration_since(flight.began);
        let shared = &self.seat.shared;
        if let Some(tally) = shared.tallies.get(self.tally) {
            tally.count(flight.operation, flight.bytes, took, result.is_ok());
        }
        let Err(error) = result else {
            return flight.land(Status::Ok, io);
        };
        let what = flight.operation.name();
        if shared.keeps_failed && can_be_mended(&error) {
            self.kept.push((flight.queue, flight.head));
            self.seat.stop(what, &error);
            return Ok(());
        }
        self.errors
            .note(format_args!("disk {}", shared.id), what, &error);
        Flight { fills: 0, ..flight }.land(Status::IoErr, io)
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

/// Whether it makes sense to try again what has failed so: after an error of the host's, or where a file
/// ends too early, but not where it is known to be lost.
fn can_be_mended(error: &io::Error) -> bool {
    let cut = matches!(
        error.kind(),
        ErrorKind::UnexpectedEof | ErrorKind::WriteZero
    );
    error.raw_os_error().is_some() || cut
}

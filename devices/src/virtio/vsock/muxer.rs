//! What comes in from both sides, and which connection it is for.
//!
//! The guest's packets come from the worker, everything else from the [`Watch`]. No call waits for
//! anybody.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use super::callers::{Callers, Progress};
use super::connection::{Connection, Fate};
use super::packet::{HEADER, HOST_CID, Header, Op, Ports, STREAM};
use super::table::Table;
use super::watch::{Event, FIRST_SOCKET, Watch};
use super::{SharedHost, lock};
use crate::iovec::{self, IoVec};

/// Requests of the guest's that may wait for a host peer with no time.
const MAX_WAITING: usize = 128;
/// How long they may: Linux, by default, waits as long for the answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Callers let in before the guest gets its turn.
const MAX_ARRIVALS: usize = 64;
/// Where the ports of the host's own ends begin: beyond all that anybody listens at.
const FIRST_PORT: u32 = 1 << 30;
/// Where they end.
const END_PORT: u32 = 1 << 31;

/// A request of the guest's for a host peer that had no time.
#[derive(Debug)]
struct Waiting {
    request: Header,
    until: Instant,
}

/// The connections, and what makes new ones.
#[derive(Debug)]
pub(super) struct Muxer {
    guest_cid: u64,
    host: SharedHost,
    watch: Watch,
    table: Table,
    callers: Callers,
    waiting: VecDeque<Waiting>,
    next_number: u64,
    next_port: u32,
    doors_open: bool,
    /// It has been said that callers cannot be let in, and none was since.
    complained: bool,
}

impl Muxer {
    /// No connections yet, and the doors open.
    pub(super) fn new(guest_cid: u64, host: SharedHost) -> io::Result<Self> {
        let mut muxer = Self {
            guest_cid,
            host,
            watch: Watch::new()?,
            table: Table::new(guest_cid),
            callers: Callers::default(),
            waiting: VecDeque::new(),
            next_number: FIRST_SOCKET,
            next_port: FIRST_PORT,
            doors_open: false,
            complained: false,
        };
        muxer.open_doors()?;
        Ok(muxer)
    }

    /// Readable while there is something to [`poll`](Self::poll) for.
    pub(super) fn fd(&self) -> RawFd {
        self.watch.fd()
    }

    /// Whether the guest's next packet can be dealt with. It cannot while the guest makes no room for
    /// the answers to those before, and the resources that Virtio 1.2 §5.10.6.1 grants beside the queue
    /// are used up.
    pub(super) fn has_room(&self) -> bool {
        self.table.has_room_for_refusals()
    }

    /// Whether there may be a packet for the guest.
    pub(super) fn has_packets(&self) -> bool {
        self.table.has_packets()
    }

    /// Puts the next packet for the guest into `buffers`; its length, or none if there is none after all.
    pub(super) fn next_packet(&mut self, buffers: &[IoVec<'_>]) -> io::Result<Option<u32>> {
        self.table.next_packet(buffers, &mut self.watch)
    }

    /// The guest sent the packet in `buffers`.
    pub(super) fn hear(&mut self, buffers: &mut [IoVec<'_>]) -> io::Result<()> {
        let mut bytes = [0; HEADER];
        let is_whole = iovec::gather(buffers, 0, &mut bytes) == HEADER;
        let header = Header::from(bytes);
        // An answer to what claims to be from elsewhere would reach nobody.
        if !is_whole || header.src_cid != self.guest_cid {
            log::debug!("vsock: the guest sent something that is not a packet of its own");
            return Ok(());
        }
        let len = usize::try_from(header.len).unwrap_or(usize::MAX);
        let buffers = iovec::truncate(buffers, HEADER.saturating_add(len));
        let data = &*iovec::skip(buffers, HEADER);
        let is_ours = header.dst_cid == HOST_CID && header.kind == STREAM;
        let is_whole = iovec::total(data) == len;
        let op = Op::of(header.op).filter(|_| is_whole);
        let number = is_ours.then(|| self.table.number(header.ports())).flatten();
        match (number, op) {
            (Some(number), Some(op)) if op != Op::Request => {
                self.table.change(number, &mut self.watch, |connection| {
                    connection.hear(op, &header, data)
                })
            }
            (Some(number), _) => self.reset(number),
            (None, Some(Op::Request)) if is_ours => self.open(&header),
            (None, _) => {
                let ports = header.ports();
                self.waiting.retain(|other| other.request.ports() != ports);
                if op != Some(Op::Rst) {
                    self.table.refuse(header.rst());
                }
                Ok(())
            }
        }
    }

    fn reset(&mut self, number: u64) -> io::Result<()> {
        self.table.change(number, &mut self.watch, |_| Fate::Reset)
    }

    /// The guest wants to connect.
    fn open(&mut self, request: &Header) -> io::Result<()> {
        let ports = request.ports();
        let is_pending = |other: &Waiting| other.request.ports() == ports;
        if self.waiting.iter().any(is_pending) {
            return Ok(());
        }
        if self.connect(request)? == Attempt::Again {
            if self.waiting.len() >= MAX_WAITING {
                self.table.refuse(request.rst());
                return Ok(());
            }
            self.waiting.push_back(Waiting {
                request: *request,
                until: Instant::now() + PATIENCE,
            });
            self.watch.tick_soon()?;
        }
        Ok(())
    }

    /// Tries to connect the guest to the port it wants.
    fn connect(&mut self, request: &Header) -> io::Result<Attempt> {
        let number = self.take_number();
        let stream = match self.table.is_full() {
            true => Err(io::Error::other("there are too many connections")),
            false => lock(&self.host).connect(request.dst_port),
        };
        let stream = stream.and_then(|stream| {
            self.watch.add(number, &stream)?;
            Ok(stream)
        });
        match stream {
            Ok(stream) => {
                let connection = Connection::accepted(request, stream);
                self.table.add(number, connection, &mut self.watch)?;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Attempt::Again),
            Err(error) => {
                log::debug!("vsock: no connection to port {}: {error}", request.dst_port);
                self.table.refuse(request.rst());
            }
        }
        Ok(Attempt::Final)
    }

    /// Deals with what has happened on the host side.
    pub(super) fn poll(&mut self) -> io::Result<()> {
        for event in self.watch.events()? {
            match event {
                Event::Tick => self.tick(Instant::now())?,
                Event::Door => self.let_in()?,
                Event::Socket(number, _) if self.callers.contains(number) => self.listen(number)?,
                Event::Socket(number, events) => {
                    self.table.change(number, &mut self.watch, |connection| {
                        connection.wake(events)
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: Instant) -> io::Result<()> {
        let mut more = self.table.expire(now, &mut self.watch)?;
        for waiting in std::mem::take(&mut self.waiting) {
            if self.connect(&waiting.request)? == Attempt::Final {
                continue;
            }
            if waiting.until > now {
                self.waiting.push_back(waiting);
            } else {
                self.table.refuse(waiting.request.rst());
            }
        }
        if !self.doors_open {
            self.open_doors()?;
        }
        more |= !self.waiting.is_empty();
        if more {
            self.watch.tick_soon()?;
        }
        Ok(())
    }

    fn open_doors(&mut self) -> io::Result<()> {
        let doors = lock(&self.host).doors();
        for door in doors {
            self.watch.open(door)?;
        }
        self.doors_open = true;
        Ok(())
    }

    /// Lets callers in.
    fn let_in(&mut self) -> io::Result<()> {
        if !self.doors_open {
            return Ok(());
        }
        for _ in 0..MAX_ARRIVALS {
            let number = self.take_number();
            let caller = lock(&self.host).accept().and_then(|stream| {
                self.watch.add(number, &stream)?;
                Ok(stream)
            });
            match caller {
                Ok(stream) => {
                    self.complained = false;
                    self.callers.add(number, stream);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                // Out of descriptors, most likely. Watching on would spin.
                Err(error) => {
                    if !std::mem::replace(&mut self.complained, true) {
                        log::warn!("vsock: callers cannot be let in at the moment: {error}");
                    }
                    return self.close_doors();
                }
            }
        }
        Ok(())
    }

    /// Lets nobody in until the next tick.
    fn close_doors(&mut self) -> io::Result<()> {
        let doors = lock(&self.host).doors();
        for door in doors {
            self.watch.close(door)?;
        }
        self.doors_open = false;
        self.watch.tick_soon()
    }

    /// A caller has said something.
    fn listen(&mut self, number: u64) -> io::Result<()> {
        match self.callers.listen(number) {
            Progress::Wants(stream, guest) if !self.table.is_full() => {
                let host = self.take_port(guest);
                let connection = Connection::asked(Ports { guest, host }, stream);
                self.table.add(number, connection, &mut self.watch)
            }
            // A stream that is dropped says it all.
            _ => Ok(()),
        }
    }

    fn take_number(&mut self) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        number
    }

    /// A port for the host's end of a connection to the guest's port `guest`.
    fn take_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            self.next_port = match host + 1 {
                END_PORT => FIRST_PORT,
                next => next,
            };
            // There are far fewer connections than ports.
            if self.table.number(Ports { guest, host }).is_none() {
                return host;
            }
        }
    }
}

#[cfg(test)]
impl Muxer {
    /// The connections.
    pub(super) fn table(&self) -> &Table {
        &self.table
    }
}

/// How an attempt to connect went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    /// The guest has its answer.
    Final,
    /// The host peer has no time.
    Again,
}

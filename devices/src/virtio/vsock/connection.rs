//! One connection: the state between a guest's port and a host's socket.
//!
//! ```text
//!  the host asks: Asked ──RESPONSE──► Open ◄──REQUEST that the host side took
//!                   │                 │  │
//!    RST, time, the │  the host side  │  │ the guest is done both ways: it gets its RST
//!    caller left    │  is done both   │  │ at once, and what it sent still goes out
//!                   │  ways           │  │
//!                   ▼                 ▼  ▼
//!                 gone ◄─RST, time─ Farewell  Tail ──all of it is out, time──► gone
//! ```
//!
//! Each direction ends by itself. The guest's SHUTDOWN becomes shutdown(2) on the socket, once everything
//! before it has gone out; the socket's end becomes SHUTDOWN, once everything before it has been read.
//! Virtio 1.2 §5.10.6.6 asks whoever gets the second half of a shutdown to answer with RST.

use std::io::ErrorKind;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use bitflags::bitflags;
use vmm_sys_util::epoll::EventSet;

use super::backlog::Backlog;
use super::credit::Credit;
use super::packet::{Done, Header, Op, Ports};
use super::stream;
use crate::iovec::{self, IoVec};

mod outgoing;

/// How long a guest may take to answer a host that wants to connect.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a guest may take to say RST once the host side is done: as long as Linux waits for ours.
const FAREWELL: Duration = Duration::from_secs(8);
/// How long a host peer may take nothing of what a guest has left for it.
const TAIL: Duration = Duration::from_secs(30);

/// Where a connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The host wants to connect; the guest has not answered.
    Asked,
    /// Data may go both ways, as far as [`Done`] lets it.
    Open,
    /// The host side is done; the guest's RST is due.
    Farewell,
    /// The guest has forgotten the connection; what it sent last goes out.
    Tail,
}

/// What becomes of a connection after something happened to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on.
    Lives,
    /// It is over, and the guest has to be told.
    Reset,
    /// The guest is to be told that it is over, but there is more for the host.
    Detach,
    /// It is over, and the guest knows or never knew.
    Gone,
}

bitflags! {
    /// Packets that are due to the guest. Each at most once, however often it fell due.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Owed: u8 {
        const REQUEST = 1;
        const RESPONSE = 2;
        const CREDIT_UPDATE = 4;
        const CREDIT_REQUEST = 8;
    }
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) ports: Ports,
    pub(super) stream: UnixStream,
    pub(super) phase: Phase,
    /// When its phase has lasted too long.
    pub(super) deadline: Option<Instant>,
    /// It stands in the line of those that have something for the guest.
    pub(super) in_line: bool,
    /// The socket is watched for room too.
    pub(super) watched_for_room: bool,
    credit: Credit,
    backlog: Backlog,
    /// What the guest does no more.
    guest_done: Done,
    /// What the host side does no more.
    host_done: Done,
    /// What the guest has been told of that.
    told: Done,
    owed: Owed,
    /// The socket may have something to read.
    readable: bool,
    /// The socket's end may have been announced with other news: it makes no event of its own any more.
    end_announced: bool,
    /// The guest was asked for credit and has given none since.
    begged: bool,
}

impl Connection {
    /// A connection that the guest asked for with `request`, and the host side took.
    pub(super) fn accepted(request: &Header, stream: UnixStream) -> Self {
        let mut connection = Self::new(request.ports(), stream, Phase::Open, Owed::RESPONSE);
        connection.credit.hear(request);
        connection
    }

    /// A connection that the host side asks for.
    pub(super) fn asked(ports: Ports, stream: UnixStream) -> Self {
        let mut connection = Self::new(ports, stream, Phase::Asked, Owed::REQUEST);
        // What follows the caller's CONNECT line makes no event any more.
        (connection.readable, connection.end_announced) = (true, true);
        connection
    }

    fn new(ports: Ports, stream: UnixStream, phase: Phase, owed: Owed) -> Self {
        Self {
            ports,
            stream,
            phase,
            deadline: None,
            in_line: false,
            watched_for_room: false,
            credit: Credit::default(),
            backlog: Backlog::default(),
            guest_done: Done::empty(),
            host_done: Done::empty(),
            told: Done::empty(),
            owed,
            readable: false,
            end_announced: false,
            begged: false,
        }
    }

    /// Begins a phase, and with it the time that it may last.
    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.deadline = None;
    }

    /// How long its phase may last, counted anew while something moves.
    pub(super) fn limit(&self) -> Option<Duration> {
        match self.phase {
            Phase::Asked => Some(ANSWER),
            Phase::Open => None,
            Phase::Farewell => Some(FAREWELL),
            Phase::Tail => Some(TAIL),
        }
    }

    /// Whether bytes wait for the socket to have room.
    pub(super) fn wants_room(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Bytes of the guest's that are kept for the host.
    #[cfg(test)]
    pub(super) fn kept(&self) -> u32 {
        self.backlog.len()
    }

    /// Its phase has lasted too long.
    pub(super) fn expire(&self) -> Fate {
        match self.phase {
            // The guest never got as far as reading the request.
            Phase::Asked if self.owed.contains(Owed::REQUEST) => Fate::Gone,
            Phase::Tail => Fate::Gone,
            _ => Fate::Reset,
        }
    }

    /// The guest sent `data` with `op`.
    pub(super) fn hear(&mut self, op: Op, header: &Header, data: &[IoVec<'_>]) -> Fate {
        self.credit.hear(header);
        self.begged &= self.credit.free() == 0;
        match (self.phase, op) {
            (_, Op::Rst) => return Fate::Gone,
            (Phase::Asked, Op::Response) if !self.owed.contains(Owed::REQUEST) => self.answered(),
            (Phase::Open, Op::Rw) if !self.guest_done.contains(Done::SENDING) => {
                if iovec::total(data) > self.backlog.room() as usize {
                    return Fate::Reset;
                }
                self.take(data);
            }
            // It crossed our SHUTDOWN.
            (Phase::Farewell, Op::Rw | Op::CreditRequest) => {}
            (Phase::Open, Op::CreditRequest) => self.owed |= Owed::CREDIT_UPDATE,
            (Phase::Open | Phase::Farewell, Op::CreditUpdate) => {}
            (Phase::Open | Phase::Farewell, Op::Shutdown) => return self.shut_down(header.flags),
            _ => return Fate::Reset,
        }
        self.settle();
        Fate::Lives
    }

    /// The guest takes the connection: the caller may know.
    fn answered(&mut self) {
        self.enter(Phase::Open);
        let greeting = format!("OK {}\n", self.ports.host);
        // Nothing was sent to it before, so there is room; a caller that has left is noticed.
        if !stream::send_bytes(&self.stream, greeting.as_bytes())
            .is_ok_and(|sent| sent == greeting.len())
        {
            self.host_takes_no_more();
        }
    }

    /// Data for the host: straight to the socket, and what that does not take into the backlog.
    fn take(&mut self, data: &[IoVec<'_>]) {
        let len = iovec::total(data);
        // None is more than a window.
        let bytes = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        if self.host_done.contains(Done::RECEIVING) {
            return self.credit.forward(bytes(len));
        }
        let mut sent = 0;
        if self.backlog.is_empty() && len > 0 {
            match stream::send(&self.stream, data) {
                Ok(count) => sent = count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => {
                    self.credit.forward(bytes(len));
                    return self.host_takes_no_more();
                }
            }
        }
        self.credit.forward(bytes(sent));
        if sent < len {
            self.backlog.push(data, sent);
        }
    }

    /// The guest does something no more.
    fn shut_down(&mut self, flags: u32) -> Fate {
        self.guest_done |= Done::from_bits_truncate(flags);
        if self.guest_done.is_all() {
            return match self.backlog.is_empty() {
                true => Fate::Reset,
                false => Fate::Detach,
            };
        }
        if self.guest_done.contains(Done::RECEIVING) {
            // It fails only where the peer has closed everything.
            let _ = self.stream.shutdown(Shutdown::Read);
            self.host_done |= Done::SENDING;
        }
        self.end_output();
        self.settle();
        Fate::Lives
    }

    /// Passes the guest's end on, once everything before it is out.
    fn end_output(&mut self) {
        if self.guest_done.contains(Done::SENDING) && self.backlog.is_empty() {
            let _ = self.stream.shutdown(Shutdown::Write);
            self.host_done |= Done::RECEIVING;
        }
    }

    /// Nobody reads what the guest sends.
    fn host_takes_no_more(&mut self) {
        self.host_done |= Done::RECEIVING;
        let lost = self.backlog.clear();
        self.credit.forward(lost);
    }

    /// The guest has forgotten the connection; only what it sent counts.
    pub(super) fn detach(&mut self) {
        self.enter(Phase::Tail);
        self.owed = Owed::empty();
        (self.host_done, self.told) = (Done::all(), Done::all());
        let _ = self.stream.shutdown(Shutdown::Read);
    }

    /// Something happened to the socket.
    pub(super) fn wake(&mut self, events: EventSet) -> Fate {
        let left = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        match self.phase {
            // The caller does not wait for the answer.
            Phase::Asked if left => return self.expire(),
            Phase::Asked => {}
            Phase::Farewell => return Fate::Lives,
            Phase::Tail => return self.flush_tail(),
            Phase::Open if left => self.host_takes_no_more(),
            Phase::Open => self.flush(),
        }
        self.readable = true;
        self.end_announced |= left || events.contains(EventSet::READ_HANG_UP);
        self.settle();
        Fate::Lives
    }

    /// The socket may have room again.
    fn flush(&mut self) {
        if self.backlog.is_empty() {
            return;
        }
        match self.backlog.flush(&self.stream) {
            Ok(count) => self.credit.forward(count),
            Err(_) => self.host_takes_no_more(),
        }
        self.end_output();
    }

    fn flush_tail(&mut self) -> Fate {
        match self.backlog.flush(&self.stream) {
            Ok(_) if self.backlog.is_empty() => Fate::Gone,
            Ok(count) => {
                if count > 0 {
                    self.deadline = None;
                }
                Fate::Lives
            }
            Err(_) => Fate::Gone,
        }
    }

    /// Draws the conclusions of a change.
    fn settle(&mut self) {
        if self.phase != Phase::Open {
            return;
        }
        if self.host_done.is_all() {
            self.enter(Phase::Farewell);
            // A guest that does not know yet that its connection stood would not understand its end.
            self.owed &= Owed::RESPONSE;
            // The peer sees its end now, not when the guest has answered.
            let _ = self.stream.shutdown(Shutdown::Both);
        } else if self.credit.is_worth_telling(self.backlog.len()) {
            self.owed |= Owed::CREDIT_UPDATE;
        }
        if self.has_input() && self.credit.free() == 0 && !self.begged {
            self.begged = true;
            self.owed |= Owed::CREDIT_REQUEST;
        }
    }
}

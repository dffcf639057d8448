//! What a vsock waits for beside its queues: the sockets of its connections, its doors, and time.
//!
//! One epoll descriptor that stands for all of them, since their number changes all the time and a
//! worker's sources do not.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::timerfd::TimerFd;

/// The number of the timer.
const TIMER: u64 = 0;
/// The number of every door.
const DOOR: u64 = 1;
/// The first number of a socket.
pub(super) const FIRST_SOCKET: u64 = 2;

/// How often time is looked at while something has a deadline.
const TICK: Duration = Duration::from_millis(100);

/// Events taken at a time; when there are more, the descriptor stays readable.
const BATCH: usize = 64;

/// Something that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// A tick has passed.
    Tick,
    /// A caller may wait.
    Door,
    /// The socket with this number changed.
    Socket(u64, EventSet),
}

/// The epoll descriptor.
#[derive(Debug)]
pub(super) struct Watch {
    epoll: Epoll,
    timer: TimerFd,
    ticking: bool,
}

impl Watch {
    pub(super) fn new() -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let timer = TimerFd::new().map_err(io::Error::from)?;
        // By edges, so that it need not be read.
        let events = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, TIMER);
        epoll.ctl(ControlOperation::Add, timer.as_raw_fd(), events)?;
        Ok(Self {
            epoll,
            timer,
            ticking: false,
        })
    }

    /// Readable as long as something has happened.
    pub(super) fn fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// Opens a door: it makes events as long as a caller waits.
    pub(super) fn open(&self, door: RawFd) -> io::Result<()> {
        let events = EpollEvent::new(EventSet::IN, DOOR);
        self.epoll.ctl(ControlOperation::Add, door, events)
    }

    /// Closes a door.
    pub(super) fn close(&self, door: RawFd) -> io::Result<()> {
        self.epoll
            .ctl(ControlOperation::Delete, door, EpollEvent::default())
    }

    /// Watches a socket: each time that something can be read, or its peer shuts something down, it makes
    /// one event; closing it ends that.
    pub(super) fn add(&self, number: u64, socket: &impl AsRawFd) -> io::Result<()> {
        let events = EpollEvent::new(socket_events(false), number);
        self.epoll
            .ctl(ControlOperation::Add, socket.as_raw_fd(), events)
    }

    /// Watches a socket for room to write too, or no longer. There is an event whenever the peer reads
    /// something, so this is for sockets that were full.
    pub(super) fn set_room(
        &self,
        number: u64,
        socket: &impl AsRawFd,
        room: bool,
    ) -> io::Result<()> {
        let events = EpollEvent::new(socket_events(room), number);
        self.epoll
            .ctl(ControlOperation::Modify, socket.as_raw_fd(), events)
    }

    /// Makes a tick come, unless one is coming anyway.
    pub(super) fn tick_soon(&mut self) -> io::Result<()> {
        if !self.ticking {
            self.timer.reset(TICK, None).map_err(io::Error::from)?;
            self.ticking = true;
        }
        Ok(())
    }

    /// What has happened since the last call, or some of it.
    pub(super) fn events(&mut self) -> io::Result<Vec<Event>> {
        let mut happened = [EpollEvent::default(); BATCH];
        let count = loop {
            match self.epoll.wait(0, &mut happened) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                count => break count?,
            }
        };
        let events = happened.iter().take(count).map(|event| match event.data() {
            TIMER => {
                self.ticking = false;
                Event::Tick
            }
            DOOR => Event::Door,
            number => Event::Socket(number, EventSet::from_bits_truncate(event.events())),
        });
        Ok(events.collect())
    }
}

fn socket_events(room: bool) -> EventSet {
    let events = EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
    match room {
        true => events | EventSet::OUT,
        false => events,
    }
}

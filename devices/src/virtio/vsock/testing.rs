//! A host side for tests, with the test at its other end.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EFD_SEMAPHORE, EventFd};

use super::VsockHost;

/// A port at which nobody listens.
pub(crate) const CLOSED: u32 = 9;

/// The host's side, as the device has it and as the test sees it.
#[derive(Debug, Clone)]
pub(crate) struct Host(Arc<Mutex<HostState>>);

/// What a test may look at and change.
#[derive(Debug)]
pub(crate) struct HostState {
    door: EventFd,
    callers: VecDeque<UnixStream>,
    /// The other ends of connections that the guest got, with their ports.
    pub(crate) arrived: VecDeque<(u32, UnixStream)>,
    /// Nobody has time.
    pub(crate) busy: bool,
    /// Accepting fails.
    pub(crate) broken: bool,
    /// How often the guest was to be connected.
    pub(crate) asked: usize,
}

impl Host {
    /// Somebody listens at every port but [`CLOSED`].
    pub(crate) fn new() -> Self {
        let door = EventFd::new(EFD_NONBLOCK | EFD_SEMAPHORE).expect("no eventfd");
        Self(Arc::new(Mutex::new(HostState {
            door,
            callers: VecDeque::new(),
            arrived: VecDeque::new(),
            busy: false,
            broken: false,
            asked: 0,
        })))
    }

    /// What there is to see.
    pub(crate) fn state(&self) -> MutexGuard<'_, HostState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A host program comes to the door.
    pub(crate) fn call(&self) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().expect("no socket pair");
        let mut state = self.state();
        state.callers.push_back(theirs);
        state.door.write(1).expect("the door's counter is full");
        ours
    }
}

impl VsockHost for Host {
    fn connect(&mut self, port: u32) -> io::Result<UnixStream> {
        let mut state = self.state();
        state.asked += 1;
        if port == CLOSED {
            return Err(ErrorKind::ConnectionRefused.into());
        }
        if state.busy {
            return Err(ErrorKind::WouldBlock.into());
        }
        let (ours, theirs) = UnixStream::pair()?;
        state.arrived.push_back((port, ours));
        Ok(theirs)
    }

    fn doors(&self) -> Vec<RawFd> {
        vec![self.state().door.as_raw_fd()]
    }

    fn accept(&mut self) -> io::Result<UnixStream> {
        let mut state = self.state();
        if state.broken {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        state.door.read()?;
        let caller = state.callers.pop_front();
        caller.ok_or_else(|| ErrorKind::WouldBlock.into())
    }
}

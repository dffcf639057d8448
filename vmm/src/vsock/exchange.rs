//! Where this process and the device meet: who listens at which port, and who calls.

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::virtio::vsock::VsockHost;

use super::{Files, VsockError};
use crate::flag::Flag;

/// Connections that wait for a listener to accept them. The guest's next ones wait in the guest.
const BACKLOG: usize = 64;

/// What [`Vsock`](super::Vsock) and [`Host`] share.
#[derive(Debug)]
pub(super) struct Exchange {
    /// The owners are the VM's handles and listeners, on any thread, and the device, on its I/O thread.
    state: Mutex<State>,
    /// Raised while somebody calls.
    door: Flag,
}

#[derive(Debug, Default)]
struct State {
    over: bool,
    listeners: HashMap<u32, SyncSender<UnixStream>>,
    calls: VecDeque<(u64, UnixStream)>,
    next_call: u64,
}

impl Exchange {
    pub(super) fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            state: Mutex::default(),
            door: Flag::new()?,
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is a single one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_over(&self) -> bool {
        self.state().over
    }

    pub(super) fn listen(&self, port: u32) -> Result<Receiver<UnixStream>, VsockError> {
        let mut state = self.state();
        if state.over {
            return Err(VsockError::Over);
        }
        if state.listeners.contains_key(&port) {
            return Err(VsockError::InUse(port));
        }
        let (sender, receiver) = sync_channel(BACKLOG);
        state.listeners.insert(port, sender);
        Ok(receiver)
    }

    pub(super) fn unlisten(&self, port: u32) {
        self.state().listeners.remove(&port);
    }

    /// Sends a stream to the device, on which it is asked for a port.
    pub(super) fn call(&self, stream: UnixStream) -> Result<u64, VsockError> {
        let mut state = self.state();
        if state.over {
            return Err(VsockError::Over);
        }
        let call = state.next_call;
        state.next_call += 1;
        state.calls.push_back((call, stream));
        self.door.raise();
        Ok(call)
    }

    /// Takes a call back, if the device does not have it yet.
    pub(super) fn hang_up(&self, call: u64) {
        let mut state = self.state();
        state.calls.retain(|(other, _)| *other != call);
        self.lower_if_idle(&state);
    }

    fn answer(&self) -> io::Result<UnixStream> {
        let mut state = self.state();
        let call = state.calls.pop_front();
        self.lower_if_idle(&state);
        let (_, stream) = call.ok_or(ErrorKind::WouldBlock)?;
        Ok(stream)
    }

    fn lower_if_idle(&self, state: &State) {
        if state.calls.is_empty() {
            self.door.lower();
        }
    }

    /// The guest wants a port; none if nobody here listens at it.
    fn connect(&self, port: u32) -> Option<io::Result<UnixStream>> {
        let sender = self.state().listeners.get(&port)?.clone();
        let connect = || {
            let (ours, theirs) = UnixStream::pair()?;
            match sender.try_send(ours) {
                Ok(()) => Ok(theirs),
                Err(TrySendError::Full(_)) => Err(ErrorKind::WouldBlock.into()),
                Err(TrySendError::Disconnected(_)) => Err(ErrorKind::ConnectionRefused.into()),
            }
        };
        Some(connect())
    }

    fn end(&self) {
        let mut state = self.state();
        state.over = true;
        state.listeners.clear();
        state.calls.clear();
    }
}

/// The host's side as the device has it. With it goes all that is said above of a VM that is over.
#[derive(Debug)]
pub(super) struct Host {
    exchange: Arc<Exchange>,
    files: Option<Files>,
}

impl Host {
    pub(super) fn new(exchange: Arc<Exchange>, files: Option<Files>) -> Self {
        Self { exchange, files }
    }
}

impl VsockHost for Host {
    fn connect(&mut self, port: u32) -> io::Result<UnixStream> {
        match (self.exchange.connect(port), &self.files) {
            (Some(connection), _) => connection,
            (None, Some(files)) => files.connect(port),
            (None, None) => Err(ErrorKind::ConnectionRefused.into()),
        }
    }

    fn doors(&self) -> Vec<RawFd> {
        let files = self.files.as_ref().map(Files::door);
        [self.exchange.door.as_raw_fd()]
            .into_iter()
            .chain(files)
            .collect()
    }

    fn accept(&mut self) -> io::Result<UnixStream> {
        match (self.exchange.answer(), &self.files) {
            (Err(error), Some(files)) if error.kind() == ErrorKind::WouldBlock => files.accept(),
            (answer, _) => answer,
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.exchange.end();
    }
}

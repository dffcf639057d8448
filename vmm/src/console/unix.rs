//! A listening unix socket as the console: one client at a time, who may leave and come back.
//!
//! The I/O thread owns the listener and reads the client ([`SocketInput`]); the sink's writer thread
//! writes to it ([`SocketOutput`]). They share the client through a [`Slot`]. Without a client, the sink
//! keeps the latest output, which the next client is given first.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use devices::console::InputQueue;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendFlags, send};

use super::consumer::{Consumer, Offer, Policy, wait_any};
use crate::flag::Flag;

/// The sink's treatment of a client that may not be there. One that is there gets everything, as long
/// as it takes something now and then.
pub(super) const POLICY: Policy = Policy {
    capacity: 64 << 10,
    patience: Duration::from_secs(2),
    expects_reader: false,
};

/// What a second client is told.
const IN_USE: &[u8] = b"mvm: this console is in use by another client\r\n";

/// Where the two threads find the client.
#[derive(Debug)]
pub(super) struct Slot {
    /// Two owners: the I/O thread puts a client here and takes it away, the writer thread looks.
    client: Mutex<Option<Arc<UnixStream>>>,
    changed: Flag,
}

impl Slot {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            client: Mutex::new(None),
            changed: Flag::new()?,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<UnixStream>>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self) -> Option<Arc<UnixStream>> {
        self.lock().clone()
    }

    fn put(&self, client: Option<Arc<UnixStream>>) {
        *self.lock() = client;
        self.changed.raise();
    }

    /// Takes `client` away if it is still the one.
    fn release(&self, client: &Arc<UnixStream>) {
        let mut current = self.lock();
        if current.as_ref().is_some_and(|now| Arc::ptr_eq(now, client)) {
            *current = None;
        }
    }
}

/// The writer thread's side.
#[derive(Debug)]
pub(super) struct SocketOutput(pub(super) Arc<Slot>);

impl Consumer for SocketOutput {
    fn offer(&mut self, bytes: &[u8]) -> io::Result<Offer> {
        let Some(client) = self.0.get() else {
            return Ok(Offer::Absent);
        };
        match send(&*client, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(count) => Ok(Offer::Took(count)),
            Err(rustix::io::Errno::AGAIN) => Ok(Offer::Busy),
            Err(rustix::io::Errno::INTR) => Err(io::ErrorKind::Interrupted.into()),
            // It has left. That is its right, and the I/O thread will see it too.
            Err(_) => {
                self.0.release(&client);
                Ok(Offer::Absent)
            }
        }
    }

    fn wait(&mut self, cancel: &Flag) {
        let client = self.0.get();
        let mut fds = vec![(self.0.changed.as_fd(), PollFlags::IN)];
        if let Some(client) = &client {
            fds.push((client.as_fd(), PollFlags::OUT));
        }
        wait_any(&fds, cancel);
        self.0.changed.lower();
    }
}

/// What the loop is asked to tell of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watch {
    /// Its input, and its leaving.
    Input,
    /// Its leaving: it will send nothing more, but may still read.
    Leaving,
    /// Nothing, while the guest has no room. A hang-up would be reported over and over.
    Nothing,
}

#[derive(Debug)]
struct Client {
    stream: Arc<UnixStream>,
    watch: Watch,
    /// It has shut down its sending side.
    ended: bool,
}

impl Client {
    /// Whether it has closed both directions.
    fn has_left(&self) -> bool {
        let mut polled = [PollFd::new(&self.stream, PollFlags::empty())];
        let _ = poll(&mut polled, Some(&Timespec::default()));
        polled[0]
            .revents()
            .intersects(PollFlags::HUP | PollFlags::ERR)
    }

    /// Changes what the loop tells of it.
    fn watch(&mut self, watch: Watch, ops: &mut EventOps<'_>) -> Result<(), event_manager::Error> {
        let events = |watch| match watch {
            Watch::Input => Events::new(&*self.stream, EventSet::IN),
            Watch::Leaving | Watch::Nothing => Events::empty(&*self.stream),
        };
        match (self.watch, watch) {
            (old, new) if old == new => {}
            (Watch::Nothing, new) => ops.add(events(new))?,
            (_, Watch::Nothing) => ops.remove(events(watch))?,
            (_, new) => ops.modify(events(new))?,
        }
        self.watch = watch;
        Ok(())
    }
}

/// The I/O thread's side: lets clients in, and feeds the port from the present one.
#[derive(Debug)]
pub(super) struct SocketInput {
    listener: UnixListener,
    slot: Arc<Slot>,
    client: Option<Client>,
    queue: InputQueue,
    chunk: Box<[u8]>,
}

impl SocketInput {
    pub(super) fn new(listener: UnixListener, slot: Arc<Slot>, queue: InputQueue) -> Self {
        Self {
            listener,
            slot,
            client: None,
            queue,
            chunk: vec![0; 4096].into(),
        }
    }

    /// Lets in whoever waits at the door.
    fn accept(&mut self, ops: &mut EventOps<'_>) {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => self.greet(stream, ops),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return,
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                    _ => {
                        // Out of descriptors, say. Watching on would spin.
                        log::warn!("console socket takes no more clients: {error}");
                        let _ = ops.remove(Events::empty(&self.listener));
                        return;
                    }
                },
            }
        }
    }

    fn greet(&mut self, mut stream: UnixStream, ops: &mut EventOps<'_>) {
        if let Err(error) = stream.set_nonblocking(true) {
            log::warn!("console client cannot be served: {error}");
            return;
        }
        // The last client's leaving may not have been handled yet.
        if self.client.as_ref().is_some_and(Client::has_left) {
            self.dismiss(ops);
        }
        if self.client.is_some() {
            let _ = stream.write(IN_USE);
            return;
        }
        let stream = Arc::new(stream);
        self.slot.put(Some(Arc::clone(&stream)));
        self.client = Some(Client {
            stream,
            watch: Watch::Nothing,
            ended: false,
        });
    }

    /// Lets go of the client. What it sent before is still the guest's.
    fn dismiss(&mut self, ops: &mut EventOps<'_>) {
        if let Some(mut client) = self.client.take() {
            // Before the descriptor is closed: its number may be somebody else's next.
            if let Err(error) = client.watch(Watch::Nothing, ops) {
                log::warn!("console client cannot be unregistered: {error}");
            }
            self.slot.release(&client.stream);
        }
    }

    /// Reads once from the client.
    fn read(&mut self, ops: &mut EventOps<'_>) {
        let Some(client) = &mut self.client else {
            return;
        };
        match (&*client.stream).read(&mut self.chunk) {
            Ok(0) => client.ended = true,
            Ok(count) => self.queue.push(&self.chunk[..count]),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {}
                _ => return self.dismiss(ops),
            },
        }
        if client.ended && client.has_left() {
            self.dismiss(ops);
        }
    }

    /// Brings the watch on the client in line with what the queue can take.
    fn settle(&mut self, ops: &mut EventOps<'_>) {
        let Some(client) = &mut self.client else {
            return;
        };
        let watch = if client.ended {
            Watch::Leaving
        } else if self.queue.is_empty() || self.queue.reads_ahead() {
            Watch::Input
        } else {
            Watch::Nothing
        };
        if let Err(error) = client.watch(watch, ops) {
            log::warn!("console client cannot be watched and is let go: {error}");
            self.dismiss(ops);
        }
    }
}

impl MutEventSubscriber for SocketInput {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for events in [
            Events::new(&self.listener, EventSet::IN),
            Events::new(self.queue.port().room(), EventSet::IN),
        ] {
            if let Err(error) = ops.add(events) {
                log::warn!("console socket cannot be watched: {error}");
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let fd = events.fd();
        if fd == self.listener.as_raw_fd() {
            self.accept(ops);
        } else if fd == self.queue.port().room().as_raw_fd() {
            // Non-blocking: nothing there means a spurious event.
            let _ = self.queue.port().room().read();
            self.queue.deliver();
        } else if self
            .client
            .as_ref()
            .is_some_and(|client| client.stream.as_raw_fd() == fd)
        {
            self.read(ops);
        }
        self.settle(ops);
    }
}

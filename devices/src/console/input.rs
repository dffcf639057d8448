//! The way of input from a host descriptor into a guest's [`Receiver`].
//!
//! Owned and run by the I/O thread. The descriptor may be inherited, so its flags are shared with other
//! programs (the shell's terminal): it is not made non-blocking, and read only when a poll has just said
//! that there is something.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::Receiver;

/// Sees raw input and appends to its second argument what the guest shall get of it.
pub type InputFilter = Box<dyn FnMut(&[u8], &mut Vec<u8>) + Send>;

/// Most that one read takes.
const CHUNK: usize = 4096;

/// Most that is kept for a guest that does not take it. Reached only with a filter, see
/// [`InputQueue::reads_ahead`].
const BACKLOG: usize = 64 << 10;

/// Input that has been read and waits for the receiver, and the filter it passed.
pub struct InputQueue {
    port: Arc<dyn Receiver>,
    filter: Option<InputFilter>,
    backlog: VecDeque<u8>,
    filtered: Vec<u8>,
}

impl fmt::Debug for InputQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InputQueue")
            .field("backlog", &self.backlog.len())
            .field("filter", &self.filter.is_some())
            .finish_non_exhaustive()
    }
}

impl InputQueue {
    /// An empty queue in front of `port`.
    #[must_use]
    pub fn new(port: Arc<dyn Receiver>, filter: Option<InputFilter>) -> Self {
        Self {
            port,
            filter,
            backlog: VecDeque::new(),
            filtered: Vec::new(),
        }
    }

    /// The port this queue feeds.
    #[must_use]
    pub fn port(&self) -> &dyn Receiver {
        self.port.as_ref()
    }

    /// Whether all input has gone to the guest. Where it has not, [`Receiver::room`] tells when to
    /// call [`Self::deliver`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.backlog.is_empty()
    }

    /// Whether input should be read although earlier input still waits.
    ///
    /// With a filter it should: the filter must see the key that ends a VM whose guest no longer takes
    /// input. What exceeds the backlog is dropped then, as a terminal drops what is typed too far ahead.
    /// Without one, the source is made to wait and nothing is lost.
    #[must_use]
    pub fn reads_ahead(&self) -> bool {
        self.filter.is_some()
    }

    /// Takes input in, and gives the guest what it has room for.
    pub fn push(&mut self, raw: &[u8]) {
        let bytes = match &mut self.filter {
            None => raw,
            Some(filter) => {
                self.filtered.clear();
                filter(raw, &mut self.filtered);
                &self.filtered
            }
        };
        let room = BACKLOG.saturating_sub(self.backlog.len());
        if let Some(lost) = bytes.len().checked_sub(room).filter(|lost| *lost > 0) {
            log::debug!("console: the guest takes no input, {lost} bytes are dropped");
        }
        self.backlog.extend(bytes.iter().take(room));
        self.deliver();
    }

    /// Gives the guest what it has room for.
    pub fn deliver(&mut self) {
        while !self.backlog.is_empty() {
            let (front, _) = self.backlog.as_slices();
            let offered = front.len();
            let taken = self.port.receive(front);
            self.backlog.drain(..taken);
            if taken < offered {
                break;
            }
        }
    }
}

/// How the descriptor is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watch {
    /// Registered with the loop.
    On,
    /// Not registered: there is no use for more input now. It must not stay registered for no events,
    /// since a hang-up is reported regardless, over and over.
    Off,
    /// The loop refused it: a regular file or a device without poll, which never makes a reader wait.
    Never,
}

/// Feeds a port from a descriptor until its end. The end of input is not the end of the guest.
pub struct DescriptorInput {
    pub(crate) queue: InputQueue,
    source: Option<(File, Watch)>,
    chunk: Box<[u8]>,
}

impl fmt::Debug for DescriptorInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DescriptorInput")
            .field("queue", &self.queue)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

impl DescriptorInput {
    /// Will read `source` into `queue` once it is added to a loop. `source`'s own number must not be
    /// registered with that loop by anyone else.
    #[must_use]
    pub fn new(queue: InputQueue, source: OwnedFd) -> Self {
        Self {
            queue,
            source: Some((source.into(), Watch::Off)),
            chunk: vec![0; CHUNK].into(),
        }
    }

    /// Brings the watch on the source in line with what the queue can take.
    fn settle(&mut self, ops: &mut EventOps<'_>) {
        loop {
            let Some((file, watch)) = &mut self.source else {
                return;
            };
            let hungry = self.queue.is_empty();
            let wanted = hungry || self.queue.reads_ahead();
            let events = Events::new(file, EventSet::IN);
            match *watch {
                // Not read ahead even with a filter: it would all be read, and dropped, at once.
                Watch::Never if hungry => {
                    if !self.read() {
                        self.source = None;
                    }
                    continue;
                }
                Watch::Off if wanted => match ops.add(events) {
                    Ok(()) => *watch = Watch::On,
                    Err(event_manager::Error::Epoll(error)) if error.errno() == libc::EPERM => {
                        *watch = Watch::Never;
                        continue;
                    }
                    Err(error) => {
                        log::warn!("console input cannot be watched and is given up: {error}");
                        self.source = None;
                    }
                },
                Watch::On if !wanted => {
                    if let Err(error) = ops.remove(events) {
                        log::warn!("console input cannot be paused: {error}");
                    }
                    *watch = Watch::Off;
                }
                Watch::On | Watch::Off | Watch::Never => {}
            }
            return;
        }
    }

    /// Reads once. Returns whether there may be more to come.
    fn read(&mut self) -> bool {
        let Some((file, watch)) = &mut self.source else {
            return false;
        };
        match file.read(&mut self.chunk) {
            Ok(0) => false,
            Ok(count) => {
                self.queue.push(&self.chunk[..count]);
                true
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => true,
            // Somebody else was faster. Where there is no event to wait for, it would never end.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => *watch != Watch::Never,
            // A terminal that has been hung up: the end, as good as any.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => false,
            Err(error) => {
                log::warn!("console input ends: {error}");
                false
            }
        }
    }

    /// Reads what a poll says is there; an event may be old news.
    fn on_readable(&mut self, ops: &mut EventOps<'_>) {
        let Some((file, Watch::On)) = &self.source else {
            return;
        };
        if !is_ready(file) {
            return;
        }
        let events = Events::new(file, EventSet::IN);
        if !self.read() {
            // Before the descriptor is closed: its number may be somebody else's next.
            if let Err(error) = ops.remove(events) {
                log::warn!("console input cannot be unregistered: {error}");
            }
            self.source = None;
        }
    }
}

impl MutEventSubscriber for DescriptorInput {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(self.queue.port().room(), EventSet::IN)) {
            log::warn!("console input cannot be watched and is given up: {error}");
            self.source = None;
        }
        self.settle(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let room = self.queue.port().room();
        if events.fd() == room.as_raw_fd() {
            // Non-blocking: nothing there means a spurious event.
            let _ = room.read();
            self.queue.deliver();
        } else if matches!(&self.source, Some((file, _)) if file.as_raw_fd() == events.fd()) {
            self.on_readable(ops);
        }
        self.settle(ops);
    }
}

/// Whether a read would return now (data, end, or error).
fn is_ready(file: &File) -> bool {
    let mut poll = libc::pollfd {
        fd: file.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: `poll` is one valid pollfd for the whole call, which does not wait.
    let count = unsafe { libc::poll(&raw mut poll, 1, 0) };
    count > 0 && poll.revents != 0
}

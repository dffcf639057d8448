//! A network at the other end of a stream socket: each frame behind its length, four bytes, big-endian.
//!
//! This is how QEMU's `-netdev stream` and passt talk. There is no virtio header and so no offload; in
//! return a packet may be as long as IP allows. The bytes of a frame go between the socket and guest
//! memory without a copy of ours; only what the socket has no room for at once waits here, and the first
//! few, which are looked at ([`guard`], [`room`]).
//!
//! When the stream ends, or brings what cannot be a frame, the link is down for good. The guest keeps
//! its card, and the VM goes on. Runs on the I/O thread of the card's one queue pair.

use std::fmt;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use self::incoming::Incoming;
use self::outgoing::Outgoing;
use super::backend::{NetBackend, Received, Uplink};
use crate::iovec::IoVec;

mod guard;
mod incoming;
mod outgoing;
mod room;
mod tcp;
#[cfg(test)]
mod tests;

pub use self::room::make_room;

/// Bytes of a frame's length.
const PREFIX: usize = 4;
/// IEEE 802.3: two addresses and a type. There is no shorter frame.
const ETHERNET: usize = 14;

/// Who is at the other end of a stream.
pub trait Peer: fmt::Debug + Send {
    /// The stream is over: ends the peer, where it has not ended itself, and says what became of it.
    fn end(&mut self) -> String;
}

/// The card's end of a stream. The peer is dropped with it.
#[derive(Debug)]
pub struct Stream {
    /// How the log calls the card.
    card: String,
    socket: UnixStream,
    peer: Box<dyn Peer>,
    up: Arc<AtomicBool>,
    incoming: Incoming,
    outgoing: Outgoing,
}

/// The link that a stream is.
#[derive(Debug)]
pub struct StreamLink(Arc<AtomicBool>);

impl Stream {
    /// A network on `socket`, whose other end belongs to `peer`, for what the log calls `card`. The other
    /// end can send `room` bytes at once: [`make_room`].
    ///
    /// # Errors
    /// The socket cannot be made non-blocking.
    pub fn new(
        card: String,
        socket: UnixStream,
        peer: Box<dyn Peer>,
        room: u32,
    ) -> io::Result<(Self, StreamLink)> {
        socket.set_nonblocking(true)?;
        let up = Arc::new(AtomicBool::new(true));
        let stream = Self {
            card,
            socket,
            peer,
            up: up.clone(),
            incoming: Incoming::default(),
            outgoing: Outgoing::new(room),
        };
        Ok((stream, StreamLink(up)))
    }

    /// Does something with the stream while there is one. An error that is the stream's end ends it.
    fn with<T>(&mut self, step: impl FnOnce(&mut Self) -> io::Result<T>) -> io::Result<T> {
        if !self.up.load(Ordering::Acquire) {
            return Err(ErrorKind::NetworkDown.into());
        }
        step(self).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::Interrupted => error,
            // Of this frame, not of the stream.
            ErrorKind::InvalidInput | ErrorKind::PermissionDenied => error,
            _ => {
                self.up.store(false, Ordering::Release);
                let fate = self.peer.end();
                let why = match error.kind() {
                    ErrorKind::InvalidData => error.to_string(),
                    _ => fate,
                };
                log::warn!("{}: {why}; the link is down for good", self.card);
                ErrorKind::NetworkDown.into()
            }
        })
    }
}

impl NetBackend for Stream {
    fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    fn restart(&mut self) {
        // What was sent in part goes on: the peer waits for it.
        self.incoming.restart();
    }

    fn flush(&mut self) {
        // Whatever stops it, the next frame meets it again.
        let _ = self.with(|stream| stream.outgoing.flush(&stream.socket));
    }

    fn receive(&mut self, buffers: &[IoVec<'_>]) -> io::Result<Received> {
        self.with(|stream| stream.incoming.receive(&stream.socket, buffers))
    }

    fn discard(&mut self) -> io::Result<()> {
        self.with(|stream| stream.incoming.discard(&stream.socket))
    }

    fn send(&mut self, frame: &[IoVec<'_>]) -> io::Result<()> {
        self.with(|stream| stream.outgoing.send(&stream.socket, frame))
    }
}

impl Uplink for StreamLink {
    fn link_is_up(&mut self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Puts the `len` bytes of `buffers` from `offset` on at the end of `into`.
fn cut<'m>(buffers: &[IoVec<'m>], mut offset: usize, mut len: usize, into: &mut Vec<IoVec<'m>>) {
    for buffer in buffers {
        let here = buffer.len().saturating_sub(offset).min(len);
        if here > 0
            && let Ok(slice) = buffer.slice().subslice(offset, here)
        {
            into.push(IoVec::new(&slice));
            len -= here;
        }
        offset = offset.saturating_sub(buffer.len());
    }
}

//! The host's ends of console output: things that take bytes, at their own pace.
//!
//! Owned and called by the console's writer thread alone. A consumer blocks only in
//! [`Consumer::wait`], which can be cancelled, as far as that is in its hands: a descriptor is polled
//! before it is written, so that one that is shared with other programs (standard output) need not be
//! made non-blocking for all of them.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::flag::Flag;

/// What became of offered bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offer {
    /// So many of them were taken.
    Took(usize),
    /// None for now; somebody is there and may take some later.
    Busy,
    /// Nobody is there to take them.
    Absent,
}

/// Something that takes console output.
pub(super) trait Consumer: Send {
    /// Offers `bytes`, which are not empty and at most [`super::sink::CHUNK`].
    ///
    /// # Errors
    /// After any error but `Interrupted` the consumer is not used again.
    fn offer(&mut self, bytes: &[u8]) -> io::Result<Offer>;

    /// Waits until an offer may fare better than the last one, or `cancel` is raised. May return early.
    fn wait(&mut self, cancel: &Flag);
}

/// What a consumer is worth waiting for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Policy {
    /// Bytes in the ring and on their way out of it; at least two [`super::sink::CHUNK`]s, of which one
    /// may be on its way.
    pub(super) capacity: usize,
    /// How long a consumer may take nothing before it counts as stalled.
    pub(super) patience: Duration,
    /// Somebody is supposed to read. Otherwise a stall is nothing to tell, or to wait for at the end.
    pub(super) expects_reader: bool,
}

/// How long to wait where there is no event to wait for.
const RETRY: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 10_000_000,
};

/// Waits for any of `fds` or `cancel`. A failing poll counts as an event: the next offer tells why.
pub(super) fn wait_any(fds: &[(BorrowedFd<'_>, PollFlags)], cancel: &Flag) {
    let mut polled = vec![PollFd::from_borrowed_fd(cancel.as_fd(), PollFlags::IN)];
    polled.extend(
        fds.iter()
            .map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)),
    );
    let _ = poll(&mut polled, None);
}

/// Waits a moment, or for `cancel`.
fn pause(cancel: &Flag) {
    let mut polled = [PollFd::from_borrowed_fd(cancel.as_fd(), PollFlags::IN)];
    let _ = poll(&mut polled, Some(&RETRY));
}

/// A file, pipe, terminal or socket.
#[derive(Debug)]
pub(super) struct Descriptor {
    fd: OwnedFd,
    /// It said that it could be written, and then that it could not.
    contrary: bool,
}

impl Descriptor {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            contrary: false,
        }
    }

    fn is_ready(&self) -> bool {
        let mut polled = [PollFd::new(&self.fd, PollFlags::OUT)];
        // An error or a hang-up is ready too: the write tells which.
        !matches!(poll(&mut polled, Some(&Timespec::default())), Ok(0))
    }
}

impl Consumer for Descriptor {
    fn offer(&mut self, bytes: &[u8]) -> io::Result<Offer> {
        self.contrary = false;
        if !self.is_ready() {
            return Ok(Offer::Busy);
        }
        match rustix::io::write(&self.fd, bytes) {
            Ok(count) => Ok(Offer::Took(count)),
            Err(Errno::AGAIN) => {
                self.contrary = true;
                Ok(Offer::Busy)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn wait(&mut self, cancel: &Flag) {
        if self.contrary {
            pause(cancel);
        } else {
            wait_any(&[(self.fd.as_fd(), PollFlags::OUT)], cancel);
        }
    }
}

/// Whether an error says nothing about the next attempt.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, WouldBlock};
    matches!(error.kind(), Interrupted | WouldBlock)
}

/// An embedder's own writer. Its writes may block; while one does, the thread cannot be ended.
pub(super) struct Custom(pub(super) Box<dyn Write + Send>);

impl Consumer for Custom {
    fn offer(&mut self, bytes: &[u8]) -> io::Result<Offer> {
        match self.0.write(bytes) {
            Ok(count) => match self.0.flush() {
                // The bytes are taken; a later flush moves them on.
                Err(error) if !is_passing(&error) => Err(error),
                _ => Ok(Offer::Took(count)),
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Offer::Busy),
            Err(error) => Err(error),
        }
    }

    fn wait(&mut self, cancel: &Flag) {
        pause(cancel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_pipe_is_busy_and_a_broken_one_fails() {
        let (reader, writer) = io::pipe().unwrap();
        let mut consumer = Descriptor::new(writer.into());
        let chunk = [0; 4096];
        // The descriptor is in blocking mode: without the poll, this would never end.
        while consumer.offer(&chunk).unwrap() != Offer::Busy {}
        drop(reader);
        let error = consumer.offer(&chunk).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn waiting_can_be_cancelled() {
        let (_reader, writer) = io::pipe().unwrap();
        let mut consumer = Descriptor::new(writer.into());
        while consumer.offer(&[0; 4096]).unwrap() != Offer::Busy {}
        let cancel = Flag::new().unwrap();
        cancel.raise();
        consumer.wait(&cancel);
    }

    #[test]
    fn a_custom_writer_is_flushed_and_may_be_busy() {
        struct Fussy(bool, Vec<u8>);
        impl Write for Fussy {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                if std::mem::replace(&mut self.0, true) {
                    self.1.extend(bytes);
                    return Ok(bytes.len());
                }
                Err(io::ErrorKind::WouldBlock.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                assert_eq!(self.1, b"x");
                Err(io::ErrorKind::StorageFull.into())
            }
        }
        let mut consumer = Custom(Box::new(Fussy(false, Vec::new())));
        assert_eq!(consumer.offer(b"x").unwrap(), Offer::Busy);
        consumer.wait(&Flag::new().unwrap());
        let error = consumer.offer(b"x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}

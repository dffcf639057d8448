//! Where what arrives of a stream is written.

use alloc::collections::VecDeque;

use rustix::fd::OwnedFd;
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::{Errno, write};

use super::WINDOW;
use crate::frame::Malformed;

/// POSIX promises that a pipe which polls writable takes this much (`PIPE_BUF`) without blocking.
const GULP: usize = 4096;

#[derive(Debug)]
pub(super) struct Sink {
    /// None once nobody reads it.
    pub fd: Option<OwnedFd>,
    /// The most that is given to it at once.
    gulp: usize,
    pub waiting: VecDeque<u8>,
    /// Taken by the sink, and the peer does not know yet.
    pub owed: u32,
    /// The peer has sent all of it.
    pub ended: bool,
}

impl Sink {
    /// Nothing has arrived.
    pub fn new(fd: OwnedFd) -> Self {
        let gulp = match fcntl_getfl(&fd) {
            Ok(flags) if flags.contains(OFlags::NONBLOCK) => WINDOW as usize,
            _ => GULP,
        };
        Self {
            fd: Some(fd),
            gulp,
            waiting: VecDeque::with_capacity(WINDOW as usize),
            owed: 0,
            ended: false,
        }
    }

    /// Keeps what arrived until the sink takes it.
    pub fn take(&mut self, data: &[u8]) -> Result<(), Malformed> {
        if self.ended {
            return Err(Malformed("data after the end of its stream"));
        }
        // What the sink has taken is not the peer's again before it was told so.
        if self.owed as usize + self.waiting.len() + data.len() > WINDOW as usize {
            return Err(Malformed("more data than its window"));
        }
        if self.fd.is_some() {
            self.waiting.extend(data);
        }
        Ok(())
    }

    /// Gives the sink what it must be able to take; whether it still can.
    pub fn write(&mut self) -> bool {
        let Some(fd) = &self.fd else { return false };
        let (first, _) = self.waiting.as_slices();
        match write(fd, &first[..first.len().min(self.gulp)]) {
            Ok(count) => {
                self.waiting.drain(..count);
                // At most a window, so it fits.
                self.owed += u32::try_from(count).unwrap_or(0);
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => true,
            Err(_) => false,
        }
    }
}

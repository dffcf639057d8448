//! Whether a tap's link is up, and a descriptor that wakes when that may have changed.
//!
//! A tap of this network namespace is asked about by name, and rtnetlink tells of changes. A descriptor
//! that was opened in another namespace has a name that means nothing here: what is left is that the
//! kernel calls it writable only while its interface is up. That it went down then shows when a frame
//! cannot be sent.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, recv};

use super::sys;

/// Messages taken off rtnetlink at once, before the interface itself is asked.
const MESSAGES: usize = 64;

/// A tap's link.
#[derive(Debug)]
pub(super) struct Link {
    /// For a tap of this network namespace.
    here: Option<Here>,
}

#[derive(Debug)]
struct Here {
    socket: OwnedFd,
    events: OwnedFd,
}

impl Link {
    /// The link of the interface `name`, of which `queue` is one.
    pub(super) fn of(queue: BorrowedFd<'_>, name: &str) -> io::Result<Self> {
        let socket = sys::control_socket()?;
        // Two interfaces may have one name, but not one address.
        let here =
            sys::address(queue, "")? == sys::address(socket.as_fd(), name).unwrap_or_default();
        if !here {
            return Ok(Self::foreign());
        }
        let events = sys::link_socket()?;
        Ok(Self {
            here: Some(Here { socket, events }),
        })
    }

    /// The link of an interface in another network namespace.
    pub(super) fn foreign() -> Self {
        Self { here: None }
    }

    /// A socket to ask about the interface with, if it is of this network namespace.
    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.here.as_ref().map(|here| here.socket.as_fd())
    }

    pub(super) fn event(&self) -> Option<RawFd> {
        self.here.as_ref().map(|here| here.events.as_raw_fd())
    }

    /// Whether it is up now. Takes note of what rtnetlink had to say until now.
    pub(super) fn is_up(&self, queue: BorrowedFd<'_>) -> bool {
        match &self.here {
            Some(here) => {
                here.drain();
                here.is_up(queue).unwrap_or(false)
            }
            None => is_writable(queue),
        }
    }
}

impl Here {
    /// What the messages say does not matter: some may be missing (ENOBUFS), and the interface knows better.
    fn drain(&self) {
        let mut message = [0; 16];
        for _ in 0..MESSAGES {
            let received = recv(&self.events, &mut message, RecvFlags::TRUNC);
            if matches!(received, Err(rustix::io::Errno::AGAIN)) {
                break;
            }
        }
    }

    fn is_up(&self, queue: BorrowedFd<'_>) -> io::Result<bool> {
        // Asked anew, as the interface may have been given another name.
        let (name, _) = sys::interface(queue)?;
        let up = libc::IFF_UP | libc::IFF_RUNNING;
        Ok(sys::flags(self.socket.as_fd(), &name)? & up == up)
    }
}

fn is_writable(queue: BorrowedFd<'_>) -> bool {
    let mut queue = [PollFd::from_borrowed_fd(queue, PollFlags::OUT)];
    let asked = poll(&mut queue, Some(&Timespec::default()));
    asked.is_ok() && queue[0].revents().contains(PollFlags::OUT)
}

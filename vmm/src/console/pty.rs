//! A pseudo-terminal as the console: the user opens its other side with a terminal program.
//!
//! The slave is held open here too. Otherwise the master would report a hang-up, without end, while
//! nobody else has it open, and lose its settings each time the last user leaves. The price is that one
//! cannot tell whether anybody reads; who does not, within [`PATIENCE`], counts as absent.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use super::consumer::Policy;

/// How long a reader may take nothing before the guest goes on without it.
const PATIENCE: Duration = Duration::from_millis(100);

/// What is kept for a reader that comes later.
const CAPACITY: usize = 64 << 10;

/// How long the last output may take to be read before the terminal is hung up, which discards it.
const PARTING: Duration = Duration::from_millis(100);

/// The sink's treatment of a reader that may not be there.
pub(super) const POLICY: Policy = Policy {
    capacity: CAPACITY,
    patience: PATIENCE,
    expects_reader: false,
};

/// Both sides of a new pseudo-terminal.
#[derive(Debug)]
pub(super) struct Pty {
    /// Non-blocking; no other program shares this description.
    pub(super) master: OwnedFd,
    pub(super) slave: Slave,
}

/// The user's side.
#[derive(Debug)]
pub(super) struct Slave {
    fd: OwnedFd,
    path: PathBuf,
}

impl Pty {
    /// Opens one, in raw mode: bytes pass unchanged both ways, and nothing is echoed.
    pub(super) fn open() -> io::Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        rustix::io::ioctl_fionbio(&master, true)?;
        let name = ptsname(&master, Vec::new())?;
        let fd = rustix::fs::open(
            name.as_c_str(),
            OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let mut termios = tcgetattr(&fd)?;
        termios.make_raw();
        tcsetattr(&fd, OptionalActions::Now, &termios)?;
        let path = PathBuf::from(name.to_string_lossy().into_owned());
        Ok(Self {
            master,
            slave: Slave { fd, path },
        })
    }
}

impl Slave {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives a reader the time to read what is in the terminal, if one does.
    pub(super) fn part(&self) {
        let start = Instant::now();
        while start.elapsed() < PARTING
            && rustix::io::ioctl_fionread(&self.fd).is_ok_and(|unread| unread > 0)
        {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

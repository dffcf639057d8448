//! Signals as events of the main loop: a handler only marks and wakes, what to do is decided there.
//!
//! signal(7), nohup(1).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::ptr;

use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGWINCH, SIGXFSZ};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use crate::status;

/// What a signal asks of mvm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Ask the guest first: SIGTERM, SIGINT.
    PowerOff(Number),
    /// End at once: SIGHUP, SIGQUIT.
    End(Number),
    /// Stop the process: SIGTSTP.
    Suspend,
    /// The process was continued: SIGCONT.
    Resume,
    /// The terminal's size changed: SIGWINCH.
    Resize,
}

/// A signal's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Number(pub u8);

impl Number {
    /// The signal's name.
    pub fn name(self) -> &'static str {
        signal_hook::low_level::signal_name(i32::from(self.0)).unwrap_or("the signal")
    }

    /// The exit status of what it ended.
    pub fn status(self) -> u8 {
        status::SIGNAL_BASE.saturating_add(self.0)
    }
}

/// The signals that this process watches.
#[derive(Debug)]
pub struct Signals {
    delivery: SignalDelivery<UnixStream, SignalOnly>,
}

impl Signals {
    /// Watches the signals that end a VM, and those of its terminal where it has one; and SIGXFSZ, of which
    /// nothing comes: a guest that makes a file longer than `ulimit -f` is then told so, and not the end of
    /// mvm.
    ///
    /// A signal that was ignored when mvm started stays ignored: that is how nohup(1) and a shell's
    /// background jobs protect their children.
    pub fn watch(at_terminal: bool) -> io::Result<Self> {
        let ending = [SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGXFSZ];
        let terminal = [SIGTSTP, SIGCONT, SIGWINCH];
        let terminal = terminal.into_iter().filter(|_| at_terminal);
        let mut wanted = Vec::with_capacity(8);
        for signal in ending.into_iter().chain(terminal) {
            if !is_ignored(signal)? {
                wanted.push(signal);
            }
        }
        let (read, write) = UnixStream::pair()?;
        let delivery = SignalDelivery::with_pipe(read, write, SignalOnly, wanted)?;
        Ok(Self { delivery })
    }

    /// What has arrived since the last call, in no particular order.
    pub fn pending(&mut self) -> impl Iterator<Item = Request> {
        self.delivery.pending().filter_map(request)
    }
}

impl AsFd for Signals {
    /// Readable when a signal has arrived.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.delivery.get_read().as_fd()
    }
}

fn request(signal: i32) -> Option<Request> {
    let number = Number(u8::try_from(signal).ok()?);
    match signal {
        SIGTERM | SIGINT => Some(Request::PowerOff(number)),
        SIGHUP | SIGQUIT => Some(Request::End(number)),
        SIGTSTP => Some(Request::Suspend),
        SIGCONT => Some(Request::Resume),
        SIGWINCH => Some(Request::Resize),
        _ => None,
    }
}

fn is_ignored(signal: i32) -> io::Result<bool> {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action sigaction only writes the current one to the pointer given.
    if unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so the action is written.
    let action = unsafe { action.assume_init() };
    Ok(action.sa_sigaction == libc::SIG_IGN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_each_signal_asks() {
        assert_eq!(request(SIGTERM), Some(Request::PowerOff(Number(15))));
        assert_eq!(request(SIGINT), Some(Request::PowerOff(Number(2))));
        assert_eq!(request(SIGHUP), Some(Request::End(Number(1))));
        assert_eq!(request(SIGQUIT), Some(Request::End(Number(3))));
        assert_eq!(request(SIGTSTP), Some(Request::Suspend));
        assert_eq!(request(SIGCONT), Some(Request::Resume));
        assert_eq!(request(SIGWINCH), Some(Request::Resize));
        assert_eq!(request(SIGXFSZ), None);
        assert_eq!(request(64), None);
        assert_eq!(Number(15).name(), "SIGTERM");
        assert_eq!(Number(15).status(), 143);
    }

    #[test]
    fn an_ignored_signal_is_seen_as_such() {
        // Rust ignores SIGPIPE before main.
        assert!(is_ignored(libc::SIGPIPE).unwrap());
        assert!(!is_ignored(SIGWINCH).unwrap());
        assert!(is_ignored(0).is_err());
    }
}

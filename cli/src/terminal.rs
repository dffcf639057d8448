//! The user's terminal: raw while the guest has it, as it was however mvm ends.
//!
//! Terminal modes belong to the device, not to the process, so they outlive it. The saved modes are
//! therefore kept where a panic hook finds them, and [`RawTerminal`] gives them back when dropped.
//! termios(3), termios(4).

use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::panic;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;

use rustix::process::{Pid, Signal, getpgrp, getpid, kill_process};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr};
use vmm::config::TerminalSize;

/// What standard input was before the guest got it; `None` while it is not the guest's.
static STDIN: Mutex<Option<RawMode<BorrowedFd<'static>>>> = Mutex::new(None);

type Saved = MutexGuard<'static, Option<RawMode<BorrowedFd<'static>>>>;

/// A terminal in raw mode, and the modes to give back.
#[derive(Debug)]
struct RawMode<Fd: AsFd> {
    terminal: Fd,
    cooked: Termios,
}

impl<Fd: AsFd> RawMode<Fd> {
    fn enter(terminal: Fd) -> io::Result<Self> {
        let cooked = tcgetattr(&terminal)?;
        let mode = Self { terminal, cooked };
        mode.make_raw()?;
        Ok(mode)
    }

    fn make_raw(&self) -> io::Result<()> {
        let mut raw = self.cooked.clone();
        raw.make_raw();
        // Now, not after the output has drained: a stopped terminal would never drain.
        Ok(tcsetattr(&self.terminal, OptionalActions::Now, &raw)?)
    }

    fn restore(&self) -> io::Result<()> {
        Ok(tcsetattr(
            &self.terminal,
            OptionalActions::Now,
            &self.cooked,
        )?)
    }

    /// A background process that sets modes is stopped by SIGTTOU, and the modes are its shell's then.
    fn in_foreground(&self) -> bool {
        // Where there is no job control there is no background either.
        tcgetpgrp(&self.terminal).map_or(true, |group: Pid| group == getpgrp())
    }
}

/// The size of the terminal, where standard input and output are one.
pub fn size() -> Option<TerminalSize> {
    let (stdin, stdout) = (rustix::stdio::stdin(), rustix::stdio::stdout());
    if !stdin.is_terminal() || !stdout.is_terminal() {
        return None;
    }
    let size = tcgetwinsize(stdout).ok()?;
    Some(TerminalSize {
        columns: size.ws_col,
        rows: size.ws_row,
    })
}

/// Standard input in raw mode, until dropped.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Makes standard input raw; `None` where it is not a terminal.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = rustix::stdio::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        restore_on_panic();
        *saved() = Some(RawMode::enter(stdin)?);
        Ok(Some(Self(())))
    }

    /// Stops this process as Ctrl-Z would, with the terminal as it was; returns when it is continued.
    pub fn stop_process(&self) {
        restore(&saved());
        // The signal that was caught only asks; this one stops. It cannot fail for the own process.
        let _ = kill_process(getpid(), Signal::STOP);
        self.resume();
    }

    /// Takes the terminal again after the process was stopped, where it has it.
    pub fn resume(&self) {
        take_again(&saved());
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore_now();
    }
}

/// Gives the terminal back for good: before a message of last resort, or an exit that drops nothing.
pub fn restore_now() {
    let mut saved = saved();
    restore(&saved);
    *saved = None;
}

fn restore(saved: &Option<RawMode<BorrowedFd<'static>>>) {
    // A terminal that has gone away needs no restoring.
    if let Some(mode) = saved
        && mode.in_foreground()
    {
        let _ = mode.restore();
    }
}

fn saved() -> Saved {
    STDIN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn saved_without_waiting() -> Option<Saved> {
    match STDIN.try_lock() {
        Ok(saved) => Some(saved),
        Err(TryLockError::Poisoned(saved)) => Some(saved.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// Has a panic reported to a terminal as it was. It stays so where this thread panics, which ends mvm; a panic of another
/// may be caught, or ends the VM in order.
fn restore_on_panic() {
    let report = panic::take_hook();
    let keeper = thread::current().id();
    panic::set_hook(Box::new(move |panic| {
        // The panicking thread may hold the lock.
        let saved = saved_without_waiting();
        if let Some(saved) = &saved {
            restore(saved);
        }
        report(panic);
        if let Some(saved) = &saved
            && thread::current().id() != keeper
        {
            take_again(saved);
        }
    }));
}

fn take_again(saved: &Option<RawMode<BorrowedFd<'static>>>) {
    if let Some(mode) = saved
        && mode.in_foreground()
        && let Err(error) = mode.make_raw()
    {
        log::warn!("the terminal cannot be made raw again: {error}");
    }
}

/// Writes lines for the user to standard error, each with `mvm: ` before it, in one piece.
///
/// While the terminal is raw a line feed alone would not return the carriage.
pub fn say(line: &str) {
    let text = format!("mvm: {line}{}", line_end());
    // Nobody is left to tell where standard error is closed.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Shows lines on standard error, on lines of their own.
pub fn show(lines: &[&str]) {
    let end = line_end();
    let mut text = end.to_owned();
    for line in lines {
        text.push_str(line);
        text.push_str(end);
    }
    let _ = io::stderr().write_all(text.as_bytes());
}

/// What ends a line on standard error now.
pub fn line_end() -> &'static str {
    // A log line may be written while the modes are being changed.
    let raw = saved_without_waiting().is_some_and(|saved| saved.is_some());
    if raw && io::stderr().is_terminal() {
        "\r\n"
    } else {
        "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Mode, OFlags, open};
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::LocalModes;
    use std::env;
    use std::os::fd::OwnedFd;
    use std::process::Command;

    /// Both ends; the first keeps the terminal alive.
    fn pty() -> (OwnedFd, OwnedFd) {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
        let controller = openpt(flags).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let name = ptsname(&controller, Vec::new()).unwrap();
        let user = open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        (controller, user)
    }

    fn modes(terminal: &OwnedFd) -> String {
        format!("{:?}", tcgetattr(terminal).unwrap())
    }

    #[test]
    fn raw_and_back() {
        let (_controller, terminal) = pty();
        let before = modes(&terminal);
        let mode = RawMode::enter(&terminal).unwrap();
        let raw = tcgetattr(&terminal).unwrap().local_modes;
        assert!(!raw.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG));
        assert!(mode.in_foreground(), "not the controlling terminal");
        mode.restore().unwrap();
        assert_eq!(modes(&terminal), before);
        mode.make_raw().unwrap();
        assert_ne!(modes(&terminal), before);
        mode.restore().unwrap();
        assert_eq!(modes(&terminal), before);
    }

    #[test]
    fn a_panic_gives_the_terminal_back() {
        let (_controller, terminal) = pty();
        let before = modes(&terminal);
        let helper = "terminal::tests::panics_with_the_terminal";
        let output = Command::new(env::current_exe().unwrap())
            .args(["--ignored", "--exact", helper, "--nocapture"])
            .stdin(terminal.try_clone().unwrap())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("with the terminal raw"), "{said}");
        assert_eq!(modes(&terminal), before);
    }

    #[test]
    #[ignore = "run by a_panic_gives_the_terminal_back, in a process of its own"]
    fn panics_with_the_terminal() {
        let terminal = RawTerminal::enter().unwrap().expect("a terminal");
        // Only the hook is left to give it back.
        std::mem::forget(terminal);
        let is_cooked = || {
            let modes = tcgetattr(io::stdin()).unwrap();
            modes.local_modes.contains(LocalModes::ICANON)
        };
        assert!(!is_cooked());
        let other = thread::spawn(|| panic!("on another thread"));
        assert!(other.join().is_err());
        assert!(!is_cooked(), "the guest has it still");
        panic!("with the terminal raw");
    }

    #[test]
    fn what_is_no_terminal_cannot_be_raw() {
        let (read, _write) = rustix::pipe::pipe().unwrap();
        assert!(RawMode::enter(read).is_err());
    }
}

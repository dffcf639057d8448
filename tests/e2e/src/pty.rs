//! `mvm` at a terminal: a pseudo-terminal whose other end is the test.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{
    LocalModes, OptionalActions, Termios, Winsize, tcgetattr, tcsetattr, tcsetwinsize,
};

use crate::context::Context;
use crate::vm::{Mvm, Outcome, Stream, Transcript, until, wait_until};

/// A run of `mvm` at a terminal of its own.
#[derive(Debug)]
pub struct TerminalVm {
    child: Child,
    master: File,
    /// Kept open: the terminal's settings live as long as somebody has it open.
    slave: OwnedFd,
    before: Settings,
    transcript: Arc<Transcript>,
    deadline: Instant,
}

/// What can be seen to change in a terminal's settings.
#[derive(Debug, PartialEq, Eq)]
struct Settings {
    input: u32,
    output: u32,
    control: u32,
    local: u32,
}

impl From<Termios> for Settings {
    fn from(termios: Termios) -> Self {
        Self {
            input: termios.input_modes.bits(),
            output: termios.output_modes.bits(),
            control: termios.control_modes.bits(),
            local: termios.local_modes.bits(),
        }
    }
}

fn window(columns: u16, rows: u16) -> Winsize {
    Winsize {
        ws_col: columns,
        ws_row: rows,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

impl TerminalVm {
    /// Starts it as the leader of a session with a controlling terminal, as a terminal emulator does.
    pub fn spawn(context: &Context, mvm: &Mvm<'_>) -> Result<Self> {
        Self::spawn_sized(context, mvm, 80, 24)
    }

    /// The same, in a window of this size.
    pub fn spawn_sized(context: &Context, mvm: &Mvm<'_>, columns: u16, rows: u16) -> Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?;
        let slave = open_slave(OsStr::from_bytes(name.as_bytes()))?;
        tcsetwinsize(&master, window(columns, rows))?;
        // Something that is not the default, to see that this comes back and not just something sane.
        let mut settings = tcgetattr(&slave)?;
        settings.local_modes.remove(LocalModes::ECHOE);
        tcsetattr(&slave, OptionalActions::Now, &settings)?;
        let before = Settings::from(settings);

        let mut command = Command::new(mvm.program());
        command
            .args(mvm.finish())
            .stdin(slave.try_clone()?)
            .stdout(slave.try_clone()?)
            .stderr(slave.try_clone()?);
        // SAFETY: both calls are plain system calls, which are safe between fork and exec; descriptor 0 is the
        // terminal.
        unsafe {
            command.pre_exec(|| {
                rustix::process::setsid()?;
                rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
                Ok(())
            });
        }
        let child = command.spawn().context("cannot start mvm")?;
        let transcript = context.transcript(mvm.to_line());
        let master = File::from(master);
        transcript.follow(master.try_clone()?, Stream::Stdout, Duration::ZERO);
        Ok(Self {
            child,
            master,
            slave: slave.into(),
            before,
            transcript,
            deadline: context.deadline,
        })
    }

    /// Gives the window another size.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        Ok(tcsetwinsize(&self.master, window(columns, rows))?)
    }

    /// Waits until this is on the screen.
    pub fn wait_for(&self, text: &str) -> Result<()> {
        self.transcript.wait_for(text, self.deadline)
    }

    /// Types.
    pub fn type_in(&mut self, keys: &[u8]) -> Result<()> {
        Ok(self.master.write_all(keys)?)
    }

    /// Types the same thing again and again until this is on the screen.
    pub fn asks_until(&mut self, keys: &[u8], text: &str) -> Result<()> {
        let (transcript, deadline) = (self.transcript.clone(), self.deadline);
        until(deadline, text, || {
            self.type_in(keys)?;
            Ok(transcript.stdout().contains(text))
        })
    }

    /// Sends a signal to `mvm` alone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id())
            .ok()
            .and_then(Pid::from_raw)
            .context("no process id")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Fails unless the terminal is raw.
    pub fn is_raw(&self) -> Result<()> {
        let modes = tcgetattr(&self.slave)?.local_modes;
        ensure!(
            !modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG),
            "the terminal is not raw while the guest runs: {modes:?}"
        );
        Ok(())
    }

    /// Waits for the end, checks the status, and that the terminal is as it was.
    pub fn exits_with(&mut self, status: i32) -> Result<()> {
        let ended = wait_until(&mut self.child, self.deadline)?;
        let after = Settings::from(tcgetattr(&self.slave)?);
        let outcome = Outcome {
            status: ended,
            stdout: self.transcript.stdout(),
            stderr: String::new(),
        };
        outcome.check(status)?;
        ensure!(
            after == self.before,
            "the terminal was left as {after:?}, not {:?}",
            self.before
        );
        Ok(())
    }
}

impl Drop for TerminalVm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn open_slave(path: &OsStr) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt;

    let flags = rustix::fs::OFlags::NOCTTY.bits();
    Ok(OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags.try_into()?)
        .open(path)?)
}

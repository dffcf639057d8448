//! A command in a VM of its own, in the manner of [`std::process`]: for tests that boot a kernel each.
//!
//! ```no_run
//! use std::time::Duration;
//! use vmm::config::VmConfig;
//! use vmm::run::Command;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut config = VmConfig::new("bzImage");
//! config.rootfs = Some("img.ext4,ro".parse()?);
//! let output = Command::new(config, "make")
//!     .arg("check")
//!     .timeout(Duration::from_secs(60))
//!     .output()?;
//! assert!(output.status.success(), "{output}");
//! # Ok(())
//! # }
//! ```
//!
//! The guest's own init is not used; see [`CommandConfig`]. What the guest's kernel says is kept, as far
//! as it fits, and shown with an output.

use std::fmt;
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use thiserror::Error;

use crate::config::{CommandConfig, VmConfig};
use crate::console::{Console, Tail};
use crate::{BuildError, CommandEnd, CommandIo, ExitReason, Running, VmBuilder, VmError, VmHandle};

/// Where one of a command's streams goes.
#[derive(Debug)]
pub enum Stdio {
    /// Where this process's goes.
    Inherit,
    /// To [`Child`], or into the output.
    Piped,
    /// Nowhere.
    Null,
    /// To or from this descriptor.
    Fd(OwnedFd),
}

/// Why a command could not be run to its end.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RunError {
    /// The VM could not be assembled.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The VM could not be run.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The host is out of something.
    #[error("{what}: {source}")]
    Host {
        /// What for.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

fn host(what: &'static str) -> impl Fn(io::Error) -> RunError {
    move |source| RunError::Host { what, source }
}

/// A command and the VM it is to run in.
#[derive(Debug)]
pub struct Command {
    config: VmConfig,
    command: CommandConfig,
    stdin: Option<Stdio>,
    stdout: Option<Stdio>,
    stderr: Option<Stdio>,
    timeout: Option<Duration>,
}

impl Command {
    /// The program `program` in a guest made of `config`.
    pub fn new(mut config: VmConfig, program: impl Into<String>) -> Self {
        let mut command = config.command.take().unwrap_or_default();
        command.words = vec![program.into()];
        Self {
            config,
            command,
            stdin: None,
            stdout: None,
            stderr: None,
            timeout: None,
        }
    }

    /// A further argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.command.words.push(arg.into());
        self
    }

    /// Further arguments.
    #[must_use]
    pub fn args<T: Into<String>>(mut self, args: impl IntoIterator<Item = T>) -> Self {
        self.command.words.extend(args.into_iter().map(Into::into));
        self
    }

    /// An environment variable. Nothing of this process's environment is passed on by itself.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env.push(format!("{name}={value}"));
        self
    }

    /// The guest's directory in which it starts.
    #[must_use]
    pub fn workdir(mut self, path: impl Into<PathBuf>) -> Self {
        self.command.workdir = Some(path.into());
        self
    }

    /// Ends the VM when the command has not ended by then.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Where its input comes from: by default from where this process's does, and for
    /// [`output`](Self::output) from nowhere.
    #[must_use]
    pub fn stdin(mut self, stdin: Stdio) -> Self {
        self.stdin = Some(stdin);
        self
    }

    /// Where its output goes: by default where this process's does, and for [`output`](Self::output)
    /// there.
    #[must_use]
    pub fn stdout(mut self, stdout: Stdio) -> Self {
        self.stdout = Some(stdout);
        self
    }

    /// As [`stdout`](Self::stdout).
    #[must_use]
    pub fn stderr(mut self, stderr: Stdio) -> Self {
        self.stderr = Some(stderr);
        self
    }

    /// Boots the VM, and lets go of it.
    ///
    /// # Errors
    /// What keeps the VM from running. What is wrong with the command itself is known only in the guest,
    /// and is the [`Status`].
    pub fn spawn(self) -> Result<Child, RunError> {
        let mut config = self.config;
        config.command = Some(self.command);
        let (stdin, theirs_in) = input(self.stdin.unwrap_or(Stdio::Inherit))?;
        let (stdout, theirs_out) = output(self.stdout.unwrap_or(Stdio::Inherit), io::stdout())?;
        let (stderr, theirs_err) = output(self.stderr.unwrap_or(Stdio::Inherit), io::stderr())?;
        let console = Tail::default();
        let vm = VmBuilder::new(config)
            .console(Console::from_parts(None, Box::new(console.clone())))
            .command_io(CommandIo {
                stdin: theirs_in,
                stdout: theirs_out,
                stderr: theirs_err,
            })
            .build()?;
        Ok(Child {
            stdin,
            stdout,
            stderr,
            deadline: self
                .timeout
                .and_then(|timeout| Instant::now().checked_add(timeout)),
            running: vm.run()?,
            console,
        })
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// As for [`spawn`](Self::spawn).
    pub fn status(self) -> Result<Status, RunError> {
        self.spawn()?.wait()
    }

    /// Runs it to its end, and keeps what it writes.
    ///
    /// # Errors
    /// As for [`spawn`](Self::spawn).
    pub fn output(mut self) -> Result<Output, RunError> {
        self.stdin.get_or_insert(Stdio::Null);
        self.stdout.get_or_insert(Stdio::Piped);
        self.stderr.get_or_insert(Stdio::Piped);
        self.spawn()?.wait_with_output()
    }
}

/// A running command. Dropping it ends its VM.
#[derive(Debug)]
pub struct Child {
    /// Its input, if that is piped. Closing it is the end of its input.
    pub stdin: Option<PipeWriter>,
    /// Its output, if that is piped.
    pub stdout: Option<PipeReader>,
    /// Its messages, if those are piped.
    pub stderr: Option<PipeReader>,
    deadline: Option<Instant>,
    running: Running,
    console: Tail,
}

impl Child {
    /// A handle to the VM, for as long as anybody likes.
    #[must_use]
    pub fn handle(&self) -> VmHandle {
        self.running.handle()
    }

    /// Sends the command a signal.
    pub fn signal(&self, signal: u8) {
        if let Some(command) = self.handle().command() {
            command.signal(signal);
        }
    }

    /// Ends the VM now.
    pub fn kill(&self) {
        self.handle().stop();
    }

    /// Closes its input and waits for its end.
    ///
    /// # Errors
    /// KVM or the host failed the VM.
    pub fn wait(mut self) -> Result<Status, RunError> {
        drop(self.stdin.take());
        let timed_out = !self.ends_in_time();
        if timed_out {
            self.kill();
        }
        let exit = self.running.wait()?;
        Ok(match (exit.command, exit.reason) {
            (_, reason @ (ExitReason::Panicked | ExitReason::TripleFault)) => {
                Status::Crashed(reason)
            }
            (Some(end), _) if !matches!(end, CommandEnd::Lost { .. }) => Status::Ended(end),
            _ if timed_out => Status::TimedOut,
            (_, reason) => Status::Lost(reason),
        })
    }

    /// The same, and keeps what it writes to the streams that are piped.
    ///
    /// # Errors
    /// As for [`wait`](Self::wait), or no thread can be started to read with.
    pub fn wait_with_output(mut self) -> Result<Output, RunError> {
        let console = self.console.clone();
        let readers = [self.stdout.take(), self.stderr.take()].map(|stream| {
            let name = "output".to_owned();
            stream.map(|stream| thread::Builder::new().name(name).spawn(|| all_of(stream)))
        });
        let [stdout, stderr] = readers.map(Option::transpose);
        let (stdout, stderr) = (
            stdout.map_err(host("reader"))?,
            stderr.map_err(host("reader"))?,
        );
        let status = self.wait()?;
        // Their other ends are gone with the VM.
        let all = |reader: Option<thread::JoinHandle<Vec<u8>>>| {
            reader
                .and_then(|reader| reader.join().ok())
                .unwrap_or_default()
        };
        Ok(Output {
            status,
            stdout: all(stdout),
            stderr: all(stderr),
            console: console.text(),
        })
    }

    fn ends_in_time(&self) -> bool {
        loop {
            let left = self
                .deadline
                .map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let timeout = left.map(|left| Timespec::try_from(left).unwrap_or_default());
            let mut ended = [PollFd::new(&self.running, PollFlags::IN)];
            if poll(&mut ended, timeout.as_ref()).is_ok() {
                return !ended[0].revents().is_empty();
            }
        }
    }
}

/// How a command, or its VM, ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// The command ended, or was not there to be started.
    Ended(CommandEnd),
    /// The guest's kernel crashed.
    Crashed(ExitReason),
    /// The time was up.
    TimedOut,
    /// The VM ended before its command did: it was killed, or the guest powered off.
    Lost(ExitReason),
}

impl Status {
    /// Whether the command ended by itself with status 0.
    #[must_use]
    pub fn success(&self) -> bool {
        *self == Self::Ended(CommandEnd::Exited(0))
    }

    /// The status a shell would give the command, if it ended.
    #[must_use]
    pub fn code(&self) -> Option<u8> {
        match self {
            Self::Ended(end) => end.status(),
            _ => None,
        }
    }
}

/// What a command left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// How it ended.
    pub status: Status,
    /// What it wrote.
    pub stdout: Vec<u8>,
    /// Its messages.
    pub stderr: Vec<u8>,
    /// The last that the guest's kernel said.
    pub console: String,
}

impl fmt::Display for Output {
    /// For the message of a test that fails.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}", self.status)?;
        for (name, text) in [
            ("standard output", String::from_utf8_lossy(&self.stdout)),
            ("standard error", String::from_utf8_lossy(&self.stderr)),
            ("console", self.console.as_str().into()),
        ] {
            writeln!(f, "--- {name}\n{}", text.trim_end())?;
        }
        Ok(())
    }
}

fn all_of(mut stream: PipeReader) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A pipe does not fail.
    let _ = stream.read_to_end(&mut bytes);
    bytes
}

fn null() -> Result<OwnedFd, RunError> {
    let null = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null");
    Ok(null.map_err(host("/dev/null"))?.into())
}

fn input(stdin: Stdio) -> Result<(Option<PipeWriter>, OwnedFd), RunError> {
    Ok(match stdin {
        Stdio::Inherit => {
            let own = io::stdin().as_fd().try_clone_to_owned();
            (None, own.map_err(host("a standard stream"))?)
        }
        Stdio::Null => (None, null()?),
        Stdio::Fd(fd) => (None, fd),
        Stdio::Piped => {
            let (reader, writer) = io::pipe().map_err(host("a pipe"))?;
            (Some(writer), reader.into())
        }
    })
}

fn output(stdio: Stdio, inherited: impl AsFd) -> Result<(Option<PipeReader>, OwnedFd), RunError> {
    Ok(match stdio {
        Stdio::Inherit => {
            let own = inherited.as_fd().try_clone_to_owned();
            (None, own.map_err(host("a standard stream"))?)
        }
        Stdio::Null => (None, null()?),
        Stdio::Fd(fd) => (None, fd),
        Stdio::Piped => {
            let (reader, writer) = io::pipe().map_err(host("a pipe"))?;
            (Some(reader), writer.into())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_status_of_zero_is_success() {
        let exited = |status| Status::Ended(CommandEnd::Exited(status));
        assert!(exited(0).success());
        for (status, code) in [
            (exited(1), Some(1)),
            (Status::Ended(CommandEnd::Killed(9)), Some(137)),
            (Status::TimedOut, None),
            (Status::Crashed(ExitReason::Panicked), None),
        ] {
            assert!(!status.success());
            assert_eq!(status.code(), code);
        }
    }
}

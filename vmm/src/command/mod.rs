//! Running a command in the guest: an init of mvm's own, appended to the initramfs, starts it and carries
//! its streams and its end over a channel.
//!
//! ```text
//! builder ── archive: init, spec, modules ──► initramfs ──► guest: /mvm/init ── fork ──► command
//! session ◄═══ frames over vsock, or over the second serial port ════════► │ ◄── pipes ───┘
//!    ▲ ▼
//!  stdin, stdout, stderr
//! ```
//!
//! The session is a thread of the VM. The guest is not trusted: what it says is an end, bytes of a stream
//! or a line of text, and no more of it is held than a window a stream.

mod archive;
mod line;
mod modules;
mod session;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use init_lib::Control;
use init_lib::spec::{self, key};
use thiserror::Error;

use crate::config::{CommandConfig, VmConfig};
use crate::flag::Flag;
pub(crate) use line::CommandLine;

/// The host's vsock port that the guest's init connects to: "mvm" in ASCII.
const VSOCK_PORT: u32 = 0x6d_766d;
/// The guest's name for the second serial port.
const SERIAL: &str = "/dev/ttyS1";

/// Where the streams of a command are on the host. Blocking or not makes no difference.
#[derive(Debug)]
pub struct CommandIo {
    /// What the command reads.
    pub stdin: OwnedFd,
    /// Where its output goes.
    pub stdout: OwnedFd,
    /// Where its messages go; with a terminal, nothing.
    pub stderr: OwnedFd,
}

impl CommandIo {
    /// This process's own streams.
    ///
    /// # Errors
    /// One of them is closed, or no descriptors are left.
    pub fn inherit() -> io::Result<Self> {
        // Duplicates: closing them leaves the process its own.
        Ok(Self {
            stdin: io::stdin().as_fd().try_clone_to_owned()?,
            stdout: io::stdout().as_fd().try_clone_to_owned()?,
            stderr: io::stderr().as_fd().try_clone_to_owned()?,
        })
    }
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandEnd {
    /// By itself, with this status.
    Exited(u8),
    /// By a signal with this number.
    Killed(u8),
    /// It was not started.
    NotStarted {
        /// 127: there is no such program in the guest; 126: it cannot be executed; 125: the guest was not
        /// ready for it.
        status: u8,
        /// What was wrong, in one line.
        reason: String,
    },
    /// The VM was over before the command was.
    Lost {
        /// Whether the command had begun by then.
        started: bool,
    },
}

impl CommandEnd {
    /// The status a shell would give it; none for a command that was lost.
    #[must_use]
    pub fn status(&self) -> Option<u8> {
        match self {
            Self::Exited(status) | Self::NotStarted { status, .. } => Some(*status),
            Self::Killed(signal) => Some(signal.saturating_add(128)),
            Self::Lost { .. } => None,
        }
    }
}

/// Reaches a command in the guest from any thread; once it is over this does nothing.
#[derive(Debug, Clone)]
pub struct CommandHandle {
    orders: Sender<Control>,
    wake: Arc<Flag>,
}

impl CommandHandle {
    /// Sends a signal to the command.
    pub fn signal(&self, signal: u8) {
        self.order(Control::Signal { signal });
    }

    /// Tells the command's terminal its size.
    pub fn resize(&self, columns: u16, rows: u16) {
        self.order(Control::Resize { columns, rows });
    }

    fn order(&self, control: Control) {
        if self.orders.send(control).is_ok() {
            self.wake.raise();
        }
    }
}

/// Why the modules of a directory cannot be brought along.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ModulesError {
    /// A file of the directory cannot be read.
    #[error(
        "--modules {}: {file} cannot be read: {source}; name a directory such as /lib/modules/RELEASE",
        directory.display()
    )]
    Read {
        /// The directory.
        directory: PathBuf,
        /// The file in it.
        file: String,
        /// Why.
        source: io::Error,
    },
}

/// What is appended to the initramfs.
pub(crate) fn initramfs(
    config: &VmConfig,
    command: &CommandConfig,
) -> Result<Vec<u8>, ModulesError> {
    let mut archive = archive::Archive::default();
    archive.file(spec::INIT, 0o755, archive::INIT_PROGRAM);
    archive.file(spec::SPEC, 0o600, &guest_spec(config, command));
    if let Some(directory) = &command.modules {
        modules::add(&mut archive, directory)?;
    }
    Ok(archive.finish())
}

/// Words of the kernel command line that make the kernel start the init.
pub(crate) fn kernel_words() -> String {
    format!("rdinit=/{}", spec::INIT)
}

fn guest_spec(config: &VmConfig, command: &CommandConfig) -> Vec<u8> {
    let mut text = Vec::new();
    let mut put = |key: &str, value: &str| spec::put(&mut text, key, value.as_bytes());
    put(key::VSOCK, &VSOCK_PORT.to_string());
    put(key::SERIAL, SERIAL);
    if let Some((device, read_only)) = config.root() {
        let mode = if read_only { "ro" } else { "rw" };
        put(key::ROOT, &format!("{mode}:{device}"));
    }
    for share in &config.shares {
        let mode = if share.read_only { "ro" } else { "rw" };
        put(
            key::SHARE,
            &format!("{mode}:{}:{}", share.tag, share.mount_point()),
        );
    }
    if !config.nets.is_empty() {
        put(key::DHCP, "on");
    }
    command.words.iter().for_each(|word| put(key::ARG, word));
    command
        .env
        .iter()
        .for_each(|variable| put(key::ENV, variable));
    if let Some(workdir) = &command.workdir {
        put(key::DIRECTORY, &workdir.to_string_lossy());
    }
    if let Some(size) = command.terminal {
        put(key::TERMINAL, &format!("{}x{}", size.columns, size.rows));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_have_the_status_a_shell_gives_them() {
        assert_eq!(CommandEnd::Exited(3).status(), Some(3));
        assert_eq!(CommandEnd::Killed(9).status(), Some(137));
        assert_eq!(CommandEnd::Killed(200).status(), Some(255));
        assert_eq!(CommandEnd::Lost { started: true }.status(), None);
    }

    #[test]
    fn the_guest_is_told_of_the_command_and_its_root() {
        let mut config = VmConfig::new("vmlinux");
        config.rootfs = Some("img.ext4,ro".parse().unwrap());
        config.shares = vec![".,tag=src,ro".parse().unwrap()];
        let command = CommandConfig {
            env: vec!["A=b".to_owned()],
            workdir: Some("/src".into()),
            ..CommandConfig::new(["make", "a b"])
        };
        let text = guest_spec(&config, &command);
        let value =
            |key| spec::value(&text, key).map(|value| String::from_utf8_lossy(value).into_owned());
        assert_eq!(value(key::ROOT).as_deref(), Some("ro:/dev/vda"));
        assert_eq!(value(key::SHARE).as_deref(), Some("ro:src:/mnt/src"));
        assert_eq!(value(key::DIRECTORY).as_deref(), Some("/src"));
        assert_eq!(value(key::TERMINAL), None);
        let words: Vec<_> = spec::values(&text, key::ARG).collect();
        assert_eq!(words, [&b"make"[..], b"a b"]);
    }
}

//! Which console a guest has and where it goes, as configuration: `stdio`, `file=PATH`, `pty`,
//! `unix=PATH` or `none`; with `virtio,` before it for virtio-console, or `virtio` alone.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The guest's console. Written as on the command line, in a configuration file too.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ConsoleConfig {
    /// What it is for the guest.
    pub port: ConsolePort,
    /// Where it goes on the host.
    pub end: ConsoleEnd,
}

/// The guest's end of a console.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ConsolePort {
    /// The first serial port, `ttyS0` in Linux.
    #[default]
    Serial,
    /// A virtio-console, `hvc0` in Linux; until Linux has found it, its kernel speaks through the serial
    /// port.
    Virtio,
}

/// The host's end of a console.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum ConsoleEnd {
    /// Standard input and output of this process.
    #[default]
    Stdio,
    /// Output to a file, created or emptied; no input.
    File(PathBuf),
    /// A pseudo-terminal, for a terminal program to open.
    Pty,
    /// A listening unix socket, created here; one client at a time.
    Unix(PathBuf),
    /// Output is dropped; no input.
    None,
}

/// Why a console could not be read from text.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConsoleConfigError {
    /// None of the forms.
    #[error(
        "'{0}' is not a console; use stdio, file=PATH, pty, unix=PATH or none, after 'virtio,' for virtio-console"
    )]
    Unknown(String),
    /// A form that needs a path, without one.
    #[error("console '{0}' lacks its path; write {0}=PATH")]
    NoPath(&'static str),
}

impl From<ConsoleEnd> for ConsoleConfig {
    /// A serial console.
    fn from(end: ConsoleEnd) -> Self {
        let port = ConsolePort::Serial;
        Self { port, end }
    }
}

impl FromStr for ConsoleConfig {
    type Err = ConsoleConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (port, end) = match text.strip_prefix("virtio") {
            Some("") => (ConsolePort::Virtio, "stdio"),
            Some(rest) => (
                ConsolePort::Virtio,
                rest.strip_prefix(',')
                    .ok_or_else(|| ConsoleConfigError::Unknown(text.to_owned()))?,
            ),
            None => (ConsolePort::Serial, text),
        };
        let end = end.parse()?;
        Ok(Self { port, end })
    }
}

impl fmt::Display for ConsoleConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            ConsolePort::Serial => self.end.fmt(f),
            ConsolePort::Virtio => write!(f, "virtio,{}", self.end),
        }
    }
}

impl FromStr for ConsoleEnd {
    type Err = ConsoleConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let path = |kind, path: Option<&str>| match path {
            None | Some("") => Err(ConsoleConfigError::NoPath(kind)),
            Some(path) => Ok(PathBuf::from(path)),
        };
        // Only the first '=' separates: a path may contain more.
        let (kind, value) = match text.split_once('=') {
            Some((kind, value)) => (kind, Some(value)),
            None => (text, None),
        };
        match (kind, value) {
            ("stdio", None) => Ok(Self::Stdio),
            ("pty", None) => Ok(Self::Pty),
            ("none", None) => Ok(Self::None),
            ("file", value) => path("file", value).map(Self::File),
            ("unix", value) => path("unix", value).map(Self::Unix),
            _ => Err(ConsoleConfigError::Unknown(text.to_owned())),
        }
    }
}

impl fmt::Display for ConsoleEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdio => f.write_str("stdio"),
            Self::File(path) => write!(f, "file={}", path.display()),
            Self::Pty => f.write_str("pty"),
            Self::Unix(path) => write!(f, "unix={}", path.display()),
            Self::None => f.write_str("none"),
        }
    }
}

impl TryFrom<String> for ConsoleConfig {
    type Error = ConsoleConfigError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ConsoleConfig> for String {
    fn from(config: ConsoleConfig) -> Self {
        config.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_round_trips() {
        for (text, end) in [
            ("stdio", ConsoleEnd::Stdio),
            ("file=log.txt", ConsoleEnd::File("log.txt".into())),
            ("file=/a b/x=y,z", ConsoleEnd::File("/a b/x=y,z".into())),
            ("pty", ConsoleEnd::Pty),
            ("unix=/run/vm.sock", ConsoleEnd::Unix("/run/vm.sock".into())),
            ("none", ConsoleEnd::None),
        ] {
            let serial = ConsoleConfig::from(end.clone());
            let port = ConsolePort::Virtio;
            let virtio = ConsoleConfig { port, end };
            for (text, config) in [
                (text.to_owned(), serial),
                (format!("virtio,{text}"), virtio),
            ] {
                assert_eq!(text.parse(), Ok(config.clone()));
                assert_eq!(config.to_string(), text);
                assert_eq!(
                    ConsoleConfig::try_from(String::from(config.clone())),
                    Ok(config)
                );
            }
        }
        assert_eq!("stdio".parse(), Ok(ConsoleConfig::default()));
        assert_eq!("virtio".parse::<ConsoleConfig>(), "virtio,stdio".parse());
    }

    #[test]
    fn refusals_say_what_is_right() {
        for text in [
            "",
            "tty",
            "STDIO",
            "stdio=",
            "none=x",
            "pty=/dev/pts/1",
            "=x",
            "tcp=x",
            "virtio,",
            "virtio=x",
            "virtio,virtio",
            "virtiofile=x",
        ] {
            let error = text.parse::<ConsoleConfig>().unwrap_err();
            assert!(matches!(error, ConsoleConfigError::Unknown(_)), "{text}");
            assert!(
                error.to_string().contains("use stdio, file=PATH"),
                "{error}"
            );
        }
        for text in ["file", "file=", "unix", "unix="] {
            let error = text.parse::<ConsoleConfig>().unwrap_err().to_string();
            let kind = text.trim_end_matches('=');
            assert_eq!(
                error,
                format!("console '{kind}' lacks its path; write {kind}=PATH")
            );
        }
    }
}

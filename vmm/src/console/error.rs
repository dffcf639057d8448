//! Why a console could not be had, in one line each, with the remedy where there is one.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::socket::SocketError;

/// Why a console could not be opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConsoleError {
    /// Standard input or output is closed.
    #[error("the console cannot use standard {stream}: {source}; give --console file=PATH or none")]
    Stdio {
        /// `input` or `output`.
        stream: &'static str,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The folder that the file should be in is not there.
    #[error("console file {}: there is no folder {}; create it or choose another path", .path.display(), .parent.display())]
    NoParent {
        /// The path as given.
        path: PathBuf,
        /// Its folder.
        parent: PathBuf,
    },
    /// The output file is a folder.
    #[error("console file {} is a folder; name a file in it", .0.display())]
    IsFolder(PathBuf),
    /// The output file is a FIFO that nobody reads.
    #[error("console file {} is a FIFO that nobody reads; start its reader first", .0.display())]
    NoReader(PathBuf),
    /// The output file cannot be opened.
    #[error("console file {} cannot be written: {source}", .path.display())]
    File {
        /// The path as given.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The socket cannot be made.
    #[error("console socket {0}")]
    Socket(#[from] SocketError),
    /// No pseudo-terminal could be had.
    #[error("no pseudo-terminal for the console: {0}; is /dev/pts mounted?")]
    Pty(#[source] io::Error),
    /// The host gives no eventfd or thread.
    #[error("the console cannot be started: {0}")]
    Start(#[source] io::Error),
}

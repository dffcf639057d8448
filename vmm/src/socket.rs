//! Listening unix sockets in the file system: refused with a reason where they cannot be, and gone with
//! their owner.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Longest path of a socket: `sun_path` less its terminating zero (unix(7)).
pub const MAX_PATH: usize = 107;

/// Why there can be no socket at a path. The message opens with the path, to be put behind what the
/// socket is for.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SocketError {
    /// The folder that it should be in is not there.
    #[error("{}: there is no folder {}; create it or choose another path", .path.display(), .parent.display())]
    NoParent {
        /// The path as given.
        path: PathBuf,
        /// Its folder.
        parent: PathBuf,
    },
    /// Something is there already.
    #[error("{} exists already; remove it if no other VM uses it, or choose another path", .0.display())]
    Exists(PathBuf),
    /// The path is longer than the system allows.
    #[error("{} has a path of {length} bytes, at most {MAX_PATH} are possible; choose a shorter one", .path.display())]
    Length {
        /// The path as given.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// The system does not make it.
    #[error("{} cannot be made: {source}", .path.display())]
    Bind {
        /// The path as given.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

/// The socket's name in the file system, removed on drop if it is still the one that was made.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn identity(path: &Path) -> io::Result<(u64, u64)> {
        fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if Self::identity(&self.path).is_ok_and(|now| now == self.identity)
            && let Err(error) = fs::remove_file(&self.path)
        {
            log::warn!("socket {} stays: {error}", self.path.display());
        }
    }
}

/// A socket that listens at `path`, where nothing must be yet, and does not block.
///
/// # Errors
/// What is in the way, and the remedy.
pub fn listen(path: &Path) -> Result<(UnixListener, SocketFile), SocketError> {
    let length = path.as_os_str().as_bytes().len();
    if length > MAX_PATH {
        let path = path.to_owned();
        return Err(SocketError::Length { path, length });
    }
    if let Some(parent) = missing_parent(path) {
        let (path, parent) = (path.to_owned(), parent.to_owned());
        return Err(SocketError::NoParent { path, parent });
    }
    bind(path).map_err(|source| {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::AddrInUse => SocketError::Exists(path),
            _ => SocketError::Bind { path, source },
        }
    })
}

fn bind(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    let listener = UnixListener::bind(path)?;
    let file = SocketFile {
        path: path.to_owned(),
        identity: SocketFile::identity(path)?,
    };
    listener.set_nonblocking(true)?;
    Ok((listener, file))
}

/// The folder of `path` where it is missing; the system would only say that something is.
pub(crate) fn missing_parent(path: &Path) -> Option<&Path> {
    path.parent().filter(|parent| {
        !parent.as_os_str().is_empty()
            && fs::metadata(parent).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_socket_goes_with_its_owner_and_takes_nothing_else_along() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let (_listener, file) = listen(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        assert_eq!(file.path(), path);
        let text = listen(&path).unwrap_err().to_string();
        let start = format!("{} exists already; remove it", path.display());
        assert!(text.starts_with(&start), "{text}");
        drop(file);
        assert!(!path.exists());

        let (_listener, file) = listen(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "somebody else's").unwrap();
        drop(file);
        assert_eq!(fs::read(&path).unwrap(), b"somebody else's");
    }
}

//! Host programs at sockets in the file system.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::socket::{self, SocketError, SocketFile};

/// `PATH`, at which this listens, and the `PATH_PORT`s, at which others do.
#[derive(Debug)]
pub(super) struct Files {
    listener: UnixListener,
    file: SocketFile,
}

impl Files {
    /// Listens at `path`.
    pub(super) fn listen(path: &Path) -> Result<Self, SocketError> {
        let (listener, file) = socket::listen(path)?;
        Ok(Self { listener, file })
    }

    /// Connects to who listens at `PATH_PORT`, without waiting: std would, where too many others do.
    pub(super) fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let address = SocketAddrUnix::new(self.path(port))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &address)?;
        Ok(socket.into())
    }

    fn path(&self, port: u32) -> PathBuf {
        let mut path = OsString::from(self.file.path());
        path.push(format!("_{port}"));
        path.into()
    }

    /// Readable while somebody waits at `PATH`.
    pub(super) fn door(&self) -> RawFd {
        self.listener.as_raw_fd()
    }

    /// Who waits there.
    pub(super) fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().map(|(stream, _)| stream)
    }
}

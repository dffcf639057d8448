//! The host side of a vsock, as the device sees it.

use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;

/// Where guest-initiated connections go, and host-initiated ones come from. Called on the device's I/O
/// thread, so no method may wait.
pub trait VsockHost: fmt::Debug + Send {
    /// A guest asks for `port`: a connected stream.
    ///
    /// # Errors
    /// The guest is refused; but with [`io::ErrorKind::WouldBlock`], which says that there is somebody
    /// who has no time at the moment, it is asked for again until the guest's patience must be over.
    fn connect(&mut self, port: u32) -> io::Result<UnixStream>;
    /// What becomes readable when a caller waits. The descriptors stay open, and the same, as long as
    /// this lives.
    fn doors(&self) -> Vec<RawFd>;
    /// The next caller: somebody who will say `CONNECT PORT\n`, hear `OK PORT\n` once the guest has
    /// accepted (or find the stream closed), and then talk to the guest.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] says that nobody waits; after any other error the device asks again
    /// a little later.
    fn accept(&mut self) -> io::Result<UnixStream>;
}

//! The host's side of a VM's vsock: host programs, by unix sockets in the file system, and this process,
//! by [`Vsock`].
//!
//! ```text
//!  guest connects to port P:  a VsockListener at P here, or else the socket PATH_P
//!  host connects to port P:   Vsock::connect here, or PATH with "CONNECT P\n"
//! ```
//!
//! In the file system the protocol is Firecracker's, and so are the clients that work. Both ways to
//! connect to the guest are one to the device: a stream on which somebody says where to.
//!
//! ```no_run
//! # fn talk(vm: vmm::Vm) -> Result<(), Box<dyn std::error::Error>> {
//! use std::io::Write;
//! use std::time::Duration;
//!
//! let vsock = vm.handle().vsock().cloned().ok_or("built without a vsock")?;
//! let agents = vsock.listen(1024)?; // before the guest can ask for it
//! let running = vm.run()?;
//! let mut agent = agents.accept(Some(Duration::from_secs(30)))?;
//! agent.write_all(b"hello, guest")?;
//! let mut shell = vsock.connect(22, Duration::from_secs(1))?;
//! # Ok(())
//! # }
//! ```

mod exchange;
mod files;

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use devices::virtio::vsock as device;
use thiserror::Error;

use self::exchange::{Exchange, Host};
use self::files::Files;
use crate::config::VsockConfig;
use crate::error::BuildError;

/// The device that the settings ask for, and the way to its guest.
pub(crate) fn open(settings: &VsockConfig) -> Result<(device::Vsock, Vsock), BuildError> {
    let files = settings.uds.as_deref().map(Files::listen).transpose()?;
    let exchange = Exchange::new().map_err(|source| BuildError::Device {
        what: "vsock",
        source,
    })?;
    let host = Host::new(exchange.clone(), files);
    let device = device::Vsock::new(settings.cid, Box::new(host));
    Ok((device, Vsock { exchange }))
}

/// Longer than any `OK PORT\n`.
const MAX_GREETING: usize = 16;

/// Why this process and the guest are not connected.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VsockError {
    /// There is a [`VsockListener`] at that port.
    #[error("vsock port {0} is listened at already")]
    InUse(u32),
    /// Nobody in the guest listens there, or the guest has no vsock driver left.
    #[error("nobody in the guest listens at vsock port {0}")]
    Refused(u32),
    /// Nothing came of it in the time that was given.
    #[error("the guest did not connect or answer on vsock port {0} in time")]
    TimedOut(u32),
    /// The VM has ended.
    #[error("the VM is over, and its vsock with it")]
    Over,
    /// The host is out of descriptors, or the like.
    #[error("vsock port {port}: {source}")]
    Host {
        /// The port.
        port: u32,
        /// What the system says.
        source: io::Error,
    },
}

/// Reaches a VM's guest by its vsock, from any thread, for as long as anybody likes.
#[derive(Debug, Clone)]
pub struct Vsock {
    exchange: Arc<Exchange>,
}

/// The guest's connections to one port, from now until it is dropped.
#[derive(Debug)]
pub struct VsockListener {
    port: u32,
    connections: Receiver<UnixStream>,
    exchange: Arc<Exchange>,
}

impl Vsock {
    /// Takes the guest's connections to `port` of the host. Those made before this are refused, or go to
    /// the file system.
    ///
    /// # Errors
    /// [`VsockError::InUse`], [`VsockError::Over`].
    pub fn listen(&self, port: u32) -> Result<VsockListener, VsockError> {
        Ok(VsockListener {
            port,
            connections: self.exchange.listen(port)?,
            exchange: self.exchange.clone(),
        })
    }

    /// Connects to `port` of the guest, and waits at most `timeout` for its answer. Not to be called on
    /// one of the VM's own threads, which the answer needs.
    ///
    /// # Errors
    /// [`VsockError::Refused`], [`VsockError::TimedOut`] (as long as the guest has no vsock driver),
    /// [`VsockError::Over`], [`VsockError::Host`].
    pub fn connect(&self, port: u32, timeout: Duration) -> Result<UnixStream, VsockError> {
        let host = |source| VsockError::Host { port, source };
        let (mut ours, theirs) = UnixStream::pair().map_err(host)?;
        ours.write_all(format!("CONNECT {port}\n").as_bytes())
            .map_err(host)?;
        // Zero would be no limit.
        let timeout = timeout.max(Duration::from_millis(1));
        ours.set_read_timeout(Some(timeout)).map_err(host)?;
        let call = self.exchange.call(theirs)?;
        match greeting(&mut ours) {
            Ok(()) => {
                ours.set_read_timeout(None).map_err(host)?;
                Ok(ours)
            }
            Err(error) => {
                self.exchange.hang_up(call);
                Err(match error.kind() {
                    _ if self.exchange.is_over() => VsockError::Over,
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => VsockError::TimedOut(port),
                    ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset => {
                        VsockError::Refused(port)
                    }
                    _ => host(error),
                })
            }
        }
    }
}

/// Reads the line that says that the guest has accepted, and nothing after it. It comes in one piece.
fn greeting(stream: &mut UnixStream) -> io::Result<()> {
    for _ in 0..MAX_GREETING {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        if byte == *b"\n" {
            return Ok(());
        }
    }
    Err(io::Error::other("the device's greeting has no end"))
}

impl VsockListener {
    /// The port.
    #[must_use]
    pub fn port(&self) -> u32 {
        self.port
    }

    /// The next connection of the guest's; without a `timeout` it is waited for as long as the VM lives.
    ///
    /// # Errors
    /// [`VsockError::TimedOut`], [`VsockError::Over`].
    pub fn accept(&self, timeout: Option<Duration>) -> Result<UnixStream, VsockError> {
        match timeout {
            None => self.connections.recv().map_err(|_| VsockError::Over),
            Some(timeout) => self
                .connections
                .recv_timeout(timeout)
                .map_err(|error| match error {
                    RecvTimeoutError::Timeout => VsockError::TimedOut(self.port),
                    RecvTimeoutError::Disconnected => VsockError::Over,
                }),
        }
    }
}

impl Drop for VsockListener {
    fn drop(&mut self) {
        self.exchange.unlisten(self.port);
    }
}

#[cfg(test)]
mod tests;

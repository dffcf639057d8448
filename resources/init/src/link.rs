//! The channel to the host: a vsock connection, or a serial port where the guest has no vsock.

use alloc::string::String;

use init_lib::spec::{self, key};
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use crate::Failure;

/// The host's address (Virtio 1.2 §5.10.4.1).
const HOST: u32 = 2;

/// Connects, over the first of the two that is there; non-blocking.
pub fn open(spec: &[u8]) -> Result<OwnedFd, Failure> {
    let text =
        |key| spec::value(spec, key).map(|value| String::from_utf8_lossy(value).into_owned());
    let mut failure = None;
    if let Some(port) = text(key::VSOCK).and_then(|port| port.parse().ok()) {
        match vsock(port) {
            Ok(channel) => return Ok(channel),
            Err(errno) => failure = Some(Failure::new("no channel over", "vsock", errno)),
        }
    }
    if let Some(path) = text(key::SERIAL) {
        match serial(&path) {
            Ok(channel) => return Ok(channel),
            Err(errno) => {
                failure = Some(Failure::new(
                    "no channel over vsock, nor over",
                    &path,
                    errno,
                ))
            }
        }
    }
    Err(failure.unwrap_or_else(|| Failure("the spec names no channel".into())))
}

fn vsock(port: u32) -> Result<OwnedFd, Errno> {
    let channel = socket_with(
        AddressFamily::VSOCK,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    connect(&channel, &VsockAddress { cid: HOST, port })?;
    ioctl_fionbio(&channel, true)?;
    Ok(channel)
}

fn serial(path: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let port = openat(CWD, path, flags, Mode::empty())?;
    // A port that has no hardware behind it refuses this.
    let mut settings = tcgetattr(&port)?;
    settings.make_raw();
    tcsetattr(&port, OptionalActions::Now, &settings)?;
    Ok(port)
}

/// `struct sockaddr_vm`, `include/uapi/linux/vm_sockets.h`.
#[repr(C)]
struct SockaddrVm {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    zero: [u8; 4],
}

struct VsockAddress {
    cid: u32,
    port: u32,
}

// SAFETY: the pointer is to a whole `sockaddr_vm` that lives until `f` returns, and the length is its own.
unsafe impl SocketAddrArg for VsockAddress {
    unsafe fn with_sockaddr<R>(
        &self,
        f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R,
    ) -> R {
        let address = SockaddrVm {
            family: AddressFamily::VSOCK.as_raw(),
            reserved: 0,
            port: self.port,
            cid: self.cid,
            zero: [0; 4],
        };
        f((&raw const address).cast(), 16)
    }
}

//! The system calls of taps, each by itself: ioctls of /dev/net/tun (linux/if_tun.h) and of network
//! interfaces (netdevice(7)).
//!
//! The unsafe code of taps.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, netlink, socket_with};

/// Bytes of an interface's name, with the zero at its end.
pub(super) const NAME_SIZE: usize = libc::IFNAMSIZ;

/// A fresh descriptor, without an interface yet.
pub(super) fn open_tun() -> io::Result<OwnedFd> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    Ok(file.into())
}

/// A socket to ask about interfaces with.
pub(super) fn control_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    Ok(socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        flags,
        None,
    )?)
}

/// A socket that gets a message whenever an interface of this network namespace changes: rtnetlink(7).
pub(super) fn link_socket() -> io::Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        // NETLINK_ROUTE is protocol 0.
        None,
    )?;
    let group = u32::try_from(libc::RTMGRP_LINK).unwrap_or(0);
    bind(&socket, &netlink::SocketAddrNetlink::new(0, group))?;
    Ok(socket)
}

/// TUNSETIFF: makes `tun` a queue of the interface `name`, which is made if there is none.
pub(super) fn attach(tun: BorrowedFd<'_>, name: &str, flags: libc::c_int) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_flags = short(flags);
    ifreq(tun, libc::TUNSETIFF, &mut request)
}

/// TUNGETIFF: the interface that `tun` is a queue of, and its flags.
pub(super) fn interface(tun: BorrowedFd<'_>) -> io::Result<(String, libc::c_int)> {
    let mut request = request("")?;
    ifreq(tun, libc::TUNGETIFF, &mut request)?;
    let name = request.ifr_name.iter().take_while(|byte| **byte != 0);
    let name: Vec<u8> = name.map(|byte| byte.to_ne_bytes()[0]).collect();
    // SAFETY: the kernel filled the flags; any 16 bits are flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let flags = libc::c_int::from(flags) & 0xffff;
    Ok((String::from_utf8_lossy(&name).into_owned(), flags))
}

/// TUNSETVNETHDRSZ: every frame has a header of so many bytes.
pub(super) fn set_header_size(tun: BorrowedFd<'_>, size: libc::c_int) -> io::Result<()> {
    by_reference(tun, libc::TUNSETVNETHDRSZ, size)
}

/// TUNSETVNETLE: the header is little-endian, as VIRTIO_F_VERSION_1 has it, on every host.
pub(super) fn set_little_endian(tun: BorrowedFd<'_>) -> io::Result<()> {
    by_reference(tun, libc::TUNSETVNETLE, 1)
}

/// TUNSETOFFLOAD: what the reader of `tun` can do to frames, TUN_F_*.
pub(super) fn set_offload(tun: BorrowedFd<'_>, offload: libc::c_uint) -> io::Result<()> {
    // SAFETY: this ioctl takes its argument by value; no memory is involved.
    check(unsafe {
        libc::ioctl(
            tun.as_raw_fd(),
            libc::TUNSETOFFLOAD,
            libc::c_ulong::from(offload),
        )
    })
}

/// TUNSETPERSIST: the interface outlives its descriptors.
#[cfg(test)]
pub(super) fn set_persistent(tun: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: this ioctl takes its argument by value; no memory is involved.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETPERSIST, 1) })
}

/// TUNSETQUEUE: the interface sends frames to this queue of it, or not.
pub(super) fn set_queue(tun: BorrowedFd<'_>, attached: bool) -> io::Result<()> {
    let mut request = request("")?;
    request.ifr_ifru.ifru_flags = short(if attached {
        libc::IFF_ATTACH_QUEUE
    } else {
        libc::IFF_DETACH_QUEUE
    });
    ifreq(tun, libc::TUNSETQUEUE, &mut request)
}

/// SIOCGIFMTU: the interface's MTU.
pub(super) fn mtu(socket: BorrowedFd<'_>, name: &str) -> io::Result<libc::c_int> {
    let mut request = request(name)?;
    ifreq(socket, libc::SIOCGIFMTU, &mut request)?;
    // SAFETY: the kernel filled the MTU; any 32 bits are a number.
    Ok(unsafe { request.ifr_ifru.ifru_mtu })
}

/// SIOCSIFMTU: sets the interface's MTU.
pub(super) fn set_mtu(socket: BorrowedFd<'_>, name: &str, mtu: libc::c_int) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_mtu = mtu;
    ifreq(socket, libc::SIOCSIFMTU, &mut request)
}

/// SIOCGIFFLAGS: IFF_UP and others.
pub(super) fn flags(socket: BorrowedFd<'_>, name: &str) -> io::Result<libc::c_int> {
    let mut request = request(name)?;
    ifreq(socket, libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: the kernel filled the flags; any 16 bits are flags.
    Ok(libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags }) & 0xffff)
}

/// SIOCSIFFLAGS: sets all of them.
pub(super) fn set_flags(socket: BorrowedFd<'_>, name: &str, flags: libc::c_int) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_flags = short(flags);
    ifreq(socket, libc::SIOCSIFFLAGS, &mut request)
}

/// SIOCGIFHWADDR: the address of the interface `name`, asked of a socket; or of the one that `of` is a
/// queue of, whatever the name.
pub(super) fn address(of: BorrowedFd<'_>, name: &str) -> io::Result<[u8; 6]> {
    let mut request = request(name)?;
    ifreq(of, libc::SIOCGIFHWADDR, &mut request)?;
    // SAFETY: the kernel filled the address; any bytes are one.
    let data = unsafe { request.ifr_ifru.ifru_hwaddr.sa_data };
    let [a, b, c, d, e, f, ..] = data.map(|byte| byte.to_ne_bytes()[0]);
    Ok([a, b, c, d, e, f])
}

/// An `ifreq` about the interface `name`, zero otherwise.
pub(super) fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: `ifreq` is integers, arrays of them, and a union that has a pointer nobody follows: all
    // zeroes are one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= NAME_SIZE {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

/// Flags as an `ifreq` has them: 16 bits, whatever their sign.
fn short(flags: libc::c_int) -> libc::c_short {
    let [low, high, ..] = flags.to_le_bytes();
    libc::c_short::from_le_bytes([low, high])
}

/// One of the ioctls of netdevice(7) and of /dev/net/tun that take an `ifreq`.
pub(super) fn ifreq(
    fd: BorrowedFd<'_>,
    code: libc::Ioctl,
    request: &mut libc::ifreq,
) -> io::Result<()> {
    // SAFETY: every caller names an ioctl that reads and writes one `ifreq`, which `request` is; of its
    // union they use members that are plain data.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), code, std::ptr::from_mut(request)) })
}

fn by_reference(fd: BorrowedFd<'_>, code: libc::Ioctl, value: libc::c_int) -> io::Result<()> {
    // SAFETY: both callers name an ioctl that reads one `int`.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), code, std::ptr::from_ref(&value)) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

//! From a name, or from descriptors that somebody else opened, to a tap that works: everything that can be
//! wrong with it is found here.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use super::link::Link;
use super::queue::TapQueue;
use super::{Tap, TapError, sys};
use crate::virtio::net::backend::{HEADER, NetBackend, Uplink};

/// Frames of Ethernet, without four bytes of their own in front, with the virtio header.
const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// A tap, ready for a card.
#[derive(Debug)]
pub struct OpenTap {
    /// The interface's name.
    pub name: String,
    /// Its MTU, where that can be known.
    pub mtu: Option<u16>,
    /// What the pairs have in common.
    pub uplink: Box<dyn Uplink>,
    /// One backend for each queue pair.
    pub backends: Vec<Box<dyn NetBackend>>,
}

/// Opens `queues` queues of the tap `name`, and sets its MTU if one is given. A tap that is missing is
/// made, where that is allowed, and goes away with the card; one that is there stays.
///
/// # Errors
/// See [`TapError`]; nothing was made or changed then but, at most, the MTU.
pub fn open(name: &str, queues: u16, mtu: Option<u16>) -> Result<OpenTap, TapError> {
    let host = |what| host_error(name, what);
    let socket = sys::control_socket().map_err(host("a socket"))?;
    let existed = sys::flags(socket.as_fd(), name).is_ok();
    let first = open_tun(name)?;
    let multi = attach_first(first.as_fd(), name, queues, existed)?;
    let mut fds = vec![first];
    for _ in 1..queues {
        let fd = open_tun(name)?;
        sys::attach(fd.as_fd(), name, FLAGS | libc::IFF_MULTI_QUEUE)
            .map_err(host("another queue"))?;
        fds.push(fd);
    }
    if multi && has_other_queues(name, fds.len()) {
        return Err(TapError::InUse(name.to_owned()));
    }
    let opened = assemble(name.to_owned(), fds, mtu)?;
    if existed {
        if sys::flags(socket.as_fd(), name).is_ok_and(|flags| flags & libc::IFF_UP == 0) {
            log::warn!("tap {name} is down: the guest sees no link until 'ip link set {name} up'");
        }
    } else {
        let flags = sys::flags(socket.as_fd(), name).map_err(host("its flags"))?;
        sys::set_flags(socket.as_fd(), name, flags | libc::IFF_UP)
            .map_err(host("setting it up"))?;
    }
    Ok(opened)
}

/// Takes over taps that somebody else opened and attached: one descriptor for each queue of one tap. They
/// are duplicated; the numbers stay as they are.
///
/// # Errors
/// See [`TapError`].
pub fn open_fds(numbers: &[RawFd], mtu: Option<u16>) -> Result<OpenTap, TapError> {
    let mut tap: Option<(RawFd, String)> = None;
    let mut fds = Vec::new();
    for &number in numbers {
        let (fd, name) = take_fd(number)?;
        match &tap {
            Some((first, of)) if *of != name => {
                return Err(TapError::TwoTaps {
                    first: *first,
                    name: of.clone(),
                    other: number,
                    other_name: name,
                });
            }
            Some(_) => {}
            None => tap = Some((number, name)),
        }
        fds.push(fd);
    }
    let name = tap.map(|(_, name)| name).unwrap_or_default();
    assemble(name, fds, mtu)
}

/// A duplicate of an inherited descriptor, found to be a tap as the card needs it, and the tap's name.
fn take_fd(number: RawFd) -> Result<(OwnedFd, String), TapError> {
    if number < 0 {
        return Err(TapError::NotOpen { fd: number });
    }
    // SAFETY: the number is only asked about and duplicated within this function; the kernel refuses both
    // if it is not open. Whoever passed it keeps it open, or passed nothing.
    let inherited = unsafe { BorrowedFd::borrow_raw(number) };
    let fd = inherited
        .try_clone_to_owned()
        .map_err(|_| TapError::NotOpen { fd: number })?;
    let (name, flags) =
        sys::interface(fd.as_fd()).map_err(|_| TapError::FdNotATap { fd: number })?;
    if flags & libc::IFF_TAP == 0 {
        return Err(TapError::FdNotATap { fd: number });
    }
    let lacks = |lacks, needs| TapError::FdLacks {
        fd: number,
        name: name.clone(),
        lacks,
        needs,
    };
    if flags & libc::IFF_VNET_HDR == 0 {
        return Err(lacks("the virtio header", "IFF_VNET_HDR"));
    }
    if has_packet_information(&name) {
        return Err(lacks("bare frames", "IFF_NO_PI"));
    }
    rustix::io::ioctl_fionbio(&fd, true).map_err(|error| TapError::Host {
        name: name.clone(),
        what: "making it non-blocking",
        source: error.into(),
    })?;
    Ok((fd, name))
}

fn open_tun(name: &str) -> Result<OwnedFd, TapError> {
    sys::open_tun().map_err(|source| TapError::Tun {
        name: name.to_owned(),
        source,
    })
}

/// Makes `tun` the first queue of `name`; whether it is a tap of several queues.
fn attach_first(
    tun: BorrowedFd<'_>,
    name: &str,
    queues: u16,
    existed: bool,
) -> Result<bool, TapError> {
    let wanted = queues > 1;
    let attach = |multi| {
        let flag = if multi { libc::IFF_MULTI_QUEUE } else { 0 };
        sys::attach(tun, name, FLAGS | flag)
    };
    let Err(source) = attach(wanted) else {
        return Ok(wanted);
    };
    let mut errno = source.raw_os_error();
    if existed && errno == Some(libc::EINVAL) {
        // The interface is no tap, or one that was made for another number of queues.
        match attach(!wanted).map_err(|error| error.raw_os_error()) {
            // What was made for several queues serves as a tap of one too.
            Ok(()) if !wanted => return Ok(true),
            Ok(()) | Err(Some(libc::EBUSY)) if wanted => {
                return Err(TapError::OneQueue {
                    name: name.to_owned(),
                    queues,
                });
            }
            Ok(()) => {}
            Err(other) => errno = other,
        }
    }
    let name = name.to_owned();
    let multi = if wanted { " multi_queue" } else { "" };
    Err(match errno {
        Some(libc::EBUSY) => TapError::InUse(name),
        Some(libc::EPERM) if existed => TapError::NotOurs { name, multi },
        Some(libc::EPERM) => TapError::Missing { name, multi },
        Some(libc::EINVAL) if existed => TapError::NotATap(name),
        _ => TapError::Host {
            name,
            what: "attaching to it",
            source,
        },
    })
}

/// Whether frames have four bytes of their own in front, as far as sysfs tells; the descriptor does not, as
/// TUNGETIFF has another meaning for the bit (IFF_NOFILTER).
fn has_packet_information(name: &str) -> bool {
    let flags = fs::read_to_string(format!("/sys/class/net/{name}/tun_flags")).unwrap_or_default();
    let flags = flags.trim().trim_start_matches("0x");
    i32::from_str_radix(flags, 16).is_ok_and(|flags| flags & libc::IFF_NO_PI == 0)
}

/// Whether somebody besides the `ours` queues just opened is attached to a tap of several queues: the
/// kernel lets them share, and each would get some of the frames.
fn has_other_queues(name: &str, ours: usize) -> bool {
    let Ok(queues) = fs::read_dir(format!("/sys/class/net/{name}/queues")) else {
        return false;
    };
    let transmits = queues.flatten().filter(|queue| {
        let name = queue.file_name();
        name.as_encoded_bytes().starts_with(b"tx-")
    });
    transmits.count() > ours
}

/// Sets up what is the same for all taps.
fn assemble(name: String, fds: Vec<OwnedFd>, mtu: Option<u16>) -> Result<OpenTap, TapError> {
    let host = |what| host_error(&name, what);
    let header = libc::c_int::try_from(HEADER).unwrap_or(0);
    let mut backends: Vec<Box<dyn NetBackend>> = Vec::new();
    for fd in &fds {
        sys::set_header_size(fd.as_fd(), header).map_err(host("the size of its header"))?;
        // A kernel that does not know the byte order has this one.
        let _ = sys::set_little_endian(fd.as_fd());
        let own = fd.try_clone().map_err(host("a descriptor"))?;
        backends.push(Box::new(TapQueue::new(own)));
    }
    let Some(first) = fds.first() else {
        return Err(host("its queues")(ErrorKind::NotFound.into()));
    };
    let link = Link::of(first.as_fd(), &name).map_err(host("watching its link"))?;
    let mtu = match link.socket() {
        Some(socket) => Some(settle_mtu(socket, &name, mtu)?),
        // Nothing here can set it; what was asked for is what the guest is told.
        None => mtu,
    };
    let attached = fds.len();
    Ok(OpenTap {
        name,
        mtu,
        backends,
        uplink: Box::new(Tap {
            queues: fds,
            attached,
            link,
        }),
    })
}

/// Sets the MTU if one is wanted; returns what it is.
fn settle_mtu(socket: BorrowedFd<'_>, name: &str, wanted: Option<u16>) -> Result<u16, TapError> {
    let has = sys::mtu(socket, name).map_err(host_error(name, "its MTU"))?;
    match wanted {
        Some(wanted) if libc::c_int::from(wanted) != has => {
            sys::set_mtu(socket, name, wanted.into()).map_err(|source| match source.kind() {
                ErrorKind::PermissionDenied => TapError::Mtu {
                    name: name.to_owned(),
                    has,
                    wanted,
                },
                _ => host_error(name, "setting its MTU")(source),
            })?;
            Ok(wanted)
        }
        _ => Ok(u16::try_from(has).unwrap_or(u16::MAX)),
    }
}

fn host_error(name: &str, what: &'static str) -> impl Fn(io::Error) -> TapError {
    move |source| TapError::Host {
        name: name.to_owned(),
        what,
        source,
    }
}

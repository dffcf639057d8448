//! Interfaces and routes by ioctl (netdevice(7)).

use core::ptr;

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, Updater, ioctl};
use rustix::net::AddressFamily;
use rustix::net::netdevice::name_to_index;
use smoltcp::wire::{Ipv4Address, Ipv4Cidr};

/// Requests, `include/uapi/linux/sockios.h`.
mod request {
    use super::Opcode;
    pub const SIOCADDRT: Opcode = 0x890b;
    pub const SIOCGIFFLAGS: Opcode = 0x8913;
    pub const SIOCSIFFLAGS: Opcode = 0x8914;
    pub const SIOCGIFADDR: Opcode = 0x8915;
    pub const SIOCSIFADDR: Opcode = 0x8916;
    pub const SIOCSIFNETMASK: Opcode = 0x891c;
    pub const SIOCGIFHWADDR: Opcode = 0x8927;
}

/// `IFF_UP`.
const UP: u16 = 1;
/// `RTF_UP | RTF_GATEWAY`, `include/uapi/linux/route.h`.
const TO_GATEWAY: u16 = 1 | 2;

/// `struct ifreq`: the interface's name, and a union.
#[repr(C)]
struct Request {
    name: [u8; 16],
    data: [u8; 24],
}

/// `struct rtentry`.
#[repr(C)]
struct Route {
    pad1: u64,
    destination: [u8; 16],
    gateway: [u8; 16],
    mask: [u8; 16],
    flags: u16,
    pad2: i16,
    pad3: u64,
    pad4: usize,
    metric: i16,
    device: *const u8,
    mtu: u64,
    window: u64,
    irtt: u16,
}

impl Request {
    fn new(name: &str) -> Self {
        let mut request = Self {
            name: [0; 16],
            data: [0; 24],
        };
        // One byte stays zero; the kernel's names are shorter than that.
        for (to, from) in request.name.iter_mut().take(15).zip(name.bytes()) {
            *to = from;
        }
        request
    }

    fn send<const OPCODE: Opcode>(mut self, socket: &OwnedFd) -> Result<Self, Errno> {
        // SAFETY: the requests of this file take a pointer to an `ifreq`, which they read and write.
        unsafe { ioctl(socket, Updater::<OPCODE, Self>::new(&mut self)) }?;
        Ok(self)
    }
}

/// `struct sockaddr_in` with port zero, in the sixteen bytes of a `struct sockaddr`.
fn socket_address(address: Ipv4Address) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..2].copy_from_slice(&AddressFamily::INET.as_raw().to_ne_bytes());
    bytes[4..8].copy_from_slice(&address.octets());
    bytes
}

/// Brings an interface up.
pub fn bring_up(socket: &OwnedFd, name: &str) -> Result<(), Errno> {
    let mut request = Request::new(name).send::<{ request::SIOCGIFFLAGS }>(socket)?;
    let flags = u16::from_ne_bytes([request.data[0], request.data[1]]) | UP;
    request.data[..2].copy_from_slice(&flags.to_ne_bytes());
    request.send::<{ request::SIOCSIFFLAGS }>(socket).map(drop)
}

/// The interface's number.
pub fn index(socket: &OwnedFd, name: &str) -> Result<i32, Errno> {
    i32::try_from(name_to_index(socket, name)?).map_err(|_| Errno::RANGE)
}

/// The interface's MAC address.
pub fn hardware_address(socket: &OwnedFd, name: &str) -> Result<[u8; 6], Errno> {
    let request = Request::new(name).send::<{ request::SIOCGIFHWADDR }>(socket)?;
    let [_, _, a, b, c, d, e, f, ..] = request.data;
    Ok([a, b, c, d, e, f])
}

/// Whether the interface has an IPv4 address.
pub fn has_address(socket: &OwnedFd, name: &str) -> bool {
    let request = Request::new(name).send::<{ request::SIOCGIFADDR }>(socket);
    request.is_ok_and(|request| request.data[4..8] != [0; 4])
}

/// Gives the interface an address and its network.
pub fn set_address(socket: &OwnedFd, name: &str, address: Ipv4Cidr) -> Result<(), Errno> {
    let mut request = Request::new(name);
    request.data[..16].copy_from_slice(&socket_address(address.address()));
    request.send::<{ request::SIOCSIFADDR }>(socket)?;
    let mut request = Request::new(name);
    request.data[..16].copy_from_slice(&socket_address(address.netmask()));
    request
        .send::<{ request::SIOCSIFNETMASK }>(socket)
        .map(drop)
}

/// Sends all that is for elsewhere to `router`.
pub fn set_default_route(socket: &OwnedFd, router: Ipv4Address) -> Result<(), Errno> {
    let everywhere = socket_address(Ipv4Address::UNSPECIFIED);
    let route = Route {
        pad1: 0,
        destination: everywhere,
        gateway: socket_address(router),
        mask: everywhere,
        flags: TO_GATEWAY,
        pad2: 0,
        pad3: 0,
        pad4: 0,
        metric: 0,
        device: ptr::null(),
        mtu: 0,
        window: 0,
        irtt: 0,
    };
    // SAFETY: the request takes a pointer to an `rtentry`, whose own pointer is null.
    unsafe { ioctl(socket, Setter::<{ request::SIOCADDRT }, Route>::new(route)) }
}

//! An interface as smoltcp sees it: a packet socket (packet(7)) that sends and receives whole frames.

use alloc::vec;
use alloc::vec::Vec;

use rustix::fd::OwnedFd;
use rustix::io::{Errno, read, write};
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{
    AddressFamily, Protocol, RawProtocol, SocketFlags, SocketType, bind, socket_with,
};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

/// `ETH_P_IP`: no other packets matter before there is an address.
const ETH_P_IP: u16 = 0x0800;
/// The largest frame without offloads and with the usual MTU.
const FRAME: usize = 1514;

/// An interface's frames.
pub struct Card(OwnedFd);

impl Card {
    /// The card of the interface with this index.
    pub fn open(index: i32) -> Result<Self, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let protocol = RawProtocol::new(u32::from(ETH_P_IP.to_be())).map(Protocol::from_raw);
        let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, protocol)?;
        bind(&socket, &LinkAddress(index))?;
        Ok(Self(socket))
    }
}

/// A frame that arrived.
pub struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

/// The right to send a frame.
pub struct Sending<'a>(&'a OwnedFd);

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut frame = vec![0; len];
        let result = fill(&mut frame);
        // A frame that does not go out is one that was lost: the client asks again.
        let _ = write(self.0, &frame);
        result
    }
}

impl Device for Card {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Received, Sending<'_>)> {
        let mut frame = vec![0; FRAME];
        let count = read(&self.0, &mut frame).ok()?;
        frame.truncate(count);
        Some((Received(frame), Sending(&self.0)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Sending<'_>> {
        Some(Sending(&self.0))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME;
        capabilities
    }
}

/// `struct sockaddr_ll`, `include/uapi/linux/if_packet.h`.
#[repr(C)]
struct SockaddrLl {
    family: u16,
    protocol: u16,
    index: i32,
    hatype: u16,
    pkttype: u8,
    halen: u8,
    addr: [u8; 8],
}

struct LinkAddress(i32);

// SAFETY: the pointer is to a whole `sockaddr_ll` that lives until `f` returns, and the length is its own.
unsafe impl SocketAddrArg for LinkAddress {
    unsafe fn with_sockaddr<R>(
        &self,
        f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R,
    ) -> R {
        let address = SockaddrLl {
            family: AddressFamily::PACKET.as_raw(),
            protocol: ETH_P_IP.to_be(),
            index: self.0,
            hatype: 0,
            pkttype: 0,
            halen: 0,
            addr: [0; 8],
        };
        f((&raw const address).cast(), 20)
    }
}

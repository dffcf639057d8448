//! A card on a cable whose other end is in the test's hand: a socket that keeps frames apart, as a tap
//! does. The backend is a tap's queue, which only reads and writes its descriptor.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send};
use rustix::net::{socketpair, sockopt};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::backend::{HEADER, NetBackend, Uplink};
use super::features;
use super::tap::TapQueue;
use super::{Net, NetSettings};
use crate::virtio::Features;

/// The MAC address of the card.
pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

/// The end of the cable that is not in the card.
#[derive(Debug)]
pub struct FarEnd(OwnedFd);

impl FarEnd {
    /// Sends a frame to the card, virtio header included; whether there was room for it.
    pub fn send(&self, frame: &[u8]) -> bool {
        send(&self.0, frame, SendFlags::DONTWAIT).is_ok()
    }

    /// What the card has sent, if anything.
    pub fn receive(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 1 << 17];
        let (len, _) = recv(&self.0, &mut frame[..], RecvFlags::DONTWAIT).ok()?;
        frame.truncate(len);
        Some(frame)
    }

    /// Holds at most about so many bytes that the card has sent, until they are received.
    pub fn hold(&self, bytes: usize) {
        sockopt::set_socket_recv_buffer_size(&self.0, bytes).unwrap();
    }
}

/// A frame of `len` bytes, and a header of zeroes before it.
#[must_use]
pub fn frame(len: usize) -> Vec<u8> {
    let body = (0..len).map(|at| at.to_le_bytes()[0]);
    [0; HEADER].into_iter().chain(body).collect()
}

/// What an [`Outlet`] was told, and what it says.
#[derive(Debug, Default)]
pub struct OutletState {
    /// Offloads that the driver accepted, each time.
    pub offloads: Vec<Features>,
    /// How many queue pairs are in use, each time.
    pub pairs: Vec<u16>,
    /// There is no link.
    pub down: bool,
    /// Whatever is asked for fails.
    pub broken: bool,
}

/// An uplink that the test sees into.
#[derive(Debug, Clone)]
pub struct Outlet {
    state: Arc<Mutex<OutletState>>,
    /// The link changed.
    pub event: Arc<EventFd>,
}

impl Outlet {
    /// What it was told.
    pub fn state(&self) -> MutexGuard<'_, OutletState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refuses(&self) -> io::Result<()> {
        match self.state().broken {
            true => Err(io::ErrorKind::Unsupported.into()),
            false => Ok(()),
        }
    }
}

impl Uplink for Outlet {
    fn offloads(&self) -> Features {
        features::guest_offloads() | features::host_offloads()
    }

    fn set_offloads(&mut self, accepted: Features) -> io::Result<()> {
        self.refuses()?;
        self.state().offloads.push(accepted);
        Ok(())
    }

    fn set_pairs(&mut self, pairs: u16) -> io::Result<()> {
        self.refuses()?;
        self.state().pairs.push(pairs);
        Ok(())
    }

    fn link_event(&self) -> Option<i32> {
        Some(self.event.as_raw_fd())
    }

    fn link_is_up(&mut self) -> bool {
        let _ = self.event.read();
        !self.state().down
    }
}

/// A queue, and the other end of its cable.
pub fn cable() -> (TapQueue, FarEnd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (near, far) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    // Room for frames that are longer than what a socket takes by default.
    sockopt::set_socket_send_buffer_size(near.as_fd(), 1 << 19).unwrap();
    sockopt::set_socket_send_buffer_size(far.as_fd(), 1 << 19).unwrap();
    (TapQueue::new(near), FarEnd(far))
}

/// A card of so many queue pairs, its outlet, and the other ends of its cables.
pub fn card(pairs: usize) -> (Net, Outlet, Vec<FarEnd>) {
    let outlet = Outlet {
        state: Arc::default(),
        event: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
    };
    let (queues, ends): (Vec<_>, Vec<_>) = (0..pairs).map(|_| cable()).unzip();
    let backends = queues
        .into_iter()
        .map(|queue| Box::new(queue) as Box<dyn NetBackend>)
        .collect();
    let settings = NetSettings {
        name: "test".to_owned(),
        mac: MAC,
        mtu: Some(1400),
    };
    let net = Net::new(Box::new(outlet.clone()), backends, settings).unwrap();
    (net, outlet, ends)
}

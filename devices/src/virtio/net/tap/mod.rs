//! A tap: frames go to a network interface of the host, through one descriptor for each queue pair.
//!
//! The kernel reads and writes the virtio header itself (IFF_VNET_HDR), so that checksums and
//! segmentation are left to whoever is last able to do them, and a frame is one readv(2) or writev(2)
//! between its buffers and the kernel.

mod error;
mod link;
mod open;
mod queue;
mod sys;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO,
};

use self::link::Link;
use super::backend::Uplink;
use super::features::{self, feature};
use crate::virtio::Features;

pub use self::error::{NAME_MAX, TapError};
pub use self::open::{OpenTap, open, open_fds};
pub use self::queue::TapQueue;

/// A tap as a whole.
#[derive(Debug)]
pub struct Tap {
    /// Descriptors of its queues, beside those that the pairs have.
    queues: Vec<OwnedFd>,
    /// How many of them the kernel sends frames to.
    attached: usize,
    link: Link,
}

impl Uplink for Tap {
    fn offloads(&self) -> Features {
        features::guest_offloads() | features::host_offloads()
    }

    fn set_offloads(&mut self, accepted: Features) -> io::Result<()> {
        let table = [
            (VIRTIO_NET_F_GUEST_CSUM, libc::TUN_F_CSUM),
            (VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
            (VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
            (VIRTIO_NET_F_GUEST_ECN, libc::TUN_F_TSO_ECN),
            (VIRTIO_NET_F_GUEST_UFO, libc::TUN_F_UFO),
        ];
        let accepted = table
            .into_iter()
            .filter(|(bit, _)| accepted.contains(feature(*bit)));
        let offload = accepted.fold(0, |all, (_, offload)| all | offload);
        // It is the interface's; any queue will do, and the first is always attached.
        match self.queues.first() {
            Some(first) => gone(sys::set_offload(first.as_fd(), offload), libc::EBADFD),
            None => Ok(()),
        }
    }

    fn set_pairs(&mut self, pairs: u16) -> io::Result<()> {
        let pairs = usize::from(pairs).clamp(1, self.queues.len());
        let switch = |index: usize, on| {
            let queue: BorrowedFd<'_> = self.queues[index].as_fd();
            gone(sys::set_queue(queue, on), libc::EINVAL)
        };
        for index in self.attached..pairs {
            switch(index, true)?;
        }
        for index in (pairs..self.attached).rev() {
            switch(index, false)?;
        }
        self.attached = pairs;
        Ok(())
    }

    fn link_event(&self) -> Option<RawFd> {
        self.link.event()
    }

    fn link_is_up(&mut self) -> bool {
        match self.queues.first() {
            Some(first) => self.link.is_up(first.as_fd()),
            None => false,
        }
    }
}

/// An interface that was deleted under the card takes no orders any more, and says so with `errno`; that is
/// a link that is down, and no reason to refuse the driver.
fn gone(result: io::Result<()>, errno: libc::c_int) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(errno) => Ok(()),
        other => other,
    }
}

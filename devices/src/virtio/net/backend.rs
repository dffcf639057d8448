//! What a network card stands on: the two traits behind which taps and user-mode networks live.
//!
//! Frames carry `struct virtio_net_hdr` in front, [`HEADER`] bytes, both ways; a backend that knows
//! nothing of offloads sends a frame without it and receives it as zeroes.

use std::fmt;
use std::io;
use std::os::fd::RawFd;

use crate::iovec::IoVec;
use crate::virtio::Features;

/// Bytes of `struct virtio_net_hdr` before every frame, for a driver that accepted VIRTIO_F_VERSION_1.
/// Virtio 1.2 §5.1.6.
pub const HEADER: usize = 12;

/// What came of asking for a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// One of so many bytes, header included, is in the buffers.
    Frame(usize),
    /// The next one has so many bytes, more than the buffers have room for. It waits, and comes again
    /// as soon as there is room, or is [discarded](NetBackend::discard).
    TooLong(usize),
}

/// Where one queue pair's frames go to and come from. Used by one thread at a time; never blocks.
///
/// `WouldBlock` is an error like others to the card but that the frame keeps: the card comes back when
/// [`fd`](Self::fd) wakes it. `NetworkDown` says that there is no link now; frames sent are lost, as on
/// a cable that is not plugged in, and nobody is told.
pub trait NetBackend: fmt::Debug + Send {
    /// Becomes readable when frames arrive, and writable when there is room again to send after there
    /// was none. Watched for changes.
    fn fd(&self) -> RawFd;
    /// A driver begins anew: what is half received or half sent is of no interest to anybody any more.
    fn restart(&mut self) {}
    /// The descriptor woke: there may be room for what is left of a frame that was sent in part.
    fn flush(&mut self) {}
    /// Receives one frame into `buffers`, all of it or nothing: there are at most
    /// [`MAX_BUFFERS`](crate::iovec::MAX_BUFFERS) less a few.
    ///
    /// A backend that gets its frames in pieces may put the first ones there before it says `WouldBlock`:
    /// the next call begins with the same buffers, unless [`restart`](Self::restart) or
    /// [`discard`](Self::discard) comes before it.
    ///
    /// # Errors
    /// `WouldBlock` when there is no (whole) frame.
    fn receive(&mut self, buffers: &[IoVec<'_>]) -> io::Result<Received>;
    /// Drops the next frame.
    ///
    /// # Errors
    /// `WouldBlock` when there is none.
    fn discard(&mut self) -> io::Result<()>;
    /// Sends one frame. A backend that has sent a part and cannot go on keeps a copy of the rest, and
    /// sends it first when it is called again, or with [`flush`](Self::flush).
    ///
    /// # Errors
    /// `WouldBlock` when nothing of it was sent; after any other error the frame is lost.
    fn send(&mut self, frame: &[IoVec<'_>]) -> io::Result<()>;
}

/// What all queue pairs of a card have in common.
pub trait Uplink: fmt::Debug + Send {
    /// Checksum and segmentation offloads, in the driver's names for them (Virtio 1.2 §5.1.3): of
    /// VIRTIO_NET_F_CSUM, GUEST_CSUM, {GUEST,HOST}_{TSO4,TSO6,ECN,UFO}.
    fn offloads(&self) -> Features {
        Features::empty()
    }
    /// The driver takes `accepted` of them, which satisfy the dependencies of §5.1.3.1.
    ///
    /// # Errors
    /// They cannot be switched; the ones before stay.
    fn set_offloads(&mut self, _accepted: Features) -> io::Result<()> {
        Ok(())
    }
    /// Only the first `pairs` queue pairs are in use: what arrives is for one of them.
    ///
    /// # Errors
    /// They cannot be switched.
    fn set_pairs(&mut self, _pairs: u16) -> io::Result<()> {
        Ok(())
    }
    /// Becomes readable when the link may have gone up or down.
    fn link_event(&self) -> Option<RawFd> {
        None
    }
    /// Whether the link is up. Takes note of the event.
    fn link_is_up(&mut self) -> bool {
        true
    }
}

//! The control queue, Virtio 1.2 §5.1.6.5, and the link: what concerns a card as a whole while it runs.
//!
//! Owned by one I/O thread, as a lane of its own. A command is answered at once. Commands of classes that
//! were not offered get VIRTIO_NET_ERR: there is no filter, so none can be set (CTRL_RX, CTRL_VLAN).

use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_CTRL_MAC,
    VIRTIO_NET_CTRL_MAC_ADDR_SET, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET,
    VIRTIO_NET_ERR, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_MQ,
    VIRTIO_NET_OK,
};

use super::backend::Uplink;
use super::features::{self, feature};
use super::shared::Shared;
use crate::io::{Chain, QueueIo};
use crate::iovec::{self, IoVec};
use crate::virtio::errors::ErrorLog;
use crate::virtio::{DeviceFault, Features, QueueIndex, QueueWorker, Source, Wake};

/// [`Shared::look`].
const LOOK: u32 = 0;
/// [`Uplink::link_event`].
const LINK: u32 = 1;

/// An uplink as a face and its control worker share it, as they do a backend.
pub(super) type SharedUplink = Arc<Mutex<Box<dyn Uplink>>>;

/// The uplink, even if a thread panicked with it.
pub(super) fn lock(uplink: &SharedUplink) -> MutexGuard<'_, Box<dyn Uplink>> {
    uplink.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The worker.
#[derive(Debug)]
pub(super) struct ControlWorker {
    pub(super) queue: QueueIndex,
    pub(super) uplink: SharedUplink,
    pub(super) shared: Arc<Shared>,
    pub(super) acked: Features,
    /// The card's own address, for the driver after this one.
    pub(super) mac: [u8; 6],
    /// Queue pairs the driver may use.
    pub(super) pairs: u16,
    pub(super) errors: ErrorLog,
}

impl QueueWorker for ControlWorker {
    fn sources(&self) -> Vec<Source> {
        let look = Source {
            fd: self.shared.look.as_raw_fd(),
            token: LOOK,
            wake: Wake::Readable,
        };
        let link = |fd| Source {
            fd,
            token: LINK,
            wake: Wake::Readable,
        };
        let event = lock(&self.uplink).link_event();
        [look].into_iter().chain(event.map(link)).collect()
    }

    fn on_kick(&mut self, _queue: QueueIndex, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        while let Some(chain) = io.pop(self.queue)? {
            let head = chain.head;
            let written = self.obey(chain)?;
            io.complete(self.queue, head, written)?;
        }
        Ok(())
    }

    fn on_source(&mut self, token: u32, _io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        if token == LOOK {
            // Non-blocking: a spurious event finds nothing to read.
            let _ = self.shared.look.read();
        }
        let up = lock(&self.uplink).link_is_up();
        self.shared.set_link(up);
        Ok(())
    }
}

impl ControlWorker {
    /// Does what the command in `chain` says, and answers it with one byte; returns that length.
    fn obey(&mut self, chain: Chain<'_>) -> Result<u32, DeviceFault> {
        let command: Vec<IoVec<'_>> = chain.readable.iter().map(IoVec::new).collect();
        let answer: Vec<IoVec<'_>> = chain.writable.iter().map(IoVec::new).collect();
        // §5.1.6.5: class, command, data; acknowledgement.
        let mut header = [0; 2];
        if iovec::gather(&command, 0, &mut header) < header.len() {
            return Err(DeviceFault::Request {
                queue: self.queue,
                reason: "a control command without class and command",
            });
        }
        let ok = match header.map(u32::from) {
            [VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET] => {
                data(&command).is_some_and(|pairs| self.set_pairs(u16::from_le_bytes(pairs)))
            }
            [VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET] => {
                data(&command).is_some_and(|mac| self.set_mac(mac))
            }
            [
                VIRTIO_NET_CTRL_GUEST_OFFLOADS,
                VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET,
            ] => data(&command).is_some_and(|bits| {
                self.set_offloads(Features::from_bits_retain(u64::from_le_bytes(bits)))
            }),
            _ => false,
        };
        let ack = if ok { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
        let ack = u8::try_from(ack).unwrap_or(u8::MAX);
        if iovec::scatter(&answer, 0, &[ack]) == 0 {
            return Err(DeviceFault::Request {
                queue: self.queue,
                reason: "a control command without room for the answer",
            });
        }
        Ok(1)
    }

    fn negotiated(&self, bit: u32) -> bool {
        self.acked.contains(feature(bit))
    }

    /// §5.1.6.5.5.
    fn set_pairs(&mut self, pairs: u16) -> bool {
        if !self.negotiated(VIRTIO_NET_F_MQ) || !(1..=self.pairs).contains(&pairs) {
            return false;
        }
        let result = lock(&self.uplink).set_pairs(pairs);
        self.note("switching queue pairs", result)
    }

    /// §5.1.6.5.2. Nothing filters by it; the driver reads it back.
    fn set_mac(&mut self, mac: [u8; 6]) -> bool {
        let sensible = mac[0] & 1 == 0 && mac != [0; 6];
        let set = sensible && self.negotiated(VIRTIO_NET_F_CTRL_MAC_ADDR);
        if set {
            self.shared.set_mac(mac);
        }
        set
    }

    /// §5.1.6.5.6: of the offloads the driver accepted, those it wants for now.
    fn set_offloads(&mut self, wanted: Features) -> bool {
        let agreed = self.acked & features::guest_offloads();
        if !self.negotiated(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) || !agreed.contains(wanted) {
            return false;
        }
        let result = lock(&self.uplink).set_offloads(features::usable(wanted));
        self.note("switching offloads", result)
    }

    fn note(&mut self, what: &str, result: std::io::Result<()>) -> bool {
        if let Err(error) = &result {
            self.errors.note(&self.shared.name, what, error);
        }
        result.is_ok()
    }
}

/// An address that the driver chose goes with it.
impl Drop for ControlWorker {
    fn drop(&mut self) {
        self.shared.set_mac(self.mac);
    }
}

/// What a command has behind class and command, if it is as long as it should be.
fn data<const N: usize>(command: &[IoVec<'_>]) -> Option<[u8; N]> {
    let mut data = [0; N];
    let whole = iovec::total(command) == 2 + N && iovec::gather(command, 2, &mut data) == N;
    whole.then_some(data)
}

//! virtio-net, Virtio 1.2 §5.1: the face of the card, and the rooms behind it.
//!
//! [`Net`] is what the driver sees beside its queues: MAC address, link, MTU, features. At DRIVER_OK it
//! makes a worker for each queue pair, so that pairs can run on threads of their own, and one for the
//! control queue. Where frames go to is a [`backend`]: one [`NetBackend`](backend::NetBackend) for each
//! pair, and an [`Uplink`](backend::Uplink) for what pairs have in common. [`tap`] is the host's.
//!
//! What is offered comes from three sides: offloads and the link from the uplink, MAC and MTU from the
//! settings, and the rest is the same for all: mergeable receive buffers, a control queue, and from two
//! pairs on the choice of their number. There is no filter on the host's side; a driver filters itself.

use std::io;
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};

use self::backend::{HEADER, NetBackend, Uplink};
use self::control::{ControlWorker, SharedUplink};
use self::features::feature;
use self::pair::{PairWorker, Rules, SharedBackend, Throttles, receive_queue, transmit_queue};
use self::shared::Shared;
use super::errors::ErrorLog;
use super::{
    ActivateError, Features, Lane, QueueIndex, VirtioDevice, VirtioInterrupt, VirtioKind, read_from,
};
use crate::io::{MAX_QUEUES, QueueSet};
use crate::rate::{Limiter, RateControl, Throttle};

pub mod backend;
mod control;
mod features;
mod pair;
mod shared;
pub mod stream;
pub mod tap;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod window;

pub use self::shared::{NetControl, PairCounters, Traffic};

/// The most queue pairs a card can have, beside its control queue.
pub const MAX_PAIRS: u16 = (MAX_QUEUES - 1) / 2;

/// Frames the driver can have under way each way.
const QUEUE_SIZE: u16 = 256;
/// Bytes of `struct virtio_net_config` up to the MTU. §5.1.4.
const CONFIG_SIZE: usize = 12;
/// §5.1.6.3.1: the longest frame with segmentation left to the driver, header included.
const LONGEST_SEGMENTED: usize = 65562;
/// A frame of 1500 bytes, Ethernet's header and a VLAN tag. Where longer ones come all the same, the
/// pair learns of it.
const LONGEST_PLAIN: usize = HEADER + 14 + 4 + 1500;

/// What the settings say of a card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetSettings {
    /// How the log calls it.
    pub name: String,
    /// Its address; the driver may choose another.
    pub mac: [u8; 6],
    /// The largest packet, if the driver is to know.
    pub mtu: Option<u16>,
}

/// A network card. Owned by its transport.
#[derive(Debug)]
pub struct Net {
    /// Kept here between one set of workers and the next, as are the backends.
    uplink: SharedUplink,
    backends: Vec<SharedBackend>,
    settings: NetSettings,
    offloads: Features,
    queue_sizes: Vec<u16>,
    shared: Arc<Shared>,
    /// What the guest receives.
    receive_limiter: Arc<Limiter>,
    /// What it sends.
    send_limiter: Arc<Limiter>,
}

impl Net {
    /// A card with a queue pair for each of `backends`, of which there are 1 to [`MAX_PAIRS`].
    ///
    /// # Errors
    /// No descriptors are left for its events, or the number of pairs is impossible.
    pub fn new(
        mut uplink: Box<dyn Uplink>,
        backends: Vec<Box<dyn NetBackend>>,
        settings: NetSettings,
    ) -> io::Result<Self> {
        if !(1..=usize::from(MAX_PAIRS)).contains(&backends.len()) {
            return Err(io::Error::other("impossible number of queue pairs"));
        }
        let shared = Shared::new(settings.name.clone(), settings.mac, backends.len())?;
        shared.set_link(uplink.link_is_up());
        Ok(Self {
            offloads: uplink.offloads(),
            uplink: Arc::new(Mutex::new(uplink)),
            queue_sizes: vec![QUEUE_SIZE; 2 * backends.len() + 1],
            backends: backends
                .into_iter()
                .map(|backend| Arc::new(Mutex::new(backend)))
                .collect(),
            settings,
            shared: Arc::new(shared),
            receive_limiter: Limiter::new(),
            send_limiter: Limiter::new(),
        })
    }

    /// Controls this card for as long as anybody likes.
    #[must_use]
    pub fn control(&self) -> NetControl {
        NetControl(self.shared.clone())
    }

    /// Changes the limits on what the card receives, and the same on what it sends, also while it is in
    /// use.
    #[must_use]
    pub fn rate_control(&self) -> RateControl {
        RateControl::new([self.receive_limiter.clone(), self.send_limiter.clone()])
    }

    fn pairs(&self) -> u16 {
        u16::try_from(self.backends.len()).unwrap_or(MAX_PAIRS)
    }

    /// §5.1.4. Fields that belong to features not offered stay zero.
    fn config(&self) -> [u8; CONFIG_SIZE] {
        let [m0, m1, m2, m3, m4, m5] = self.shared.mac();
        let link = if self.shared.is_up() {
            VIRTIO_NET_S_LINK_UP
        } else {
            0
        };
        let [status, _, _, _] = link.to_le_bytes();
        let pairs = if self.pairs() > 1 { self.pairs() } else { 0 };
        let [p0, p1] = pairs.to_le_bytes();
        let [t0, t1] = self.settings.mtu.unwrap_or(0).to_le_bytes();
        [m0, m1, m2, m3, m4, m5, status, 0, p0, p1, t0, t1]
    }

    /// Sets the uplink up for a driver that accepted `acked`. It has one pair until it asks for more.
    fn prepare(&self, acked: Features) -> Result<(), ActivateError> {
        let failed = |what| {
            move |source| ActivateError {
                what,
                source: Some(source),
            }
        };
        let mut uplink = control::lock(&self.uplink);
        uplink.set_pairs(1).map_err(failed("queue pairs"))?;
        let accepted = features::usable(acked & self.offloads);
        uplink.set_offloads(accepted).map_err(failed("offloads"))?;
        self.shared.set_link(uplink.link_is_up());
        Ok(())
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> VirtioKind {
        VirtioKind::Net
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> Features {
        let always = [
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_NET_F_STATUS,
            VIRTIO_NET_F_CTRL_VQ,
            VIRTIO_NET_F_CTRL_MAC_ADDR,
        ];
        let switchable = self.offloads.intersects(features::guest_offloads());
        let sometimes = [
            (VIRTIO_NET_F_MTU, self.settings.mtu.is_some()),
            (VIRTIO_NET_F_MQ, self.pairs() > 1),
            (VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, switchable),
        ];
        let offered = sometimes.into_iter().filter(|(_, offer)| *offer);
        let transport = Features::VERSION_1 | Features::INDIRECT_DESC | Features::EVENT_IDX;
        always.into_iter().chain(offered.map(|(bit, _)| bit)).fold(
            transport | self.offloads & (features::guest_offloads() | features::host_offloads()),
            |features, bit| features | feature(bit),
        )
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_from(self.config(), offset, data);
    }

    fn connect(&mut self, interrupt: Arc<dyn VirtioInterrupt>) {
        self.shared.connect(interrupt);
    }

    fn activate(&mut self, acked: Features) -> Result<Vec<Lane>, ActivateError> {
        if Arc::strong_count(&self.uplink) > 1 {
            return Err(ActivateError {
                what: "the data path from before the reset still has the card",
                source: None,
            });
        }
        let pairs = match acked.contains(feature(VIRTIO_NET_F_MQ)) {
            true => self.pairs(),
            false => 1,
        };
        self.prepare(acked)?;
        let usable = features::usable(acked);
        let rules = Rules {
            mergeable: acked.contains(feature(VIRTIO_NET_F_MRG_RXBUF)),
            checksum_flags: acked.contains(feature(VIRTIO_NET_F_GUEST_CSUM)),
            longest: if usable.intersects(features::guest_segmentation()) {
                LONGEST_SEGMENTED
            } else {
                LONGEST_PLAIN
            },
        };
        // §5.1.2: a driver without MQ finds the control queue behind the first pair.
        let control = QueueIndex(2 * pairs);
        let mut lanes = Vec::new();
        for (index, backend) in (0..pairs).zip(&self.backends) {
            let throttles = Throttles {
                receive: Throttle::new(&self.receive_limiter)?,
                send: Throttle::new(&self.send_limiter)?,
            };
            let shared = self.shared.clone();
            lanes.push(Lane {
                queues: QueueSet::of([receive_queue(index), transmit_queue(index)]),
                worker: Box::new(PairWorker::new(
                    index,
                    backend.clone(),
                    shared,
                    rules,
                    throttles,
                )),
            });
        }
        lanes.push(Lane {
            queues: QueueSet::of([control]),
            worker: Box::new(ControlWorker {
                queue: control,
                uplink: self.uplink.clone(),
                shared: self.shared.clone(),
                acked,
                mac: self.settings.mac,
                pairs,
                errors: ErrorLog::default(),
            }),
        });
        Ok(lanes)
    }
}

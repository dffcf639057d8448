//! The feature bits of network cards, and which of them need which. Virtio 1.2 §5.1.3.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO,
};

use crate::virtio::Features;

/// The feature with number `bit`.
pub(super) fn feature(bit: u32) -> Features {
    Features::from_bits_retain(1 << bit)
}

fn all(bits: &[u32]) -> Features {
    bits.iter()
        .fold(Features::empty(), |all, bit| all | feature(*bit))
}

/// What the driver can have done to frames it receives, and may switch with CTRL_GUEST_OFFLOADS.
pub(super) fn guest_offloads() -> Features {
    all(&[VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN]) | guest_segmentation()
}

/// Frames longer than the MTU come to the driver.
pub(super) fn guest_segmentation() -> Features {
    all(&[
        VIRTIO_NET_F_GUEST_TSO4,
        VIRTIO_NET_F_GUEST_TSO6,
        VIRTIO_NET_F_GUEST_UFO,
    ])
}

/// What the driver can leave to the host in frames it sends.
pub(super) fn host_offloads() -> Features {
    all(&[
        VIRTIO_NET_F_CSUM,
        VIRTIO_NET_F_HOST_TSO4,
        VIRTIO_NET_F_HOST_TSO6,
        VIRTIO_NET_F_HOST_ECN,
        VIRTIO_NET_F_HOST_UFO,
    ])
}

/// Those of `accepted` whose own requirements were accepted too, §5.1.3.1. A driver that leaves one out
/// does without what needs it.
pub(super) fn usable(accepted: Features) -> Features {
    let mut usable = accepted;
    if !usable.contains(feature(VIRTIO_NET_F_GUEST_CSUM)) {
        usable -= guest_segmentation();
    }
    let tso = all(&[VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6]);
    if !usable.intersects(tso) {
        usable -= feature(VIRTIO_NET_F_GUEST_ECN);
    }
    usable
}

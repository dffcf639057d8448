//! What the driver sees beside the queues.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS,
};

use super::super::testing::{MAC, cable};
use super::*;

#[test]
fn the_configuration_says_what_the_card_is() {
    let (net, _, _ends) = card(2);
    let mut config = [0; 16];
    net.read_config(0, &mut config);
    let [t0, t1] = 1400_u16.to_le_bytes();
    assert_eq!(config[..6], MAC);
    assert_eq!(config[6..], [1, 0, 2, 0, t0, t1, 0, 0, 0, 0]);
    let mut part = [0; 2];
    net.read_config(10, &mut part);
    assert_eq!(part, [t0, t1]);
    let mut beyond = [0; 4];
    for offset in [12, 0x1000, u64::MAX] {
        net.read_config(offset, &mut beyond);
        assert_eq!(beyond, [0; 4]);
    }
}

#[test]
fn features_are_the_uplinks_the_settings_and_the_devices() {
    let offers = |net: &Net, bit| net.features().contains(feature(bit));
    let (one, _, _ends) = card(1);
    for bit in [
        VIRTIO_NET_F_CSUM,
        VIRTIO_NET_F_GUEST_CSUM,
        VIRTIO_NET_F_GUEST_TSO4,
        VIRTIO_NET_F_GUEST_TSO6,
        VIRTIO_NET_F_GUEST_ECN,
        VIRTIO_NET_F_GUEST_UFO,
        VIRTIO_NET_F_HOST_TSO4,
        VIRTIO_NET_F_HOST_TSO6,
        VIRTIO_NET_F_HOST_ECN,
        VIRTIO_NET_F_HOST_UFO,
        VIRTIO_NET_F_MRG_RXBUF,
        VIRTIO_NET_F_MAC,
        VIRTIO_NET_F_MTU,
        VIRTIO_NET_F_STATUS,
        VIRTIO_NET_F_CTRL_VQ,
    ] {
        assert!(offers(&one, bit), "feature {bit}");
    }
    assert!(
        one.features()
            .contains(Features::EVENT_IDX | Features::INDIRECT_DESC)
    );
    assert!(!offers(&one, VIRTIO_NET_F_MQ) && !offers(&one, VIRTIO_NET_F_CTRL_RX));
    let (two, _, _ends) = card(2);
    assert!(offers(&two, VIRTIO_NET_F_MQ));
    assert_eq!((one.queue_sizes().len(), two.queue_sizes().len()), (3, 5));
}

/// An uplink of which nothing is to be said.
#[derive(Debug)]
struct Plain;
impl Uplink for Plain {}

#[test]
fn a_plain_uplink_gives_a_plain_card() {
    let settings = NetSettings {
        name: "plain".to_owned(),
        mac: MAC,
        mtu: None,
    };
    let net = Net::new(Box::new(Plain), vec![Box::new(cable().0)], settings.clone()).unwrap();
    let offered = net.features();
    assert!(!offered.intersects(features::guest_offloads() | features::host_offloads()));
    assert!(!offered.contains(feature(VIRTIO_NET_F_MTU)));
    assert!(net.control().is_up());
    let impossible = |count: usize| {
        let backends = (0..count).map(|_| Box::new(cable().0) as Box<dyn NetBackend>);
        Net::new(Box::new(Plain), backends.collect(), settings.clone()).is_err()
    };
    assert!(impossible(0) && impossible(32) && !impossible(31));
}

#[test]
fn features_that_miss_what_they_need_are_left_out() {
    let of = |bits: &[u32]| {
        bits.iter()
            .fold(Features::empty(), |all, bit| all | feature(*bit))
    };
    for (accepted, usable) in [
        (&[VIRTIO_NET_F_GUEST_TSO4][..], &[][..]),
        (
            &[VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN],
            &[VIRTIO_NET_F_GUEST_CSUM],
        ),
        (&[VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_GUEST_ECN], &[]),
    ] {
        assert_eq!(features::usable(of(accepted)), of(usable));
    }
    let all = features::guest_offloads();
    assert_eq!(features::usable(all), all);
}

#[test]
fn a_card_is_set_up_once_at_a_time() {
    let (mut net, outlet, _ends) = card(1);
    let lanes = net.activate(Features::VERSION_1).unwrap();
    assert!(net.activate(Features::VERSION_1).is_err());
    drop(lanes);
    outlet.state().broken = true;
    let error = net.activate(Features::VERSION_1).unwrap_err();
    assert!(error.to_string().contains("queue pairs"), "{error}");
    outlet.state().broken = false;
    assert!(net.activate(Features::VERSION_1).is_ok());
}

//! What the driver sees beside the queues, and a reset.

use super::*;
use crate::virtio::vsock::Vsock;
use crate::virtio::{VirtioDevice, VirtioKind};

#[test]
fn the_guest_reads_its_address() {
    let device = Vsock::new(0x0102_0304, Box::new(Host::new()));
    assert_eq!(device.kind(), VirtioKind::Vsock);
    assert_eq!(device.queue_sizes().len(), 3);
    let read = |offset| {
        let mut bytes = [0; 4];
        device.read_config(offset, &mut bytes);
        bytes
    };
    assert_eq!(read(0), [4, 3, 2, 1]);
    assert_eq!(read(2), [2, 1, 0, 0]);
    for beyond in [4, 6, 8, 9, u64::MAX] {
        assert_eq!(read(beyond), [0; 4]);
    }
}

#[test]
fn a_device_can_be_started_again_and_again() {
    let mut device = Vsock::new(3, Box::new(Host::new()));
    for _ in 0..3 {
        let lanes = device.activate(Features::VERSION_1).unwrap();
        assert_eq!(lanes.len(), 1);
        assert_eq!(lanes[0].worker.sources().len(), 1);
    }
}

#[test]
fn a_reset_closes_every_connection_and_call() {
    let mut bench = Bench::new();
    let mut one = bench.connect_from(1);
    let mut two = bench.connect_from(2);
    let mut caller = bench.host.call();
    bench.poll();
    bench.send(packet(2, 80, Op::Rw), b"last");
    drop(bench);
    assert_eq!(drain(&mut one), (vec![], true));
    assert_eq!(drain(&mut two), (b"last".to_vec(), true));
    assert_eq!(drain(&mut caller), (vec![], true));
}

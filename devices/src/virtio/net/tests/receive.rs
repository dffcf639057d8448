//! Frames to the driver: where they land, across how many buffers, and what happens when there are none.

use super::*;

const MERGEABLE: &[u32] = &[VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_GUEST_CSUM];
const SEGMENTED: &[u32] = &[
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
];

/// What the driver finds in used buffers of `len` bytes at most, which lie at `buffers` in the order of their
/// heads: frames without headers, put together from as many buffers as each header says.
fn frames(bench: &mut Bench, buffers: &[u64]) -> Vec<Vec<u8>> {
    let used = bench.rx.take_used();
    let mut used = used.iter();
    let mut frames = Vec::new();
    while let Some((head, len)) = used.next() {
        let mut bytes = bench.rx.read(buffers[usize::from(*head)], *len);
        let count = u16::from_le_bytes([bytes[10], bytes[11]]);
        assert!(count >= 1, "num_buffers");
        for _ in 1..count {
            let (head, len) = used.next().expect("all buffers of a frame at once");
            bytes.extend(bench.rx.read(buffers[usize::from(*head)], *len));
        }
        frames.push(bytes.split_off(HEADER));
    }
    frames
}

#[test]
fn a_frame_fills_one_buffer_and_the_rest_stays() {
    let mut bench = Bench::new(MERGEABLE);
    let buffers = bench.give_buffers(4, 2000);
    bench.kick(RX).unwrap();
    assert_eq!(bench.rx.take_used(), []);
    for len in [60, 1514] {
        assert!(bench.far.send(&frame(len)));
    }
    bench.wake().unwrap();
    assert_eq!(bench.completed, QueueSet::of([RX]));
    assert_eq!(
        frames(&mut bench, &buffers),
        [&frame(60)[HEADER..], &frame(1514)[HEADER..]]
    );
    let untouched = bench.rx.read(buffers[0] + 72, 2000 - 72);
    assert!(
        untouched.iter().all(|byte| *byte == 0xee),
        "beyond the frame"
    );
    assert_eq!(traffic(bench.counters().received), (2, 1574, 0));
}

#[test]
fn a_long_frame_is_split_over_as_many_buffers_as_it_takes() {
    for (len, room) in [
        (1513, 1525),
        (1514, 1525),
        (9014, 1526),
        (65535, 1536),
        (65550, 4096),
    ] {
        let mut bench = Bench::new(SEGMENTED);
        let buffers = bench.give_buffers(64, room);
        assert!(bench.far.send(&frame(len)));
        assert!(bench.far.send(&frame(100)));
        bench.kick(RX).unwrap();
        let got = frames(&mut bench, &buffers);
        assert_eq!(
            got,
            [&frame(len)[HEADER..], &frame(100)[HEADER..]],
            "{len} in {room}"
        );
    }
}

#[test]
fn all_buffers_of_a_frame_appear_at_once_and_the_header_counts_them() {
    let mut bench = Bench::new(SEGMENTED);
    let buffers = bench.give_buffers(8, 512);
    assert!(bench.far.send(&frame(1500)));
    bench.kick(RX).unwrap();
    assert_eq!(bench.rx.take_used(), [(0, 512), (1, 512), (2, 488)]);
    assert_eq!(bench.rx.read(buffers[0] + 10, 2), [3, 0]);
}

#[test]
fn the_header_arrives_as_it_was_sent() {
    for (bits, flags) in [(MERGEABLE, 1), (&[VIRTIO_NET_F_MRG_RXBUF][..], 0)] {
        let mut bench = Bench::new(bits);
        let buffers = bench.give_buffers(1, 2000);
        let mut sent = frame(100);
        sent[..10].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        assert!(bench.far.send(&sent));
        bench.kick(RX).unwrap();
        // §5.1.6.4.1: no flags for a driver without GUEST_CSUM; the number of buffers always.
        let header = bench.rx.read(buffers[0], 12);
        assert_eq!(header, [flags, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 0]);
    }
}

#[test]
fn a_header_may_straddle_buffers() {
    let mut bench = Bench::new(MERGEABLE);
    let parts = [5, 6, 1, 200].map(|len| bench.rx.writable(len));
    bench.rx.submit_indirect(&parts);
    assert!(bench.far.send(&frame(150)));
    bench.kick(RX).unwrap();
    assert_eq!(bench.rx.take_used(), [(0, 162)]);
    let bytes: Vec<u8> = parts
        .iter()
        .flat_map(|part| bench.rx.read(part.address, part.len))
        .collect();
    let mut expected = frame(150);
    expected[10] = 1;
    assert_eq!(bytes[..162], expected);
    assert!(bytes[162..].iter().all(|byte| *byte == 0xee));
}

#[test]
fn an_empty_ring_stops_receiving_and_a_kick_starts_it_again() {
    let mut bench = Bench::new(MERGEABLE);
    let first = bench.give_buffers(2, 2000);
    for len in [61, 62, 63, 64] {
        assert!(bench.far.send(&frame(len)));
    }
    bench.kick(RX).unwrap();
    assert_eq!(frames(&mut bench, &first).len(), 2);
    assert_eq!(bench.empty, QueueSet::of([RX]), "the driver must kick");
    // What arrives in between waits with the others; nothing wakes twice for it.
    assert!(bench.far.send(&frame(65)));
    bench.wake().unwrap();
    assert_eq!(bench.rx.take_used(), []);
    let more = bench.give_buffers(3, 2000);
    bench.kick(RX).unwrap();
    let buffers = [first, more].concat();
    let lens: Vec<usize> = frames(&mut bench, &buffers).iter().map(Vec::len).collect();
    assert_eq!(lens, [63, 64, 65]);
    assert_eq!(traffic(bench.counters().received).2, 0, "none is lost");
}

#[test]
fn a_frame_longer_than_what_is_there_waits_for_buffers() {
    let mut bench = Bench::new(SEGMENTED);
    let first = bench.give_buffers(3, 1000);
    for len in [5000, 70] {
        assert!(bench.far.send(&frame(len)));
    }
    bench.kick(RX).unwrap();
    assert_eq!(bench.rx.take_used(), []);
    let second = bench.give_buffers(2, 1000);
    bench.kick(RX).unwrap();
    assert_eq!(bench.rx.take_used(), [], "still 12 bytes too few");
    let third = bench.give_buffers(2, 1000);
    bench.kick(RX).unwrap();
    let got = frames(&mut bench, &[first, second, third].concat());
    assert_eq!(got, [&frame(5000)[HEADER..], &frame(70)[HEADER..]]);
    assert_eq!(traffic(bench.counters().received), (2, 5070, 0));
}

#[test]
fn a_frame_longer_than_the_whole_ring_is_dropped() {
    let mut bench = Bench::with_sizes(SEGMENTED, 16);
    let buffers = bench.give_buffers(16, 512);
    for len in [9000, 70] {
        assert!(bench.far.send(&frame(len)));
    }
    bench.kick(RX).unwrap();
    assert_eq!(frames(&mut bench, &buffers), [&frame(70)[HEADER..]]);
    assert_eq!(traffic(bench.counters().received), (1, 70, 1));
}

#[test]
fn without_mergeable_buffers_one_holds_the_whole_frame_or_it_is_dropped() {
    let mut bench = Bench::new(&[VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4]);
    let buffers = bench.give_buffers(4, 1000);
    for len in [988, 989, 5000, 70] {
        assert!(bench.far.send(&frame(len)));
    }
    bench.kick(RX).unwrap();
    let got = frames(&mut bench, &buffers);
    assert_eq!(got, [&frame(988)[HEADER..], &frame(70)[HEADER..]]);
    assert_eq!(traffic(bench.counters().received), (2, 1058, 2));
    // A chain of several descriptors is one buffer.
    let parts = [12, 500, 65050].map(|len| bench.rx.writable(len));
    bench.rx.submit(&parts);
    assert!(bench.far.send(&frame(65550)));
    bench.wake().unwrap();
    assert_eq!(bench.rx.take_used(), [], "the ones before it are too short");
}

#[test]
fn a_large_frame_fits_a_large_chain() {
    let mut bench = Bench::new(&[VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4]);
    let parts: Vec<Descriptor> = (0..17).map(|_| bench.rx.writable(4096)).collect();
    bench.rx.submit_indirect(&parts);
    assert!(bench.far.send(&frame(65550)));
    bench.kick(RX).unwrap();
    assert_eq!(bench.rx.take_used(), [(0, 65562)]);
}

#[test]
fn chains_that_are_no_receive_buffers_are_faults() {
    let cases: [Odd; 3] = [
        ("to read from", |bench| {
            let buffer = bench.rx.readable(&[0; 2000]);
            bench.rx.submit(&[buffer]);
        }),
        ("to read from", |bench| {
            let parts = [bench.rx.readable(&[0; 12]), bench.rx.writable(2000)];
            bench.rx.submit(&parts);
        }),
        ("shorter than a header", |bench| {
            let parts = [bench.rx.writable(10), bench.rx.writable(1)];
            bench.rx.submit(&parts);
        }),
    ];
    for (words, make) in cases {
        let mut bench = Bench::new(MERGEABLE);
        bench.give_buffers(1, 2000);
        make(&mut bench);
        assert!(bench.far.send(&frame(100)));
        // The good one is filled, and the bad one met on the way to room for the next frame.
        let outcome = bench.kick(RX);
        assert!(outcome.unwrap_err().to_string().contains(words), "{words}");
        assert_eq!(bench.rx.take_used(), [(0, 112)]);
    }
}

#[test]
fn an_event_has_its_share_of_frames() {
    let mut bench = Bench::new(MERGEABLE);
    let mut received = 0;
    let mut events = 0;
    // A driver that gives buffers back as fast as they are filled, and a cable that is always full.
    let buffer = bench.rx.writable(2000);
    for head in 0..256 {
        bench.rx.set_descriptor(head, buffer);
        bench.rx.publish(head);
    }
    while received < 3000 {
        while bench.far.send(&frame(60)) {}
        bench.kick(RX).unwrap();
        for (head, _) in bench.rx.take_used() {
            bench.rx.publish(head);
            received += 1;
        }
        events += 1;
        assert!(events < 3000, "no progress");
    }
}

#[test]
fn a_reset_gives_unused_buffers_back_and_forgets_a_frame_that_waits() {
    let mut bench = Bench::new(SEGMENTED);
    bench.give_buffers(3, 1000);
    assert!(bench.far.send(&frame(5000)));
    bench.kick(RX).unwrap();
    bench.event(|worker, io| worker.drain(io)).unwrap();
    bench.start();
    // The chains that were held are there again, from the first.
    assert!(bench.far.send(&frame(70)));
    bench.kick(RX).unwrap();
    assert_eq!(bench.rx.take_used(), [(0, 82)]);
}

#[test]
fn a_pulled_cable_carries_nothing_and_leaves_nothing_over() {
    let mut bench = Bench::new(MERGEABLE);
    let control = bench.net.control();
    let buffers = bench.give_buffers(4, 2000);
    bench.kick(RX).unwrap();
    control.set_plugged(false);
    assert!(!control.is_up());
    assert!(bench.far.send(&frame(60)));
    bench.wake().unwrap();
    bench.submit(&frame(60));
    bench.kick(TX).unwrap();
    assert_eq!(bench.tx.take_used(), [(0, 0)], "sent into the air");
    assert_eq!(bench.far.receive(), None);
    control.set_plugged(true);
    assert!(bench.far.send(&frame(61)));
    bench
        .event(|worker, io| worker.on_source(PLUGGED, io))
        .unwrap();
    bench.wake().unwrap();
    assert_eq!(frames(&mut bench, &buffers), [&frame(61)[HEADER..]]);
    let counters = bench.counters();
    assert_eq!(traffic(counters.received), (1, 61, 1));
    assert_eq!(traffic(counters.sent), (0, 0, 1));
}

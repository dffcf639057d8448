//! What no driver would do: nothing of it may panic, hang, grow, or touch other connections.

use super::*;
use crate::virtio::vsock::table::MAX_REFUSALS;

#[test]
fn packets_that_are_none_are_given_back() {
    let mut bench = Bench::new();
    let mut peer = bench.connect();
    for len in [1, 43] {
        bench.put(&packet(PORT, 80, Op::Rst).to_bytes()[..len], &[]);
    }
    bench.kick(TX);
    // From somebody else: an answer would reach nobody.
    let header = packet(PORT, 80, Op::Rst);
    for src_cid in [0, 1, 2, 4, CID | 1 << 32, u64::MAX] {
        bench.send(Header { src_cid, ..header }, &[]);
    }
    bench.expect(&[]);
    bench.data(b"alive");
    assert_eq!(drain(&mut peer), (b"alive".to_vec(), false));
}

#[test]
fn a_chain_without_readable_buffers_is_no_packet() {
    let mut bench = Bench::new();
    let buffer = bench.tx.writable(100);
    bench.tx.submit(&[buffer]);
    bench.kick(TX);
    assert_eq!(bench.tx.take_used(), [(0, 0)]);
    bench.expect(&[]);
}

#[test]
fn what_is_for_nobody_is_refused() {
    let mut bench = Bench::new();
    let _peer = bench.connect();
    let refused = |bench: &mut Bench, header: Header| {
        bench.put(&header.to_bytes(), &[]);
        bench.kick(TX);
        let mut used = bench.rx.take_used();
        let (head, len) = used.pop().expect("a refusal");
        assert!(used.is_empty());
        let bytes = bench.rx.read(bench.buffer_address(head), len);
        let rst = Header::from(*bytes.first_chunk().unwrap());
        assert_eq!(rst, header.rst());
        bench.rx.publish(head);
    };
    let header = packet(PORT, 80, Op::Request);
    // Other addresses: the guest's program should not wait for them.
    for dst_cid in [0, 1, 3, 7, 2 | 1 << 32, u64::MAX] {
        refused(&mut bench, Header { dst_cid, ..header });
    }
    // Datagrams, SEQPACKET (not offered), and what there is not.
    for kind in [0, 2, 3, u16::MAX] {
        refused(&mut bench, Header { kind, ..header });
    }
    // No such connection.
    for op in [0, 2, 4, 5, 6, 7, 8, u16::MAX] {
        refused(
            &mut bench,
            Header {
                src_port: 1,
                op,
                ..header
            },
        );
    }
    assert_eq!(bench.connections(), 1);
}

#[test]
fn a_refusal_is_never_refused() {
    let mut bench = Bench::new();
    for dst_cid in [HOST_CID, 7] {
        for kind in [STREAM, 2] {
            let header = packet(1, 1, Op::Rst);
            bench.send(
                Header {
                    dst_cid,
                    kind,
                    ..header
                },
                &[],
            );
        }
    }
    bench.expect(&[]);
}

#[test]
fn nonsense_ends_the_connection_it_is_about_and_no_other() {
    let mut bench = Bench::new();
    let mut other = bench.connect_from(1);
    let header = packet(PORT, 80, Op::Rw);
    let nonsense = [
        Header { op: 0, ..header },
        Header { op: 8, ..header },
        Header {
            op: Op::Response as u16,
            ..header
        },
        Header {
            op: Op::Request as u16,
            ..header
        },
        // More data than there is.
        Header { len: 1, ..header },
        Header {
            len: u32::MAX,
            ..header
        },
    ];
    for header in nonsense {
        let mut peer = bench.connect();
        bench.put(&header.to_bytes(), &[]);
        bench.kick(TX);
        bench.expect(&[Op::Rst]);
        assert_eq!(drain(&mut peer), (vec![], true), "{header:?}");
    }
    let mut peer = bench.connect();
    bench.shutdown(Done::SENDING);
    bench.packets();
    bench.data(b"I said that I would not");
    bench.expect(&[Op::Rst]);
    assert_eq!(drain(&mut peer), (vec![], true));

    bench.send(packet(1, 80, Op::Rw), b"alive");
    assert_eq!(drain(&mut other).0, b"alive");
}

#[test]
fn bytes_behind_the_packet_are_not_data() {
    let mut bench = Bench::new();
    let mut peer = bench.connect();
    let header = Header {
        len: 3,
        ..packet(PORT, 80, Op::Rw)
    };
    bench.put(&header.to_bytes(), b"yes, and no");
    bench.kick(TX);
    assert_eq!(drain(&mut peer).0, b"yes");
    bench.data(b"");
    bench.expect(&[]);
}

#[test]
fn unknown_flags_of_a_shutdown_mean_nothing() {
    let mut bench = Bench::new();
    let _peer = bench.connect();
    let header = packet(PORT, 80, Op::Shutdown);
    bench.send(
        Header {
            flags: !3,
            ..header
        },
        &[],
    );
    bench.expect(&[]);
    bench.send(
        Header {
            flags: u32::MAX,
            ..header
        },
        &[],
    );
    bench.expect(&[Op::Rst]);
}

#[test]
fn refusals_that_nobody_fetches_stop_the_guest_and_not_more() {
    let mut bench = Bench::without_buffers();
    let mut sent = 0;
    for _ in 0..250 {
        bench.put(&packet(1, 1, Op::Rw).to_bytes(), &[]);
        sent += 1;
    }
    bench.kick(TX);
    for _ in 0..250 {
        bench.put(&packet(1, 1, Op::Rw).to_bytes(), &[]);
        sent += 1;
        bench.kick(TX);
        if bench.outstanding > 100 {
            break;
        }
    }
    assert_eq!(bench.worker.muxer.table().kept().1, MAX_REFUSALS);
    assert!(sent > MAX_REFUSALS);
    // With buffers, everything is heard and answered.
    bench.offer(64, 4096);
    assert_eq!(bench.packets().len(), sent);
    bench.outstanding -= bench.tx.take_used().len();
    assert_eq!(bench.outstanding, 0);
}

#[test]
fn connections_made_and_reset_without_end_leave_nothing() {
    let mut bench = Bench::without_buffers();
    for port in 0..3000 {
        bench.send(packet(port, 80, Op::Request), &[]);
        bench.send(packet(port, 80, Op::Rst), &[]);
        bench.host.state().arrived.clear();
    }
    assert_eq!(bench.worker.muxer.table().kept(), (0, 0));
    assert_eq!(bench.connections(), 0);
}

#[test]
fn receive_buffers_too_small_for_anything_are_given_back() {
    let mut bench = Bench::without_buffers();
    bench.send(packet(PORT, 80, Op::Request), &[]);
    bench.buffer = 4096;
    for (head, size) in [(0, 1), (1, HEADER_LEN), (2, HEADER_LEN + 1)] {
        let at = bench.buffer_address(head);
        bench
            .rx
            .set_descriptor(head, Descriptor::writable(at, size));
        bench.rx.publish(head);
    }
    bench.kick(RX);
    assert_eq!(bench.rx.take_used(), [(0, 0), (1, 0), (2, HEADER_LEN)]);
}

//! Connections that the guest asks for.

use super::*;
use crate::virtio::vsock::table::MAX_CONNECTIONS;

#[test]
fn a_guest_connects_and_both_talk() {
    let mut bench = Bench::new();
    bench.send(packet(PORT, 80, Op::Request), &[]);
    let response = bench.packet();
    assert_eq!(response.op, Op::Response);
    assert_eq!(
        (response.header.src_port, response.header.dst_port),
        (80, PORT)
    );
    assert_eq!(response.header.buf_alloc, 256 << 10);
    assert_eq!(response.header.kind, STREAM);
    assert_eq!(bench.host.state().arrived[0].0, 80);
    let mut peer = bench.peer();

    bench.data(b"hello");
    bench.data(b", host");
    assert_eq!(drain(&mut peer), (b"hello, host".to_vec(), false));
    bench.expect(&[]);

    peer.write_all(b"hello, guest").unwrap();
    bench.poll();
    let answer = bench.packet();
    assert_eq!((answer.op, answer.data), (Op::Rw, b"hello, guest".to_vec()));
    assert_eq!(answer.header.fwd_cnt, 11, "it tells what was taken");
}

#[test]
fn a_port_where_nobody_listens_is_refused() {
    let mut bench = Bench::new();
    bench.send(packet(PORT, CLOSED, Op::Request), &[]);
    let refusal = bench.packet();
    assert_eq!(refusal.op, Op::Rst);
    assert_eq!(
        (refusal.header.src_port, refusal.header.dst_port),
        (CLOSED, PORT)
    );
    assert_eq!(bench.connections(), 0);
}

#[test]
fn data_sent_before_the_response_is_out_waits_for_it() {
    let mut bench = Bench::without_buffers();
    bench.send(packet(PORT, 80, Op::Request), &[]);
    let mut peer = bench.peer();
    peer.write_all(b"welcome").unwrap();
    drop(peer);
    bench.poll();
    bench.offer(8, 4096);
    let packets = bench.packets();
    let ops: Vec<_> = packets.iter().map(|packet| packet.op).collect();
    assert_eq!(ops[0], Op::Response);
    assert!(
        ops[1..].contains(&Op::Rw) && ops.contains(&Op::Shutdown),
        "{ops:?}"
    );
}

#[test]
fn a_host_that_closes_at_once_is_understood() {
    let mut bench = Bench::without_buffers();
    bench.send(packet(PORT, 80, Op::Request), &[]);
    drop(bench.peer());
    bench.poll();
    bench.offer(8, 4096);
    let packets = bench.packets();
    assert_eq!(packets[0].op, Op::Response);
    let last = packets.last().unwrap();
    assert_eq!((last.op, last.header.flags), (Op::Shutdown, 3));
}

#[test]
fn the_same_ports_twice_are_a_mistake_that_ends_both() {
    let mut bench = Bench::new();
    let mut peer = bench.connect();
    bench.send(packet(PORT, 80, Op::Request), &[]);
    bench.expect(&[Op::Rst]);
    assert_eq!(drain(&mut peer), (vec![], true));
    bench.connect();
}

#[test]
fn ports_of_either_side_tell_connections_apart() {
    let mut bench = Bench::new();
    let mut streams = Vec::new();
    for (guest, host) in [(1, 80), (1, 81), (2, 80), (80, 1)] {
        bench.send(packet(guest, host, Op::Request), &[]);
        bench.expect(&[Op::Response]);
        streams.push((guest, host, bench.peer()));
    }
    for (guest, host, stream) in &mut streams {
        let text = format!("{guest}:{host}");
        bench.send(packet(*guest, *host, Op::Rw), text.as_bytes());
        assert_eq!(drain(stream).0, text.as_bytes());
    }
}

#[test]
fn a_host_peer_without_time_is_asked_again() {
    let mut bench = Bench::new();
    bench.host.state().busy = true;
    bench.send(packet(PORT, 80, Op::Request), &[]);
    bench.send(packet(PORT, 80, Op::Request), &[]);
    bench.expect(&[]);
    bench.pass(Duration::ZERO);
    bench.expect(&[]);
    bench.host.state().busy = false;
    bench.pass(Duration::ZERO);
    bench.expect(&[Op::Response]);
    assert_eq!(
        bench.host.state().asked,
        3,
        "the second request is the first one"
    );
    assert_eq!(bench.host.state().arrived.len(), 1);
}

#[test]
fn a_host_peer_without_time_for_long_is_no_peer() {
    let mut bench = Bench::new();
    bench.host.state().busy = true;
    bench.send(packet(PORT, 80, Op::Request), &[]);
    bench.pass(Duration::from_secs(5));
    bench.expect(&[Op::Rst]);
    bench.host.state().busy = false;
    bench.pass(Duration::from_secs(5));
    bench.expect(&[]);
}

#[test]
fn a_guest_that_gives_up_is_not_connected_later() {
    let mut bench = Bench::new();
    bench.host.state().busy = true;
    bench.send(packet(PORT, 80, Op::Request), &[]);
    bench.send(packet(PORT, 80, Op::Rst), &[]);
    bench.host.state().busy = false;
    bench.pass(Duration::ZERO);
    bench.expect(&[]);
    assert_eq!(bench.connections(), 0);
}

#[test]
fn waiting_requests_are_few() {
    let mut bench = Bench::new();
    bench.host.state().busy = true;
    let mut refused = 0;
    for port in 0..1000 {
        bench.send(packet(port, 80, Op::Request), &[]);
        refused += bench.packets().len();
    }
    assert_eq!(refused, 1000 - 128);
}

#[test]
fn connections_are_limited_and_places_are_used_again() {
    let mut bench = Bench::new();
    let limit = u32::try_from(MAX_CONNECTIONS).unwrap();
    for port in 0..limit {
        bench.send(packet(port, 80, Op::Request), &[]);
        bench.expect(&[Op::Response]);
    }
    bench.send(packet(limit, 80, Op::Request), &[]);
    bench.expect(&[Op::Rst]);
    // All of them work, whichever way they are taken.
    bench.poll();
    bench.expect(&[]);
    let mut peers: Vec<_> = bench.host.state().arrived.drain(..).collect();
    for (port, (_, peer)) in (0..limit).zip(&mut peers) {
        peer.write_all(&port.to_le_bytes()).unwrap();
    }
    bench.poll();
    let mut seen: Vec<_> = bench
        .packets()
        .iter()
        .map(|packet| {
            assert_eq!(packet.data, packet.header.dst_port.to_le_bytes());
            packet.header.dst_port
        })
        .collect();
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..limit));
    bench.send(packet(5, 80, Op::Rst), &[]);
    bench.send(packet(limit, 80, Op::Request), &[]);
    bench.expect(&[Op::Response]);
}

#[test]
fn thousands_of_connections_come_and_go() {
    let mut bench = Bench::new();
    for port in 0..5000 {
        bench.send(packet(port, 80, Op::Request), &[]);
        bench.send(packet(port, 80, Op::Rw), &port.to_le_bytes());
        let done = packet(port, 80, Op::Shutdown);
        bench.send(Header { flags: 3, ..done }, &[]);
        bench.expect(&[Op::Response, Op::Rst]);
        let mut peer = bench.peer();
        assert_eq!(drain(&mut peer), (port.to_le_bytes().to_vec(), true));
    }
    bench.poll();
    assert_eq!(bench.connections(), 0);
    assert_eq!(bench.worker.muxer.table().kept(), (0, 0));
}

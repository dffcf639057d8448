//! Credit, backpressure, turns, and a receive queue that runs empty.

use super::*;
use crate::virtio::vsock::credit::WINDOW;

/// The first data of a connection with a guest that has so much room.
fn with_room(bench: &mut Bench, port: u32, room: u32) -> UnixStream {
    let request = packet(port, 80, Op::Request);
    let buf_alloc = room;
    bench.send(
        Header {
            buf_alloc,
            ..request
        },
        &[],
    );
    bench.expect(&[Op::Response]);
    bench.peer()
}

#[test]
fn the_guest_gets_no_more_than_it_has_room_for() {
    let mut bench = Bench::new();
    let mut peer = with_room(&mut bench, PORT, 10_000);
    let words = noise(30_000);
    peer.write_all(&words).unwrap();
    bench.poll();
    let mut seen: Vec<u8> = Vec::new();
    let mut begged = 0;
    let mut take = |bench: &mut Bench, seen: &mut Vec<u8>| {
        for packet in bench.packets() {
            match packet.op {
                Op::Rw => seen.extend(packet.data),
                Op::CreditRequest => begged += 1,
                other => panic!("{other:?}"),
            }
        }
    };
    take(&mut bench, &mut seen);
    assert_eq!(seen.len(), 10_000);
    // Nothing comes of an event or a kick while there is no room.
    bench.poll();
    bench.kick(RX);
    take(&mut bench, &mut seen);
    assert_eq!(seen.len(), 10_000);
    for taken in [1u32, 6000, 16_000, 26_000] {
        let update = packet(PORT, 80, Op::CreditUpdate);
        let (buf_alloc, fwd_cnt) = (10_000, taken);
        bench.send(
            Header {
                buf_alloc,
                fwd_cnt,
                ..update
            },
            &[],
        );
        take(&mut bench, &mut seen);
        assert_eq!(seen.len(), (10_000 + taken as usize).min(30_000));
    }
    assert!(seen == words);
    assert_eq!(begged, 4, "once each time that the room was used up");
}

#[test]
fn a_request_for_credit_is_answered_once_however_often_it_is_made() {
    let mut bench = Bench::without_buffers();
    bench.send(packet(PORT, 80, Op::Request), &[]);
    for _ in 0..100 {
        bench.send(packet(PORT, 80, Op::CreditRequest), &[]);
    }
    assert_eq!(bench.worker.muxer.table().kept(), (0, 1));
    bench.offer(8, 4096);
    let packets = bench.packets();
    // The response says it already.
    assert_eq!(packets.len(), 1);
    assert_eq!(packets[0].header.buf_alloc, WINDOW);
    bench.send(packet(PORT, 80, Op::CreditRequest), &[]);
    bench.expect(&[Op::CreditUpdate]);
}

#[test]
fn what_the_host_took_is_told_before_the_guest_runs_dry() {
    let mut bench = Bench::new();
    let mut peer = bench.connect();
    let mut told = 0;
    let mut sent = 0;
    for _ in 0..100 {
        // A driver that obeys the credit never has to wait: the host takes everything at once.
        assert!(WINDOW - (sent - told) >= 60_000);
        bench.data(&noise(60_000));
        sent += 60_000;
        drain(&mut peer);
        for packet in bench.packets() {
            assert_eq!(packet.op, Op::CreditUpdate);
            told = packet.header.fwd_cnt;
        }
    }
    assert!(told > 0);
    assert_eq!(bench.kept(), 0);
}

#[test]
fn a_host_peer_that_reads_nothing_costs_a_window_and_holds_nobody_up() {
    let mut bench = Bench::new();
    let mut stuck = bench.connect();
    let mut other = bench.connect_from(2);
    let words = noise(10 << 20);
    let mut sent = 0;
    let mut told = 0;
    let step = 32 << 10;
    // As a driver does that sends as long as it has credit.
    let mut send = |bench: &mut Bench, told: &mut u32| {
        while WINDOW.wrapping_sub(u32::try_from(sent).unwrap().wrapping_sub(*told)) >= step {
            let step = step as usize;
            bench.data(&words[sent..sent + step]);
            sent += step;
            for packet in bench.packets() {
                *told = packet.header.fwd_cnt;
            }
            assert!(bench.kept() <= u64::from(WINDOW));
        }
        sent
    };
    let first = send(&mut bench, &mut told);
    assert!(bench.kept() > u64::from(WINDOW - step));
    for round in 0..50u8 {
        bench.send(packet(2, 80, Op::Rw), &[round; 1000]);
        assert_eq!(drain(&mut other), (vec![round; 1000], false));
    }
    // It wakes up, and gets everything in order.
    let mut seen = Vec::new();
    while seen.len() < 2 << 20 {
        let (bytes, _) = drain(&mut stuck);
        seen.extend(bytes);
        bench.poll();
        for packet in bench.packets() {
            assert_eq!(packet.op, Op::CreditUpdate);
            told = packet.header.fwd_cnt;
        }
        send(&mut bench, &mut told);
    }
    assert!(first < 1 << 20);
    assert!(seen == words[..seen.len()]);
}

#[test]
fn a_guest_that_sends_beyond_its_credit_is_reset() {
    let mut bench = Bench::new();
    let mut peer = bench.connect();
    for _ in 0..100 {
        bench.data(&noise(60_000));
        if bench.connections() == 0 {
            break;
        }
        assert!(bench.kept() <= u64::from(WINDOW));
    }
    assert_eq!(bench.packets().pop().unwrap().op, Op::Rst);
    assert_eq!(bench.kept(), 0);
    // What it was allowed to send is there, as far as the socket had taken it, and then the end.
    let (bytes, end) = drain(&mut peer);
    assert!(end);
    let period = noise(60_000);
    assert!(bytes.iter().eq(period.iter().cycle().take(bytes.len())));
}

#[test]
fn everyone_has_a_turn() {
    let mut bench = Bench::new();
    let mut peers: Vec<_> = (0..10).map(|port| bench.connect_from(port)).collect();
    for peer in &mut peers {
        assert_eq!(stuff(peer, &[1; 100_000]), 100_000);
    }
    bench.poll();
    // Of the 64 buffers, each got as many as the others.
    let mut counts = [0; 10];
    for (head, len) in bench.rx.take_used() {
        let packet = bench.read(head, len);
        counts[packet.header.dst_port as usize] += 1;
    }
    assert_eq!(counts.iter().sum::<i32>(), 64);
    assert!(
        counts.iter().all(|count| (6..=7).contains(count)),
        "{counts:?}"
    );
}

#[test]
fn a_receive_queue_without_buffers_stops_the_reading_and_a_buffer_resumes_it() {
    let mut bench = Bench::without_buffers();
    bench.send(packet(PORT, 80, Op::Request), &[]);
    let mut peer = bench.peer();
    let words = noise(100_000);
    assert_eq!(stuff(&mut peer, &words), words.len());
    bench.poll();
    assert_eq!(bench.kept(), 0, "what nobody reads stays in the socket");
    // Buffer by buffer, each offered once.
    let mut seen = Vec::new();
    bench.buffer = 1000;
    let at = bench.buffer_address(0);
    bench.rx.set_descriptor(0, Descriptor::writable(at, 1000));
    let mut ops = Vec::new();
    while seen.len() < words.len() {
        bench.rx.publish(0);
        bench.kick(RX);
        let used = bench.rx.take_used();
        assert_eq!(used.len(), 1, "after {} bytes", seen.len());
        let packet = bench.read(0, used[0].1);
        ops.push(packet.op);
        seen.extend(packet.data);
    }
    assert!(seen == words);
    assert_eq!(ops[0], Op::Response);
    assert_eq!(ops.len(), 1 + words.len().div_ceil(1000 - HEADER));
    // The last buffer stays where it is until there is something.
    bench.rx.publish(0);
    bench.kick(RX);
    assert!(bench.rx.take_used().is_empty());
    peer.write_all(b"more").unwrap();
    bench.poll();
    assert_eq!(bench.rx.take_used(), [(0, HEADER_LEN + 4)]);
}

#[test]
fn packets_may_be_split_over_buffers_in_any_way() {
    let mut bench = Bench::without_buffers();
    let mut peer = {
        bench.offer(1, 4096);
        bench.connect()
    };
    // The one buffer that is offered, empty: a second one in pieces.
    peer.write_all(&noise(1500)).unwrap();
    bench.poll();
    assert_eq!(bench.packet().data, noise(1500));
    let data = noise(300);
    let header = Header {
        len: 300,
        ..packet(PORT, 80, Op::Rw)
    }
    .to_bytes();
    let bytes: Vec<u8> = header.iter().chain(&data).copied().collect();
    bench.tx.take_used();
    for size in [2, 7, 43, 45, 344] {
        bench.tx.recycle();
        let chain: Vec<_> = bytes
            .chunks(size)
            .map(|piece| bench.tx.readable(piece))
            .collect();
        bench.tx.submit_indirect(&chain);
        bench.kick(TX);
        assert_eq!(bench.tx.take_used().len(), 1);
        assert_eq!(drain(&mut peer).0, data, "pieces of {size}");
    }
}

#[test]
fn a_packet_for_the_guest_may_go_into_many_small_buffers() {
    let mut bench = Bench::without_buffers();
    bench.send(packet(PORT, 80, Op::Request), &[]);
    let mut peer = bench.peer();
    let words = noise(500);
    peer.write_all(&words).unwrap();
    bench.poll();
    for _ in 0..2 {
        let pieces: Vec<_> = (0..100).map(|_| bench.rx.writable(7)).collect();
        bench.rx.submit_indirect(&pieces);
        bench.kick(RX);
        let used = bench.rx.take_used();
        let bytes: Vec<u8> = pieces
            .iter()
            .flat_map(|piece| bench.rx.read(piece.address, piece.len))
            .collect();
        let header = Header::from(*bytes.first_chunk().unwrap());
        if header.op == Op::Response as u16 {
            continue;
        }
        assert_eq!(used[0].1, HEADER_LEN + 500);
        assert_eq!(&bytes[HEADER..HEADER + 500], words);
        return;
    }
    panic!("no data");
}

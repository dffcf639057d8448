//! How connections end: by halves, at once, late, or not properly.

use std::net::Shutdown;

use super::*;

#[test]
fn a_host_that_sends_no_more_can_still_read() {
    let mut bench = Bench::new();
    let mut peer = bench.connect();
    peer.write_all(b"all").unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    bench.poll();
    let packets = bench.packets();
    assert_eq!(packets[0].data, b"all");
    assert_eq!((packets[1].op, packets[1].header.flags), (Op::Shutdown, 2));
    bench.data(b"answer");
    assert_eq!(drain(&mut peer), (b"answer".to_vec(), false));
    // The guest closes: SHUTDOWN of both, which is confirmed.
    bench.shutdown(Done::all());
    bench.expect(&[Op::Rst]);
    assert_eq!(drain(&mut peer), (vec![], true));
    assert_eq!(bench.connections(), 0);
}

#[test]
fn a_guest_that_sends_no_more_can_still_read() {
    let mut bench = Bench::new();
    let mut peer = bench.connect();
    bench.data(b"all");
    bench.shutdown(Done::SENDING);
    assert_eq!(drain(&mut peer), (b"all".to_vec(), true));
    // The host is told that nothing more of it is awaited; but the connection stands.
    let news = bench.packets();
    assert!(
        news.iter()
            .all(|packet| packet.op == Op::Shutdown && packet.header.flags == 1)
    );
    peer.write_all(b"answer").unwrap();
    bench.poll();
    assert_eq!(bench.packet().data, b"answer");
    // Then the host is done as well, and with it the connection, once the guest has confirmed.
    drop(peer);
    bench.poll();
    let end = bench.packet();
    assert_eq!((end.op, end.header.flags), (Op::Shutdown, 3));
    bench.send(packet(PORT, 80, Op::Rst), &[]);
    bench.expect(&[]);
    assert_eq!(bench.connections(), 0);
}

#[test]
fn a_guest_that_reads_no_more_can_still_send() {
    let mut bench = Bench::new();
    let mut peer = bench.connect();
    bench.shutdown(Done::RECEIVING);
    let error = peer.write_all(b"unwanted").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    bench.poll();
    assert!(
        bench
            .packets()
            .iter()
            .all(|packet| packet.op == Op::Shutdown)
    );
    bench.data(b"more");
    assert_eq!(drain(&mut peer), (b"more".to_vec(), false));
    bench.shutdown(Done::SENDING);
    bench.expect(&[Op::Rst]);
    assert_eq!(drain(&mut peer), (vec![], true));
}

#[test]
fn a_host_that_reads_no_more_is_reported() {
    let mut bench = Bench::new();
    let mut peer = bench.connect();
    peer.shutdown(Shutdown::Read).unwrap();
    bench.data(b"into the void");
    let news = bench.packet();
    assert_eq!((news.op, news.header.flags), (Op::Shutdown, 1));
    // It crossed the news.
    bench.data(b"more of it");
    bench.expect(&[]);
    peer.write_all(b"still here").unwrap();
    bench.poll();
    let data = bench.packet();
    assert_eq!(data.data, b"still here");
    assert_eq!(data.header.fwd_cnt, 23, "what is lost takes up no room");
}

#[test]
fn a_host_that_closes_has_its_last_words_delivered_first() {
    let mut bench = Bench::without_buffers();
    bench.send(packet(PORT, 80, Op::Request), &[]);
    let mut peer = bench.peer();
    let words = noise(50_000);
    peer.write_all(&words).unwrap();
    drop(peer);
    bench.poll();
    bench.offer(8, 4096);
    let packets = bench.packets();
    let data: Vec<u8> = packets
        .iter()
        .filter(|packet| packet.op == Op::Rw)
        .flat_map(|packet| packet.data.clone())
        .collect();
    assert!(data == words);
    let last = packets.last().unwrap();
    assert_eq!((last.op, last.header.flags), (Op::Shutdown, 3));
}

#[test]
fn both_ends_that_send_no_more_are_an_end() {
    for host_first in [true, false] {
        let mut bench = Bench::new();
        let mut peer = bench.connect();
        if host_first {
            peer.shutdown(Shutdown::Write).unwrap();
            bench.poll();
            bench.shutdown(Done::SENDING);
        } else {
            bench.shutdown(Done::SENDING);
            peer.shutdown(Shutdown::Write).unwrap();
            bench.poll();
        }
        let last = bench.packets().pop().unwrap();
        assert_eq!((last.op, last.header.flags), (Op::Shutdown, 3));
        assert_eq!(drain(&mut peer), (vec![], true));
        // Neither closes its socket, and yet the connection does not live for ever.
        bench.pass(Duration::from_secs(7));
        assert_eq!(bench.connections(), 1);
        bench.pass(Duration::from_secs(9));
        bench.expect(&[Op::Rst]);
        assert_eq!(bench.connections(), 0);
    }
}

#[test]
fn a_guest_that_closes_leaves_its_last_words_to_the_device() {
    let mut bench = Bench::new();
    let mut peer = bench.connect();
    let words = noise(400_000);
    for piece in words.chunks(50_000) {
        bench.data(piece);
    }
    assert!(bench.kept() > 0);
    bench.shutdown(Done::all());
    // The guest may use its port again at once.
    assert_eq!(bench.packets().pop().unwrap().op, Op::Rst);
    let mut second = bench.connect();
    bench.data(b"second");
    assert_eq!(drain(&mut second), (b"second".to_vec(), false));

    let mut seen = Vec::new();
    loop {
        let (bytes, end) = drain(&mut peer);
        assert!(end || !bytes.is_empty());
        seen.extend(bytes);
        if end {
            break;
        }
        bench.pass(Duration::from_secs(29));
        bench.poll();
    }
    assert!(seen == words);
    assert_eq!(bench.connections(), 1);
    bench.expect(&[]);
}

#[test]
fn last_words_that_nobody_takes_are_dropped_in_the_end() {
    let mut bench = Bench::new();
    let peer = bench.connect();
    for piece in noise(400_000).chunks(50_000) {
        bench.data(piece);
    }
    bench.shutdown(Done::all());
    assert_eq!(bench.packets().pop().unwrap().op, Op::Rst);
    bench.pass(Duration::from_secs(29));
    assert_eq!(bench.connections(), 1);
    bench.pass(Duration::from_secs(31));
    assert_eq!((bench.connections(), bench.kept()), (0, 0));
    bench.expect(&[]);
    drop(peer);
}

#[test]
fn last_words_to_a_peer_that_leaves_are_forgotten() {
    let mut bench = Bench::new();
    let peer = bench.connect();
    for piece in noise(400_000).chunks(50_000) {
        bench.data(piece);
    }
    bench.shutdown(Done::all());
    drop(peer);
    bench.poll();
    assert_eq!((bench.connections(), bench.kept()), (0, 0));
}

#[test]
fn the_end_of_what_a_guest_sends_comes_after_all_of_it() {
    let mut bench = Bench::new();
    let mut peer = bench.connect();
    let words = noise(400_000);
    for piece in words.chunks(50_000) {
        bench.data(piece);
    }
    bench.shutdown(Done::SENDING);
    let mut seen = Vec::new();
    let end = loop {
        let (bytes, end) = drain(&mut peer);
        seen.extend(bytes);
        if end || seen.len() >= words.len() {
            break end;
        }
        bench.poll();
    };
    bench.poll();
    assert!(seen == words);
    assert!(end || drain(&mut peer).1);
}

#[test]
fn a_guest_that_resets_is_believed() {
    let mut bench = Bench::new();
    let mut peer = bench.connect();
    bench.data(b"x");
    bench.send(packet(PORT, 80, Op::Rst), &[]);
    bench.expect(&[]);
    assert_eq!(drain(&mut peer), (b"x".to_vec(), true));
    bench.data(b"after the end");
    bench.expect(&[Op::Rst]);
    bench.send(packet(PORT, 80, Op::Rst), &[]);
    bench.expect(&[]);
}

#[test]
fn a_peer_that_leaves_with_bytes_unread_is_an_end_like_any() {
    let mut bench = Bench::new();
    let peer = bench.connect();
    bench.data(b"unread");
    drop(peer);
    bench.poll();
    let last = bench.packets().pop().unwrap();
    assert_eq!((last.op, last.header.flags), (Op::Shutdown, 3));
    bench.data(b"crossed the news");
    bench.send(packet(PORT, 80, Op::CreditRequest), &[]);
    bench.expect(&[]);
    bench.shutdown(Done::all());
    bench.expect(&[Op::Rst]);
    assert_eq!(bench.connections(), 0);
}

//! Connections that host programs ask for.

use super::*;

/// A caller that has asked for the guest's port 52, and the request as the guest got it.
fn ask(bench: &mut Bench) -> (UnixStream, Header) {
    let mut caller = bench.host.call();
    caller.write_all(b"CONNECT 52\n").unwrap();
    bench.poll();
    let request = bench.packet();
    assert_eq!((request.op, request.header.dst_port), (Op::Request, 52));
    (caller, request.header)
}

/// The guest's packet that answers `request`.
fn answer(request: &Header, op: Op) -> Header {
    packet(request.dst_port, request.src_port, op)
}

#[test]
fn a_caller_is_connected_and_hears_so() {
    let mut bench = Bench::new();
    let (mut caller, request) = ask(&mut bench);
    assert_eq!(
        drain(&mut caller),
        (vec![], false),
        "not before the guest says"
    );
    bench.send(answer(&request, Op::Response), &[]);
    let greeting = format!("OK {}\n", request.src_port);
    assert_eq!(drain(&mut caller), (greeting.into_bytes(), false));

    caller.write_all(b"to the guest").unwrap();
    bench.poll();
    let data = bench.packet();
    assert_eq!((data.op, data.data), (Op::Rw, b"to the guest".to_vec()));
    bench.send(answer(&request, Op::Rw), b"to the caller");
    assert_eq!(drain(&mut caller).0, b"to the caller");
    assert_eq!(data.header.fwd_cnt, 0, "the greeting is not the guest's");
}

#[test]
fn what_follows_the_line_at_once_is_the_guests() {
    let mut bench = Bench::new();
    let mut caller = bench.host.call();
    caller.write_all(b"CONNECT 52\nearly").unwrap();
    caller.shutdown(std::net::Shutdown::Write).unwrap();
    bench.poll();
    let request = bench.packet().header;
    bench.send(answer(&request, Op::Response), &[]);
    let packets = bench.packets();
    assert_eq!(
        (packets[0].op, packets[0].data.as_slice()),
        (Op::Rw, &b"early"[..])
    );
    assert_eq!((packets[1].op, packets[1].header.flags), (Op::Shutdown, 2));
    assert_eq!(packets.len(), 2);
}

#[test]
fn a_guest_without_a_listener_closes_the_call() {
    let mut bench = Bench::new();
    let (mut caller, request) = ask(&mut bench);
    bench.send(answer(&request, Op::Rst), &[]);
    bench.expect(&[]);
    assert_eq!(drain(&mut caller), (vec![], true));
    assert_eq!(bench.connections(), 0);
}

#[test]
fn a_guest_that_says_nothing_is_given_up() {
    let mut bench = Bench::new();
    let (mut caller, request) = ask(&mut bench);
    bench.pass(Duration::from_secs(9));
    assert_eq!(drain(&mut caller), (vec![], false));
    bench.pass(Duration::from_secs(11));
    bench.expect(&[Op::Rst]);
    assert_eq!(drain(&mut caller), (vec![], true));
    // Too late.
    bench.send(answer(&request, Op::Response), &[]);
    bench.expect(&[Op::Rst]);
}

#[test]
fn a_guest_that_never_read_the_request_is_told_nothing() {
    let mut bench = Bench::without_buffers();
    let mut caller = bench.host.call();
    caller.write_all(b"CONNECT 52\n").unwrap();
    bench.poll();
    assert_eq!(bench.connections(), 1);
    bench.pass(Duration::from_secs(11));
    assert_eq!(drain(&mut caller), (vec![], true));
    bench.offer(4, 4096);
    bench.expect(&[]);
}

#[test]
fn a_caller_that_leaves_before_the_answer_is_taken_back() {
    let mut bench = Bench::new();
    let (caller, request) = ask(&mut bench);
    drop(caller);
    bench.poll();
    bench.expect(&[Op::Rst]);
    assert_eq!(bench.connections(), 0);
    bench.send(answer(&request, Op::Response), &[]);
    bench.expect(&[Op::Rst]);
}

#[test]
fn every_call_has_a_port_of_its_own() {
    let mut bench = Bench::new();
    let mut ports = Vec::new();
    let mut callers = Vec::new();
    for _ in 0..100 {
        let (caller, request) = ask(&mut bench);
        bench.send(answer(&request, Op::Response), &[]);
        ports.push(request.src_port);
        callers.push(caller);
    }
    ports.dedup();
    assert_eq!(ports.len(), 100);
    for (port, caller) in ports.iter().zip(&mut callers) {
        let text = format!("for {port}");
        bench.send(packet(52, *port, Op::Rw), text.as_bytes());
        assert_eq!(drain(caller).0, format!("OK {port}\n{text}").into_bytes());
    }
}

#[test]
fn only_a_response_answers_a_request() {
    for op in [
        Op::Rw,
        Op::Shutdown,
        Op::CreditUpdate,
        Op::CreditRequest,
        Op::Request,
    ] {
        let mut bench = Bench::new();
        let (mut caller, request) = ask(&mut bench);
        bench.send(answer(&request, op), &[]);
        bench.expect(&[Op::Rst]);
        assert_eq!(drain(&mut caller), (vec![], true), "{op:?}");
    }
}

#[test]
fn silent_callers_cost_a_few_places_and_keep_nobody_out() {
    let mut bench = Bench::new();
    let silent: Vec<_> = (0..500).map(|_| bench.host.call()).collect();
    bench.poll();
    assert_eq!(bench.connections(), 0);
    let (mut caller, request) = ask(&mut bench);
    bench.send(answer(&request, Op::Response), &[]);
    assert!(drain(&mut caller).0.starts_with(b"OK "));
    // Those who still have their places may use them as late as they like.
    let mut silent = silent;
    let last = silent.last_mut().unwrap();
    last.write_all(b"CONNECT 7\n").unwrap();
    bench.poll();
    assert_eq!(bench.packet().header.dst_port, 7);
    assert_eq!(drain(&mut silent[0]), (vec![], true));
}

#[test]
fn doors_that_fail_are_tried_again() {
    let mut bench = Bench::new();
    bench.host.state().broken = true;
    let mut caller = bench.host.call();
    caller.write_all(b"CONNECT 52\n").unwrap();
    bench.poll();
    bench.expect(&[]);
    bench.host.state().broken = false;
    bench.poll();
    bench.expect(&[]);
    bench.pass(Duration::ZERO);
    bench.poll();
    bench.expect(&[Op::Request]);
}

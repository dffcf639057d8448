//! The unix socket as a console, with clients of all manners.

use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;

use super::*;

fn unix(path: impl Into<PathBuf>) -> Result<Console, ConsoleError> {
    Console::open(&ConsoleEnd::Unix(path.into()).into())
}

#[test]
fn sockets_are_refused_with_a_remedy() {
    let dir = dir();
    let there = dir.path().join("there");
    fs::write(&there, "precious").unwrap();
    let text = refusal(unix(&there));
    assert!(text.contains("exists already; remove it"), "{text}");
    assert_eq!(fs::read(&there).unwrap(), b"precious");
    let text = refusal(unix(dir.path().join("x".repeat(120))));
    assert!(text.contains("at most 107 are possible"), "{text}");
    let text = refusal(unix(dir.path().join("not/there")));
    assert!(text.contains("there is no folder"), "{text}");
    let text = refusal(unix(there.join("x")));
    assert!(text.contains("cannot be made: Not a directory"), "{text}");
}

#[test]
fn a_socket_client_may_come_go_and_return() {
    let dir = dir();
    let path = dir.path().join("console");
    let mut machine = Machine::new(unix(&path).unwrap());
    assert!(fs::metadata(&path).unwrap().file_type().is_socket());
    machine.print(b"before. ");
    for round in 0..3 {
        let mut client = UnixStream::connect(&path).unwrap();
        machine.settle();
        if round == 0 {
            assert_eq!(read(&mut client, 8), b"before. ");
        }
        client.write_all(b"in").unwrap();
        assert_eq!(machine.hear(2), b"in");
        machine.print(b"out");
        assert_eq!(read(&mut client, 3), b"out");
        drop(client);
        if round == 1 {
            // The next client connects before the loop has seen this one leave.
            continue;
        }
        machine.settle();
        assert_eq!(machine.settle(), 0, "it is forgotten");
    }
    machine.end();
    assert!(!path.exists(), "the socket is removed");
}

#[test]
fn a_second_client_is_told_so() {
    let dir = dir();
    let path = dir.path().join("console");
    let mut machine = Machine::new(unix(&path).unwrap());
    let mut first = UnixStream::connect(&path).unwrap();
    machine.settle();
    let mut second = UnixStream::connect(&path).unwrap();
    machine.settle();
    let mut told = String::new();
    second.read_to_string(&mut told).unwrap();
    assert!(told.contains("in use"), "{told}");
    machine.print(b"still");
    assert_eq!(read(&mut first, 5), b"still");
    machine.end();
}

#[test]
fn a_client_that_only_sends_or_only_listens_is_served() {
    let dir = dir();
    let path = dir.path().join("console");
    let mut machine = Machine::new(unix(&path).unwrap());
    // Sends and leaves at once.
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"run").unwrap();
    drop(client);
    assert_eq!(machine.hear(3), b"run");
    machine.settle();
    // Has nothing to send, and listens.
    let mut client = UnixStream::connect(&path).unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    machine.settle();
    assert_eq!(machine.settle(), 0, "its end of input is seen once");
    machine.print(b"done");
    assert_eq!(read(&mut client, 4), b"done");
    drop(client);
    machine.settle();
    assert_eq!(machine.settle(), 0);
    machine.end();
}

#[test]
fn a_client_cannot_overrun_the_guest() {
    let dir = dir();
    let path = dir.path().join("console");
    let mut machine = Machine::new(unix(&path).unwrap());
    let mut client = UnixStream::connect(&path).unwrap();
    let sent: Vec<u8> = (0..=250).cycle().take(100_000).collect();
    let expected = sent.clone();
    let sending = thread::spawn(move || client.write_all(&sent).unwrap());
    assert!(machine.hear(expected.len()) == expected);
    sending.join().unwrap();
    machine.end();
}

#[test]
fn a_client_whose_leaving_goes_unseen_is_replaced() {
    let dir = dir();
    let path = dir.path().join("console");
    let mut machine = Machine::new(unix(&path).unwrap());
    machine.port.write(1, &[0]);
    // The guest takes no input, so that the client is not watched when it leaves.
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"one").unwrap();
    machine.settle();
    drop(client);
    assert_eq!(machine.settle(), 0);
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"two").unwrap();
    machine.settle();
    machine.port.write(1, &[1]);
    assert_eq!(machine.hear(6), b"onetwo");
    machine.print(b"out");
    assert_eq!(read(&mut client, 3), b"out");
    machine.end();
}

#[test]
fn a_client_that_stops_reading_does_not_stop_the_guest() {
    let dir = dir();
    let path = dir.path().join("console");
    let mut console = unix(&path).unwrap();
    let patience = Duration::from_millis(20);
    console.output.as_mut().unwrap().policy.patience = patience;
    let mut machine = Machine::new(console);
    let client = UnixStream::connect(&path).unwrap();
    machine.settle();
    let start = Instant::now();
    for _ in 0..5000 {
        machine.print(&[b'x'; 100]);
    }
    assert!(start.elapsed() < SOON);
    drop(client);
    machine.settle();
    machine.print(b"for the next");
    let mut client = UnixStream::connect(&path).unwrap();
    machine.settle();
    let mut got = Vec::new();
    while !got.ends_with(b"for the next") {
        got.extend(read(&mut client, 1));
    }
    machine.end();
}

#[test]
fn a_socket_that_is_another_one_by_now_stays() {
    let dir = dir();
    let path = dir.path().join("console");
    let machine = Machine::new(unix(&path).unwrap());
    let other = dir.path().join("other");
    fs::write(&other, "another VM's").unwrap();
    fs::rename(&other, &path).unwrap();
    machine.end();
    assert!(path.exists());
    // One that is never attached goes, too.
    let path = dir.path().join("unused");
    drop(unix(&path).unwrap());
    assert!(!path.exists());
}

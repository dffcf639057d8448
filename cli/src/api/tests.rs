//! The socket with clients of all manners. What they ask for is echoed.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use serde_json::json;
use tempfile::TempDir;

use super::*;

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

struct Bench {
    dir: TempDir,
    server: Option<Server>,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (listener, file) = listen(&dir.path().join("api")).unwrap();
        let echo = |request: &Request| {
            let body = String::from_utf8_lossy(&request.body).into_owned();
            Reply::show(json!([request.method, request.path, body]))
        };
        let server = Some(start(listener, file, echo).unwrap());
        Self { dir, server }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.dir.path().join("api")).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.set_write_timeout(Some(LONG)).unwrap();
        stream
    }
}

/// Reads one reply with a body: its status line and its body.
fn reply(stream: &mut UnixStream) -> (String, String) {
    let mut text = Vec::new();
    // Every body ends in a line feed of its own, and has no other.
    while !text.ends_with(b"\n") || text.ends_with(b"\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        text.push(byte[0]);
    }
    let text = String::from_utf8(text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.lines().next().unwrap().to_owned();
    (status, body.trim_end().to_owned())
}

fn ask(stream: &mut UnixStream, path: &str) {
    write!(stream, "GET {path} HTTP/1.1\r\n\r\n").unwrap();
    let (status, body) = reply(stream);
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert_eq!(body, format!("[\"GET\",\"{path}\",\"\"]"));
}

/// Whether the other side closes, rather than send more.
fn is_closed(stream: &mut UnixStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(count) => count == 0,
        // It had not read all that was sent to it.
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn one_connection_serves_many_requests() {
    let bench = Bench::new();
    let mut client = bench.connect();
    ask(&mut client, "/one");
    ask(&mut client, "/two");
    // Several at once, and the last says that it is the last.
    client
        .write_all(b"GET /a HTTP/1.1\r\n\r\nPUT /b HTTP/1.1\r\nContent-Length: 2\r\n\r\nhiGET /c HTTP/1.0\r\n\r\n")
        .unwrap();
    let bodies: Vec<_> = (0..3).map(|_| reply(&mut client).1).collect();
    assert_eq!(
        bodies,
        [
            "[\"GET\",\"/a\",\"\"]",
            "[\"PUT\",\"/b\",\"hi\"]",
            "[\"GET\",\"/c\",\"\"]"
        ]
    );
    assert!(is_closed(&mut client));
}

#[test]
fn a_request_may_come_in_crumbs() {
    let bench = Bench::new();
    let mut client = bench.connect();
    for byte in b"PUT /slow HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody" {
        client.write_all(&[*byte]).unwrap();
    }
    assert_eq!(reply(&mut client).1, "[\"PUT\",\"/slow\",\"body\"]");
}

#[test]
fn a_large_body_is_waved_through() {
    let bench = Bench::new();
    let mut client = bench.connect();
    let body = "x".repeat(http::MAX_BODY);
    let head = format!(
        "PUT /big HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    client.write_all(head.as_bytes()).unwrap();
    let mut nod = vec![0; http::CONTINUE.len()];
    client.read_exact(&mut nod).unwrap();
    assert_eq!(nod, http::CONTINUE);
    client.write_all(body.as_bytes()).unwrap();
    assert_eq!(
        reply(&mut client).1.len(),
        body.len() + "[\"PUT\",\"/big\",\"\"]".len()
    );
}

#[test]
fn what_is_too_much_is_refused_and_let_go() {
    let bench = Bench::new();
    for (request, status) in [
        (
            "PUT / HTTP/1.1\r\nContent-Length: 65537\r\n\r\n".to_owned(),
            "413",
        ),
        (format!("GET /{}", "x".repeat(http::MAX_HEAD)), "431"),
        ("gibberish\r\n\r\n".to_owned(), "400"),
    ] {
        let mut client = bench.connect();
        client.write_all(request.as_bytes()).unwrap();
        let (line, body) = reply(&mut client);
        assert!(line.contains(status), "{line}");
        assert!(body.contains("fault_message"), "{body}");
        assert!(is_closed(&mut client));
    }
    ask(&mut bench.connect(), "/after");
}

#[test]
fn a_client_that_has_said_all_is_answered() {
    let bench = Bench::new();
    let mut client = bench.connect();
    client.write_all(b"GET /last HTTP/1.1\r\n\r\n").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(reply(&mut client).1, "[\"GET\",\"/last\",\"\"]");
    assert!(is_closed(&mut client));
}

#[test]
fn clients_that_dawdle_keep_nobody_out() {
    let bench = Bench::new();
    let mut first = bench.connect();
    ask(&mut first, "/first");
    let dawdlers: Vec<_> = (0..3 * MAX_CLIENTS)
        .map(|_| {
            let mut client = bench.connect();
            client.write_all(b"GET / HT").unwrap();
            client
        })
        .collect();
    ask(&mut bench.connect(), "/further");
    drop(dawdlers);
    ask(&mut bench.connect(), "/last");
}

#[test]
fn a_client_that_takes_no_replies_gets_no_more() {
    let bench = Bench::new();
    let mut greedy = bench.connect();
    greedy.set_nonblocking(true).unwrap();
    let request = b"GET /again HTTP/1.1\r\n\r\n".repeat(100);
    // Until neither side takes anything any more.
    let mut sent = 0;
    let mut full = 0;
    while full < 100 {
        match greedy.write(&request) {
            Ok(count) => (sent, full) = (sent + count, 0),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                full += 1;
                ask(&mut bench.connect(), "/other");
            }
        }
        assert!(sent < 64 << 20, "the server takes everything");
    }
}

#[test]
fn the_end_does_not_wait_for_clients() {
    let mut bench = Bench::new();
    let mut idle = bench.connect();
    ask(&mut idle, "/idle");
    let mut busy = bench.connect();
    busy.write_all(b"GET / HT").unwrap();
    drop(bench.server.take());
    assert!(!bench.dir.path().join("api").exists());
    assert!(is_closed(&mut idle));
}

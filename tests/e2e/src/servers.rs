//! The rest of the world, as a guest's network sees it: a web server, a name server, and a host with addresses.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use probe::talk;
use sha2::{Digest, Sha256};

use crate::context::Skip;

/// An address of this host by which others would reach it.
pub fn outside() -> Result<Ipv4Addr> {
    // No packet is sent: the kernel says which address it would send one from. RFC 5737: this is nobody's.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let address = socket
        .connect((Ipv4Addr::new(192, 0, 2, 1), 9))
        .and_then(|()| socket.local_addr());
    match address.map(|address| address.ip()) {
        Ok(IpAddr::V4(address)) if !address.is_loopback() => Ok(address),
        _ => Err(Skip("this host has no IPv4 network".to_owned()).into()),
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> Result<u16> {
    // For both protocols at once.
    loop {
        let tcp = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        let port = tcp.local_addr()?.port();
        if UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return Ok(port);
        }
    }
}

/// A web server with one page, which it gives to whoever asks for anything.
#[derive(Debug)]
pub struct Web {
    /// Where it listens.
    pub address: SocketAddr,
    /// The SHA-256 of the page.
    pub sum: String,
}

impl Web {
    /// Serves `page` at `address` for as long as this process lives.
    pub fn serve(address: impl Into<IpAddr>, page: Vec<u8>) -> Result<Self> {
        let address = address.into();
        let listener =
            TcpListener::bind((address, 0)).with_context(|| format!("a server on {address}"))?;
        let web = Self {
            address: listener.local_addr()?,
            sum: hex(&Sha256::digest(&page)),
        };
        let page = Arc::new(page);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let page = page.clone();
                thread::spawn(move || give(stream, &page));
            }
        });
        Ok(web)
    }

    /// The address of its page.
    pub fn url(&self) -> String {
        format!("http://{}/page", self.address)
    }
}

/// Takes what guests send it.
#[derive(Debug)]
pub struct Sink(TcpListener);

impl Sink {
    /// Listens at `address`.
    pub fn listen(address: Ipv4Addr) -> Result<Self> {
        let listener =
            TcpListener::bind((address, 0)).with_context(|| format!("a sink on {address}"))?;
        Ok(Self(listener))
    }

    /// Its port.
    pub fn port(&self) -> Result<u16> {
        Ok(self.0.local_addr()?.port())
    }

    /// The SHA-256 of each of `count` streams, which may come at once. Whoever waits for more than come waits until the
    /// guest is gone: a thread of its own is the place for that.
    pub fn take(&self, count: usize) -> Result<Vec<String>> {
        let streams = self.0.incoming().take(count);
        let readers: Vec<_> = streams
            .map(|stream| {
                thread::spawn(move || {
                    let mut bytes = Vec::new();
                    stream?.read_to_end(&mut bytes)?;
                    Ok::<_, std::io::Error>(hex(&Sha256::digest(&bytes)))
                })
            })
            .collect();
        readers
            .into_iter()
            .map(|reader| {
                let sum = reader.join().map_err(|_| anyhow!("a reader panicked"))?;
                Ok(sum?)
            })
            .collect()
    }
}

/// As many bytes, none of which can be guessed from the one before.
pub fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    talk::noise(&mut 0x9e37_79b9_7f4a_7c15, &mut bytes);
    bytes
}

fn give(stream: TcpStream, page: &[u8]) -> std::io::Result<()> {
    let mut request = BufReader::new(&stream);
    let mut line = String::new();
    while request.read_line(&mut line)? > 2 {
        line.clear();
    }
    let len = page.len();
    write!(
        &stream,
        "HTTP/1.0 200 OK\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n"
    )?;
    (&stream).write_all(page)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The name of which [`play_name_server`] says that it is at `address`.
pub fn name_of(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("{a}-{b}-{c}-{d}.example")
}

/// Plays the host's name server for as long as this process lives, unless another test does already.
pub fn play_name_server() -> Result<()> {
    let resolv = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let server: Option<IpAddr> = resolv.lines().find_map(|line| {
        let (key, value) = line.split_once(' ')?;
        (key == "nameserver").then(|| value.trim().parse().ok())?
    });
    let server = SocketAddr::new(server.unwrap_or(Ipv4Addr::LOCALHOST.into()), 53);
    if let Ok(socket) = UdpSocket::bind(server) {
        thread::spawn(move || answer_names(&socket));
    }
    match ask_name(server) {
        Ok(true) => Ok(()),
        _ => {
            let why = format!("this host's name server, {server}, is not one that a test can play");
            Err(Skip(why).into())
        }
    }
}

/// Whether the server is one of [`answer_names`].
fn ask_name(server: SocketAddr) -> std::io::Result<bool> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    // RFC 1035 §4: an id, recursion desired, one question: of a name in labels, type A, class IN.
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in ["192-0-2-77", "example", ""] {
        query.push(u8::try_from(label.len()).unwrap_or(0));
        query.extend(label.bytes());
    }
    query.extend([0, 1, 0, 1]);
    socket.send_to(&query, server)?;
    let mut answer = [0; 512];
    let (len, _) = socket.recv_from(&mut answer)?;
    Ok(answer[..len].ends_with(&[192, 0, 2, 77]))
}

/// To a question for the IPv4 address of a name of [`name_of`] there is one answer, to others none.
fn answer_names(socket: &UdpSocket) {
    let mut query = [0; 512];
    loop {
        if let Ok((len, from)) = socket.recv_from(&mut query)
            && let Some(answer) = answer_name(&query[..len])
        {
            let _ = socket.send_to(&answer, from);
        }
    }
}

/// RFC 1035 §4: the name is labels up to an empty one; type and class are two bytes each.
fn answer_name(query: &[u8]) -> Option<Vec<u8>> {
    let end = query.iter().skip(12).position(|byte| *byte == 0)?;
    let question = query.get(12..12 + end + 5)?;
    let label = question.get(1..1 + usize::from(*question.first()?))?;
    let octets: Vec<u8> = std::str::from_utf8(label)
        .ok()?
        .split('-')
        .map_while(|number| number.parse().ok())
        .collect();
    let is_a = question[end + 1..end + 3] == [0, 1] && octets.len() == 4;
    let mut answer = query[..2].to_vec();
    // A response, recursion desired and available; so many questions, answers, and no more.
    answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
    answer.extend(question);
    if is_a {
        // The name of the question, type A, class IN, a minute, four bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(octets);
    }
    Some(answer)
}

/// Sends `bytes` to an echo and gives what comes back.
pub fn echo_over_tcp(to: SocketAddr, bytes: &[u8], limit: Duration) -> Result<Vec<u8>> {
    let stream = TcpStream::connect_timeout(&to, limit)?;
    stream.set_read_timeout(Some(limit))?;
    let mut sender = stream.try_clone()?;
    let all = bytes.to_vec();
    let sending = thread::spawn(move || {
        sender
            .write_all(&all)
            .and_then(|()| sender.shutdown(std::net::Shutdown::Write))
    });
    let mut back = Vec::new();
    (&stream).read_to_end(&mut back)?;
    sending.join().map_err(|_| anyhow!("a thread panicked"))??;
    Ok(back)
}

/// Sends a datagram to an echo until one comes back, or it is too late: datagrams may be lost.
pub fn echo_over_udp(to: SocketAddr, bytes: &[u8], deadline: Instant) -> Result<Vec<u8>> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // From there, nobody else is heard.
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut back = vec![0; 1 << 16];
    loop {
        match socket.send(bytes).and_then(|_| socket.recv(&mut back)) {
            Ok(len) => {
                back.truncate(len);
                return Ok(back);
            }
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("no answer from {to}"));
            }
            Err(_) => {}
        }
    }
}

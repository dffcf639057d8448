//! A server that says what it hears, over TCP and UDP.

use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::thread;

/// Serves at the port of both protocols, over IPv4 too, until it is killed.
pub fn run(port: u16) -> io::Result<()> {
    let tcp = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
    let udp = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?;
    println!("echo: ready on {port}");
    thread::spawn(move || {
        let mut datagram = vec![0; 1 << 16];
        loop {
            // A sender that is gone makes an error of the next call.
            if let Ok((len, from)) = udp.recv_from(&mut datagram) {
                let _ = udp.send_to(&datagram[..len], from);
            }
        }
    });
    for stream in tcp.incoming() {
        let stream = stream?;
        thread::spawn(move || answer(stream));
    }
    Ok(())
}

/// Sends back what comes, to its end.
fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => stream.write_all(&buffer[..count])?,
        }
    }
}

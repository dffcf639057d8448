//! The guest's end of vsock connections.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::thread;

use probe::talk;
use rustix::ioctl::{Getter, Opcode, ioctl, opcode};
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, SocketType, accept, bind, connect, listen, socket};

/// `VMADDR_CID_HOST`.
const HOST: u32 = 2;
/// `VMADDR_CID_ANY`.
const ANY: u32 = u32::MAX;

/// `IOCTL_VM_SOCKETS_GET_LOCAL_CID`.
const GET_LOCAL_CID: Opcode = opcode::none(7, 0xb9);

/// Does what `words` say.
pub fn run(words: &[&str]) -> io::Result<()> {
    match *words {
        ["call", count, len, port] => call(number(count)?, number(len)?, number(port)?),
        ["serve", count, len, port] => serve(number(count)?, number(len)?, number(port)?),
        ["both", count, len, port] => {
            let (count, len, port) = (number(count)?, number(len)?, number(port)?);
            let server = thread::spawn(move || serve(count, len, port));
            call(count, len, port)?;
            server.join().unwrap_or_else(|_| Err(panicked()))
        }
        ["ask", len, port] => {
            let stream = to_host(number(port)?)?;
            talk::send(&stream, 1, number(len)?)?;
            println!("asked");
            println!("answer: {}", talk::receive(&stream)?);
            Ok(())
        }
        ["answer", len, port] => {
            let stream = to_host(number(port)?)?;
            println!("question: {}", talk::receive(&stream)?);
            talk::send(&stream, 1, number(len)?)?;
            println!("answered");
            Ok(())
        }
        ["stuff", len, port] => {
            talk::send(to_host(number(port)?)?, 1, number(len)?)?;
            println!("stuffed");
            Ok(())
        }
        ["pour", port] => pour(number(port)?),
        ["refused", port] => match to_host(number(port)?) {
            Ok(_) => Err(io::Error::other("it was not refused")),
            Err(error) => {
                println!("refused: {error}");
                Ok(())
            }
        },
        ["cid"] => cid(),
        _ => Err(io::Error::other("there is no such probe")),
    }
}

fn number<T: std::str::FromStr>(word: &str) -> io::Result<T> {
    let error = || io::Error::other(format!("'{word}' is no number for this"));
    word.parse().map_err(|_| error())
}

fn panicked() -> io::Error {
    io::Error::other("a thread panicked")
}

/// Connects `count` times to the host and exchanges `len` bytes on each connection, all at once.
fn call(count: u64, len: u64, port: u32) -> io::Result<()> {
    let talks =
        (0..count).map(|seed| thread::spawn(move || talk::exchange(to_host(port)?, seed, len)));
    finish("called", talks.collect())
}

/// Accepts `count` connections of the host's and exchanges `len` bytes on each.
fn serve(count: u64, len: u64, port: u32) -> io::Result<()> {
    let socket = socket(AddressFamily::VSOCK, SocketType::STREAM, None)?;
    bind(&socket, &Address { cid: ANY, port })?;
    listen(&socket, 128)?;
    println!("serving");
    let mut talks = Vec::new();
    for seed in 0..count {
        let stream = accept(&socket)?;
        talks.push(thread::spawn(move || talk::exchange(stream, seed, len)));
    }
    finish("served", talks)
}

/// Waits for all talks, which must go well, and says how many bytes came in all.
fn finish(what: &str, talks: Vec<thread::JoinHandle<io::Result<u64>>>) -> io::Result<()> {
    let count = talks.len();
    let mut bytes = 0;
    for talk in talks {
        bytes += talk.join().unwrap_or_else(|_| Err(panicked()))?;
    }
    println!("{what}: {count} connections, {bytes} bytes");
    Ok(())
}

fn pour(port: u32) -> io::Result<()> {
    let mut stream = File::from(to_host(port)?);
    println!("pouring");
    let mut state = 1;
    let mut bytes = [0; 4096];
    loop {
        talk::noise(&mut state, &mut bytes);
        stream.write_all(&bytes)?;
    }
}

/// Says the address that the guest has by its device.
fn cid() -> io::Result<()> {
    let device = File::open("/dev/vsock")?;
    // SAFETY: the driver writes one `unsigned int`, `include/uapi/linux/vm_sockets.h`.
    let cid: u32 = unsafe { ioctl(&device, Getter::<GET_LOCAL_CID, u32>::new()) }?;
    println!("cid: {cid}");
    Ok(())
}

fn to_host(port: u32) -> io::Result<OwnedFd> {
    let socket = socket(AddressFamily::VSOCK, SocketType::STREAM, None)?;
    connect(&socket, &Address { cid: HOST, port })?;
    Ok(socket)
}

/// An address of vsock.
struct Address {
    cid: u32,
    port: u32,
}

/// `struct sockaddr_vm`, `include/uapi/linux/vm_sockets.h`.
#[repr(C)]
struct SockaddrVm {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    flags_and_zero: [u8; 4],
}

// SAFETY: the pointer is to a whole `sockaddr_vm`, which lives until `f` returns, and the length is its own.
unsafe impl SocketAddrArg for Address {
    unsafe fn with_sockaddr<R>(
        &self,
        f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R,
    ) -> R {
        let address = SockaddrVm {
            family: AddressFamily::VSOCK.as_raw(),
            reserved: 0,
            port: self.port,
            cid: self.cid,
            flags_and_zero: [0; 4],
        };
        f((&raw const address).cast(), 16)
    }
}

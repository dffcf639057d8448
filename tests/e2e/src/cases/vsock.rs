//! Sockets between real guests and host programs: many at once, ends of all kinds, and nothing left behind.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use probe::talk;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use super::tests;
use crate::context::{Context, Kernel};
use crate::vm::{Mvm, Vm};

tests! { "vsock":
    LONG stock_both_ways,
    LONG both_ways,
    LONG a_host_that_stops_reading,
    SHORT half_closed_by_the_guest,
    SHORT half_closed_by_the_host,
    SHORT nobody_there,
    SHORT guest_process_killed,
    SHORT guest_powered_off,
    SHORT guest_panicked,
    SHORT guest_ended_from_outside,
}

/// The port of both sides in these tests.
const PORT: u32 = 1024;

/// The host's side of a VM's vsock.
struct Sockets {
    path: PathBuf,
    deadline: Instant,
}

impl Sockets {
    fn new(context: &Context) -> Self {
        Self {
            path: context.path("v"),
            deadline: context.deadline,
        }
    }

    /// A guest that runs one of its scripts, with a vsock.
    fn boot<'a>(&self, context: &'a Context, kernel: Kernel, script: &str) -> Result<Mvm<'a>> {
        let vsock = format!("cid=42,uds={}", self.path.display());
        let rootfs = context.rootfs()?;
        let mvm = context.script(kernel, &rootfs, script)?;
        Ok(mvm.append("quiet").arg("--vsock").arg(vsock))
    }

    /// A host program that the guest reaches at `port`.
    fn listen(&self, port: u32) -> Result<Listener> {
        let path = format!("{}_{port}", self.path.display());
        let socket = UnixListener::bind(&path).with_context(|| path.clone())?;
        let deadline = self.deadline;
        Ok(Listener { socket, deadline })
    }

    /// Connects to the guest's `port`, where somebody listens.
    fn dial(&self, port: u32) -> Result<UnixStream> {
        self.try_dial(port)?.context("the guest refused")
    }

    /// Connects to the guest's `port`; none if nobody listens there.
    fn try_dial(&self, port: u32) -> Result<Option<UnixStream>> {
        let mut stream = UnixStream::connect(&self.path)?;
        limit(&stream, self.deadline)?;
        stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
        let mut line = Vec::new();
        while !line.ends_with(b"\n") {
            let mut byte = [0];
            match stream.read(&mut byte) {
                Ok(0) if line.is_empty() => return Ok(None),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
                count => ensure!(count? == 1, "the connection ended within its first line"),
            }
            line.extend(byte);
        }
        let line = String::from_utf8_lossy(&line);
        let port = line
            .strip_prefix("OK ")
            .and_then(|port| port.trim().parse::<u32>().ok());
        port.with_context(|| format!("'{line}' is not 'OK PORT'"))?;
        Ok(Some(stream))
    }
}

/// A host program that listens.
struct Listener {
    socket: UnixListener,
    deadline: Instant,
}

impl Listener {
    fn accept(&self) -> Result<UnixStream> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let mut polled = [PollFd::new(&self.socket, PollFlags::IN)];
        let ready = poll(&mut polled, Some(&Timespec::try_from(left)?))?;
        ensure!(ready > 0, "the guest did not connect in time");
        let (stream, _) = self.socket.accept()?;
        limit(&stream, self.deadline)?;
        Ok(stream)
    }
}

/// Nobody waits for a stream beyond the test's limit.
fn limit(stream: &UnixStream, deadline: Instant) -> Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    let left = Some(left.max(Duration::from_millis(1)));
    stream.set_read_timeout(left)?;
    Ok(stream.set_write_timeout(left)?)
}

type Talk = JoinHandle<io::Result<u64>>;

/// Sends so many bytes and receives, in a thread.
fn exchange(stream: UnixStream, seed: u64, len: u64) -> Talk {
    thread::spawn(move || talk::exchange(OwnedFd::from(stream), seed, len))
}

/// Waits for all of them; how many bytes came in all.
fn finish(talks: Vec<Talk>) -> Result<u64> {
    let mut bytes = 0;
    for talk in talks {
        let talk = talk
            .join()
            .map_err(|_| anyhow::anyhow!("a thread panicked"))?;
        bytes += talk?;
    }
    Ok(bytes)
}

/// Talks on `count` connections of each kind, at the same time, with a guest that does `probe vsock both`: each side
/// sends `len` bytes on each.
fn talk_both_ways(
    sockets: &Sockets,
    vm: &Vm,
    listener: &Listener,
    (count, len): (u64, u64),
) -> Result<()> {
    vm.wait_for("serving")?;
    // All of them stand before the first can end.
    let mut streams = Vec::new();
    for _ in 0..count {
        streams.extend([sockets.dial(PORT)?, listener.accept()?]);
    }
    let talks = (1000..).zip(streams);
    let talks = talks
        .map(|(seed, stream)| exchange(stream, seed, len))
        .collect();
    let bytes = finish(talks)?;
    ensure!(bytes == 2 * count * len, "only {bytes} bytes came");
    for what in ["called", "served"] {
        vm.wait_for(&format!(
            "{what}: {count} connections, {} bytes",
            count * len
        ))?;
    }
    Ok(())
}

fn many(context: &Context, kernel: Kernel, len: u64) -> Result<()> {
    let sockets = Sockets::new(context);
    let listener = sockets.listen(PORT)?;
    let script = format!("probe,vsock,both,64,{len},{PORT}");
    let mut vm = sockets
        .boot(context, kernel, &script)?
        .args("--cpus 2")
        .spawn()?;
    talk_both_ways(&sockets, &vm, &listener, (64, len))?;
    vm.exits_with(0)?.says("test probe: exit 0")?;
    ensure!(!sockets.path.exists(), "the socket is still there");
    Ok(())
}

fn stock_both_ways(context: &Context) -> Result<()> {
    many(context, Kernel::StockBzimage, 16 << 10)
}

fn both_ways(context: &Context) -> Result<()> {
    many(context, Kernel::TinyElf, 64 << 10)
}

/// One host peer reads nothing of what a guest wants to send it. That costs mvm no more than a window of 256 KiB,
/// holds up nobody else, and when the peer reads after all, everything is there.
fn a_host_that_stops_reading(context: &Context) -> Result<()> {
    const MUCH: u64 = 8 << 20;
    let sockets = Sockets::new(context);
    let (stuck, others) = (sockets.listen(1)?, sockets.listen(PORT)?);
    let script = format!("vsock-stuck,{MUCH},1,8,4096,{PORT}");
    let mut vm = sockets.boot(context, Kernel::TinyElf, &script)?.spawn()?;
    let peer = stuck.accept()?;
    let before = memory_beside_the_guest(&vm)?;
    // Until the socket is full; the guest sends on into the device.
    while rustix::io::ioctl_fionread(&peer)? < 64 << 10 {
        ensure!(
            Instant::now() < context.deadline,
            "the guest sends too little"
        );
        thread::sleep(Duration::from_millis(10));
    }
    talk_both_ways(&sockets, &vm, &others, (8, 4096))?;
    let after = memory_beside_the_guest(&vm)?;
    ensure!(
        after < before + (4 << 20),
        "mvm has grown from {before} to {after} bytes"
    );
    ensure!(
        !vm.stdout().contains("stuffed"),
        "8 MiB are gone that nobody has read"
    );
    limit(&peer, context.deadline)?;
    let len = talk::receive(&peer)?;
    ensure!(len == MUCH, "{len} bytes came");
    vm.exits_with(0)?.says("stuffed")?;
    Ok(())
}

/// Resident bytes of mvm, without the one large mapping that is guest memory.
fn memory_beside_the_guest(vm: &Vm) -> Result<u64> {
    let maps = fs::read_to_string(format!("/proc/{}/smaps", vm.id()))?;
    let field = |line: &str, name: &str| {
        let value = line.strip_prefix(name)?.trim().strip_suffix(" kB")?;
        value.parse::<u64>().ok()
    };
    let mut sum = 0;
    let mut size = 0;
    for line in maps.lines() {
        if let Some(kib) = field(line, "Size:") {
            size = kib;
        }
        if let Some(kib) = field(line, "Rss:").filter(|_| size < 100 << 10) {
            sum += kib << 10;
        }
    }
    Ok(sum)
}

fn half_closed_by_the_guest(context: &Context) -> Result<()> {
    let sockets = Sockets::new(context);
    let listener = sockets.listen(PORT)?;
    let script = format!("probe,vsock,ask,300000,{PORT}");
    let mut vm = sockets.boot(context, Kernel::TinyElf, &script)?.spawn()?;
    let peer = listener.accept()?;
    // To the end of what the guest sends, which is not the end of the connection.
    ensure!(
        talk::receive(&peer)? == 300_000,
        "the question is not whole"
    );
    vm.wait_for("asked")?;
    talk::send(&peer, 7, 200_000)?;
    vm.exits_with(0)?.says("answer: 200000")?;
    Ok(())
}

fn half_closed_by_the_host(context: &Context) -> Result<()> {
    let sockets = Sockets::new(context);
    let listener = sockets.listen(PORT)?;
    let script = format!("probe,vsock,answer,300000,{PORT}");
    let mut vm = sockets.boot(context, Kernel::TinyElf, &script)?.spawn()?;
    let peer = listener.accept()?;
    talk::send(&peer, 7, 200_000)?;
    vm.wait_for("question: 200000")?;
    ensure!(talk::receive(&peer)? == 300_000, "the answer is not whole");
    vm.exits_with(0)?.says("answered")?;
    Ok(())
}

fn nobody_there(context: &Context) -> Result<()> {
    let sockets = Sockets::new(context);
    let script = format!("probe,vsock,refused,{PORT}");
    let outcome = sockets
        .boot(context, Kernel::TinyElf, &script)?
        .exits_with(0)?;
    outcome.says("refused: Connection reset by peer")?;

    // The other way round, and the guest's address.
    let mut vm = sockets.boot(context, Kernel::TinyElf, "wait")?.spawn()?;
    vm.wait_for("waiting")?;
    ensure!(sockets.try_dial(PORT)?.is_none(), "somebody listens");
    vm.signal(Signal::TERM)?;
    vm.exits_with(0)?;
    let outcome = sockets
        .boot(context, Kernel::TinyElf, "probe,vsock,cid")?
        .exits_with(0)?;
    ensure!(outcome.value("cid")? == "42", "it has another address");
    Ok(())
}

/// A guest that pours into one connection and holds another, which came from the host.
struct Pouring {
    sockets: Sockets,
    vm: Vm,
    poured: UnixStream,
    held: UnixStream,
}

impl Pouring {
    fn start(context: &Context) -> Result<Self> {
        let sockets = Sockets::new(context);
        let listener = sockets.listen(PORT)?;
        let script = format!("vsock-end,{PORT}");
        let vm = sockets.boot(context, Kernel::TinyElf, &script)?.spawn()?;
        let mut poured = listener.accept()?;
        vm.wait_for("serving")?;
        let held = sockets.dial(PORT)?;
        poured.read_exact(&mut [0; 100_000])?;
        Ok(Self {
            sockets,
            vm,
            poured,
            held,
        })
    }

    /// Fails unless both host peers find their streams at an end, and the socket is gone.
    fn ends(mut self) -> Result<()> {
        reaches_its_end(&mut self.poured)?;
        reaches_its_end(&mut self.held)?;
        ensure!(!self.sockets.path.exists(), "the socket is still there");
        Ok(())
    }
}

fn reaches_its_end(stream: &mut UnixStream) -> Result<()> {
    let mut bytes = vec![0; 64 << 10];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => bail!("a stream does not end: {error}"),
        }
    }
}

fn guest_process_killed(context: &Context) -> Result<()> {
    let mut guest = Pouring::start(context)?;
    guest.vm.type_in("kill\n")?;
    reaches_its_end(&mut guest.poured)?;
    ensure!(
        guest.vm.is_running()?,
        "the VM ended with one of its processes"
    );
    // The other connection is none the worse: its end of the talk comes when it is told to.
    guest.held.write_all(&[1; 1000])?;
    guest.vm.type_in("end\n")?;
    guest.vm.exits_with(0)?;
    guest.ends()
}

fn guest_powered_off(context: &Context) -> Result<()> {
    let mut guest = Pouring::start(context)?;
    guest.vm.type_in("poweroff\n")?;
    guest.vm.exits_with(0)?;
    guest.ends()
}

fn guest_panicked(context: &Context) -> Result<()> {
    let mut guest = Pouring::start(context)?;
    guest.vm.type_in("panic\n")?;
    guest.vm.exits_with(123)?;
    guest.ends()
}

fn guest_ended_from_outside(context: &Context) -> Result<()> {
    let mut guest = Pouring::start(context)?;
    guest.vm.signal(Signal::HUP)?;
    guest.vm.exits_with(129)?;
    guest.ends()
}

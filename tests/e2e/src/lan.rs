//! A network of a test's own: a network namespace in which the test, its guests and its taps are alone.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::gettid;

use crate::context::Skip;

/// The host's addresses; the guest has those after them.
pub const HOST: &str = "10.0.0.1";
/// The same of IPv6.
pub const HOST6: &str = "fd00::1";

/// Runs `test` on a thread that has a network namespace of its own, as have the processes it starts.
pub fn alone<T: Send>(test: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let body = || {
        // SAFETY: the call concerns this thread alone, which has nothing open yet.
        if unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) } != 0 {
            let error = io::Error::last_os_error();
            return Err(Skip(format!(
                "no network namespace for the test: {error}; be root"
            ))
            .into());
        }
        // What sysfs says of networks is said of the namespace it was mounted in.
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).context("mounts of the test's own")?;
        mount("sysfs", "/sys", "sysfs", MountFlags::empty(), None).context("sysfs")?;
        ip("link set lo up")?;
        test()
    };
    thread::scope(|scope| scope.spawn(body).join())
        .unwrap_or_else(|_| Err(anyhow!("the test itself panicked")))
}

/// Runs `test` beside an outside world, a network namespace that is reached through the interface `up0` and
/// has the address 203.0.113.2; `there` is done in it, and so are the sockets made that `there` makes.
pub fn with_outside<T: Send, O: Send>(
    there: impl FnOnce() -> Result<O> + Send,
    test: impl FnOnce(O) -> Result<T>,
) -> Result<T> {
    ip("link add up0 type veth peer name out0")?;
    ip("address add 203.0.113.1/24 dev up0")?;
    ip("link set up0 up")?;
    let (ready, is_ready) = channel();
    let (moved, is_moved) = channel();
    let (made, is_made) = channel();
    let (done, is_done) = channel::<()>();
    let outside = move || -> Result<()> {
        // SAFETY: the call concerns this thread alone, which has no sockets yet.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(io::Error::last_os_error()).context("a namespace outside");
        }
        ready.send(gettid())?;
        is_moved.recv()?;
        ip("address add 203.0.113.2/24 dev out0")?;
        ip("link set out0 up")?;
        made.send(there()?).map_err(|_| anyhow!("nobody waits"))?;
        // The namespace lasts as long as this thread, or a socket of it.
        let _ = is_done.recv();
        Ok(())
    };
    thread::scope(|scope| {
        let outside = scope.spawn(outside);
        let tested = (|| {
            let thread = is_ready.recv()?;
            ip(&format!("link set out0 netns {thread}"))?;
            moved.send(())?;
            test(is_made.recv()?)
        })();
        drop(done);
        let ended = outside.join();
        let ended = ended.unwrap_or_else(|_| Err(anyhow!("the outside world panicked")));
        // What went wrong there is why the test could not go on here.
        ended.and(tested)
    })
}

/// Runs `ip` with `words`.
pub fn ip(words: &str) -> Result<()> {
    let output = Command::new("ip")
        .args(words.split_whitespace())
        .output()
        .context("ip")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {words}: {}", said.trim());
    Ok(())
}

/// The host's two addresses on `tap`, and the tap up.
pub fn give_addresses(tap: &str) -> Result<()> {
    std::fs::write(format!("/proc/sys/net/ipv6/conf/{tap}/accept_dad"), "0")?;
    ip(&format!("addr add {HOST}/24 dev {tap}"))?;
    ip(&format!("addr add {HOST6}/64 dev {tap}"))?;
    ip(&format!("link set {tap} up"))
}

/// A tap as `ip tuntap add dev NAME mode tap` makes it; it goes with its last descriptor, unless it is made
/// to stay.
#[derive(Debug)]
pub struct Tap(pub File);

/// IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE.
const TAP: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

impl Tap {
    /// Opens a queue of the tap `name`, which is made if it is missing.
    pub fn open(name: &str, multi_queue: bool) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
            .context("/dev/net/tun")?;
        let flags = match multi_queue {
            true => TAP | libc::IFF_MULTI_QUEUE,
            false => TAP,
        };
        let mut request = [0_u8; 40];
        request[..name.len()].copy_from_slice(name.as_bytes());
        request[16..18].copy_from_slice(&flags.to_ne_bytes()[..2]);
        let tap = Self(file);
        tap.ioctl(libc::TUNSETIFF, request.as_mut_ptr().cast())?;
        Ok(tap)
    }

    /// Lets it stay, and user `owner` open it.
    pub fn stay(&self, owner: u32) -> Result<()> {
        let number = |value: u32| std::ptr::without_provenance_mut(value as usize);
        self.ioctl(libc::TUNSETOWNER, number(owner))?;
        self.ioctl(libc::TUNSETPERSIST, number(1))
    }

    fn ioctl(&self, code: libc::Ioctl, argument: *mut libc::c_void) -> Result<()> {
        // SAFETY: the first of the callers gives a whole `ifreq` of 40 bytes, which outlives the call; the
        // others a number.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), code, argument) };
        match result {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()).with_context(|| format!("tap: ioctl {code:#x}")),
        }
    }
}

/// Streams to a guest and back, through two ports: what comes back must be what went.
pub struct Echo {
    listeners: [TcpListener; 2],
    stream: Vec<u8>,
    deadline: Instant,
}

impl Echo {
    /// Listens at `port` and the next one for a guest that takes `len` bytes.
    pub fn listen(host: &str, port: u16, len: usize, deadline: Instant) -> Result<Self> {
        let address = |port| -> Result<SocketAddr> { Ok(SocketAddr::new(host.parse()?, port)) };
        let listener = |port| -> Result<TcpListener> {
            let listener = TcpListener::bind(address(port)?)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        // Noise: 64-bit steps of a linear congruence, of which the upper half is good.
        let mut state = u64::from(port);
        let mut noise = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 32).to_le_bytes()
        };
        let stream = (0..len / 4)
            .flat_map(|_| noise().into_iter().take(4))
            .collect();
        Ok(Self {
            listeners: [listener(port)?, listener(port + 1)?],
            stream,
            deadline,
        })
    }

    /// The stream's digest, as `sha256sum` says it.
    pub fn digest(&self) -> String {
        use sha2::{Digest, Sha256};
        let digest = Sha256::digest(&self.stream);
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Serves one guest; returns how long the two ways took.
    pub fn serve(&self) -> Result<[Duration; 2]> {
        let mut out = self.accept(&self.listeners[0])?;
        let start = Instant::now();
        out.write_all(&self.stream).context("sending")?;
        drop(out);
        let mut back = self.accept(&self.listeners[1])?;
        let there = start.elapsed();
        let start = Instant::now();
        let mut received = Vec::with_capacity(self.stream.len());
        back.read_to_end(&mut received).context("receiving")?;
        ensure!(
            received == self.stream,
            "{} bytes went and {} came back, not the same",
            self.stream.len(),
            received.len()
        );
        Ok([there, start.elapsed()])
    }

    fn accept(&self, listener: &TcpListener) -> Result<TcpStream> {
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    let left = self.deadline.saturating_duration_since(Instant::now());
                    let left = Some(left.max(Duration::from_secs(1)));
                    stream.set_read_timeout(left)?;
                    stream.set_write_timeout(left)?;
                    return Ok(stream);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if Instant::now() > self.deadline {
                        bail!("no guest called");
                    }
                    thread::sleep(Duration::from_millis(20));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

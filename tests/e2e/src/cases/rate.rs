//! Limits hold: what passes in ten seconds and more, within five per cent, as set at the start and as changed
//! while the guest runs.
//!
//! The guest moves data as fast as it can and looks at what has passed and at its own monotonic clock, `/proc/uptime`,
//! twice: once when what its devices had saved up is spent, and once when the time is up. In the lab that clock and the one that mvm goes by are both the lab's. The limits
//! are far below what the slowest lab moves, and a burst of a second makes up for a guest that is held up meanwhile.

use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::tests;
use crate::context::{Context, Kernel};
use crate::lan;
use crate::vm::{Mvm, Vm, until};

tests! { "rate":
    LONG disk,
    LONG stock_disk,
    LONG rng,
    LONG net_send,
    LONG net_receive,
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The shortest run that counts.
const SHORTEST: f64 = 10.0;
/// How far from its limit a run may be.
const TOLERANCE: f64 = 0.05;

/// A guest that runs the `rate` script.
struct Guest<'a> {
    context: &'a Context,
    vm: Vm,
    socket: PathBuf,
    runs: u32,
}

/// What passed in a run of the guest's.
#[derive(Debug)]
struct Passed {
    bytes: f64,
    operations: f64,
    seconds: f64,
}

impl<'a> Guest<'a> {
    fn boot(
        context: &'a Context,
        kernel: Kernel,
        options: impl FnOnce(Mvm<'a>) -> Mvm<'a>,
    ) -> Result<Self> {
        let rootfs = context.rootfs()?;
        let socket = context.path("api");
        let mvm = context
            .script(kernel, &rootfs, "rate")?
            .arg("--api")
            .arg(&socket);
        let vm = options(mvm).append("quiet").spawn()?;
        Ok(Self {
            context,
            vm,
            socket,
            runs: 0,
        })
    }

    /// Has the guest begin a run; returns its number.
    fn begin(&mut self, what: &str) -> Result<u32> {
        self.runs += 1;
        self.vm.type_in(&format!("{} {what}\n", self.runs))?;
        Ok(self.runs)
    }

    /// What a run came to.
    fn run(&mut self, what: &str) -> Result<Passed> {
        let run = self.begin(what)?;
        let line = self.vm.wait_for_line(&format!("run {run}: "))?;
        let mut numbers = line
            .split_whitespace()
            .map_while(|word| word.parse::<f64>().ok());
        let mut next = || {
            numbers
                .next()
                .with_context(|| format!("'{what}' came to '{line}'"))
        };
        Ok(Passed {
            bytes: next()?,
            operations: next()?,
            seconds: next()? / 100.0,
        })
    }

    /// `mvm ctl`, and what it says.
    fn ctl(&self, words: &str) -> Result<String> {
        let mvm = self.context.mvm().arg("ctl").arg(&self.socket);
        let said = mvm.args(words).exits_with(0)?.stdout;
        Ok(said.trim().to_owned())
    }

    /// Limits a device anew.
    fn limit(&self, device: &str, limit: &str) -> Result<()> {
        self.ctl(&format!("limit {device} {limit}"))?;
        let shown = self.ctl(&format!("limit {device}"))?;
        ensure!(
            shown == limit,
            "{device} is limited to '{shown}', not '{limit}'"
        );
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        self.begin("end")?;
        self.vm.exits_with(0)?;
        Ok(())
    }
}

impl Passed {
    fn bytes_at(&self, rate: u64) -> Result<()> {
        self.check("bytes", self.bytes, rate)
    }

    fn operations_at(&self, rate: u64) -> Result<()> {
        self.check("operations", self.operations, rate)
    }

    #[allow(clippy::cast_precision_loss)]
    fn check(&self, what: &str, passed: f64, rate: u64) -> Result<()> {
        let (seconds, wanted) = (self.seconds, rate as f64);
        ensure!(seconds >= SHORTEST, "{passed} {what} took only {seconds} s");
        let measured = passed / seconds;
        let off = measured / wanted - 1.0;
        println!(
            "    {measured:.1} {what} a second in {seconds:.2} s at a limit of {rate}: {:+.2} %",
            off * 100.0
        );
        ensure!(
            off.abs() <= TOLERANCE,
            "{passed} {what} in {seconds} s are {measured:.1} a second, not {rate}"
        );
        Ok(())
    }
}

fn disk_with(context: &Context, kernel: Kernel) -> Result<()> {
    let image = context.image("disk.img", 32 * MIB)?;
    let mut guest = Guest::boot(context, kernel, |mvm| {
        mvm.disk(&image, ",bps=512K,burst=512K")
    })?;
    guest.vm.wait_for("ready")?;
    guest.run("read vdb 16384 11")?.bytes_at(512 * KIB)?;
    guest.run("write vdb 65536 11")?.bytes_at(512 * KIB)?;
    guest.limit("disk1", "iops=40,burst=40")?;
    guest.run("read vdb 4096 11")?.operations_at(40)?;
    guest.limit("disk1", "bps=1M,burst=1M")?;
    guest.run("read vdb 65536 11")?.bytes_at(MIB)?;
    // The other disk has no part in it.
    ensure!(guest.ctl("limit disk0")? == "none");
    guest.limit("disk1", "none")?;
    let run = guest.begin("whole vdb")?;
    let whole = guest.vm.wait_for_line(&format!("run {run}: "))?;
    ensure!(
        whole.contains("33554432"),
        "a disk of 32 MiB read as {whole}"
    );
    guest.end()
}

fn disk(context: &Context) -> Result<()> {
    disk_with(context, Kernel::TinyElf)
}

fn stock_disk(context: &Context) -> Result<()> {
    disk_with(context, Kernel::StockBzimage)
}

fn rng(context: &Context) -> Result<()> {
    let mut guest = Guest::boot(context, Kernel::TinyElf, |mvm| {
        mvm.args("--rng bps=2K,burst=2K")
    })?;
    guest.vm.wait_for("ready")?;
    guest.run("draw 256 11")?.bytes_at(2 * KIB)?;
    guest.limit("rng", "bps=3K,burst=3K")?;
    guest.run("draw 256 11")?.bytes_at(3 * KIB)?;
    guest.end()
}

/// A connection that moves all it can through a limited card in one direction.
fn net(context: &Context, way: &str) -> Result<()> {
    lan::alone(|| {
        let listener = TcpListener::bind("0.0.0.0:0")?;
        let port = listener.local_addr()?.port();
        let sends = way == "send";
        // As long as the guest's connection lasts.
        thread::spawn(move || -> io::Result<()> {
            let (mut stream, _) = listener.accept()?;
            let mut buffer = [0; 1 << 16];
            while match sends {
                true => stream.read(&mut buffer)? > 0,
                false => stream.write(&buffer)? > 0,
            } {}
            Ok(())
        });
        let mut guest = Guest::boot(context, Kernel::TinyElf, |mvm| {
            mvm.args("--net tap=t0,bps=512K,burst=512K")
        })?;
        // The tap is there before the guest runs.
        until(context.deadline, "tap", || {
            Ok(lan::ip("link show t0").is_ok())
        })?;
        lan::give_addresses("t0")?;
        guest.vm.wait_for("ready")?;
        guest.begin(&format!("flood {way} {port}"))?;
        // Whatever the card had saved up is gone by then, and the connection up to its speed.
        thread::sleep(Duration::from_secs(5));
        guest.run(&format!("watch {way} 15"))?.bytes_at(512 * KIB)?;
        guest.limit("net0", "iops=40,burst=40")?;
        thread::sleep(Duration::from_secs(3));
        guest.run(&format!("watch {way} 15"))?.operations_at(40)?;
        guest.limit("net0", "bps=1M,burst=1M")?;
        thread::sleep(Duration::from_secs(3));
        guest.run(&format!("watch {way} 15"))?.bytes_at(MIB)?;
        guest.end()
    })
}

fn net_send(context: &Context) -> Result<()> {
    net(context, "send")
}

fn net_receive(context: &Context) -> Result<()> {
    net(context, "receive")
}

//! What can be done to a VM while it runs: it is paused and goes on, its disks are changed under it, and the host
//! fails one of them.
//!
//! The guest does what it is told, a line of shell at a time: the `obey` script.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use probe::talk;
use rustix::process::Signal;

use super::tests;
use crate::context::{Context, Kernel, Skip};
use crate::host::{Loop, host};
use crate::vm::{Mvm, Vm, until};

tests! { "live":
    LONG disks_and_pause,
    LONG no_space,
    LONG broken,
}

const MIB: u64 = 1 << 20;

/// A guest that obeys.
struct Guest<'a> {
    context: &'a Context,
    vm: Vm,
    socket: PathBuf,
    runs: u32,
}

impl<'a> Guest<'a> {
    fn boot(context: &'a Context, options: impl FnOnce(Mvm<'a>) -> Mvm<'a>) -> Result<Self> {
        let rootfs = context.rootfs()?;
        let socket = context.path("api");
        let mvm = context
            .script(Kernel::TinyElf, &rootfs, "obey")?
            .arg("--api")
            .arg(&socket);
        let vm = options(mvm).append("quiet").spawn()?;
        vm.wait_for("ready")?;
        Ok(Self {
            context,
            vm,
            socket,
            runs: 0,
        })
    }

    /// Has the guest begin something; returns its number.
    fn begin(&mut self, command: &str) -> Result<u32> {
        self.runs += 1;
        self.vm.type_in(&format!("{} {command}\n", self.runs))?;
        Ok(self.runs)
    }

    /// What the guest said to it, and its status.
    fn end_of(&self, run: u32) -> Result<(String, String)> {
        let line = self.vm.wait_for_line(&format!("run {run}: "))?;
        let (said, status) = line.rsplit_once("= ").context("no status")?;
        Ok((said.trim().to_owned(), status.to_owned()))
    }

    /// What the guest says to a command that must succeed there.
    fn run(&mut self, command: &str) -> Result<String> {
        let run = self.begin(command)?;
        let (said, status) = self.end_of(run)?;
        ensure!(status == "0", "'{command}' failed: {said}");
        Ok(said)
    }

    /// `mvm ctl`, and what it says.
    fn ctl(&self, words: &str) -> Result<String> {
        let mvm = self.context.mvm().arg("ctl").arg(&self.socket);
        let said = mvm.args(words).exits_with(0)?.stdout;
        Ok(said.trim().to_owned())
    }

    /// The guest's monotonic clock, in seconds.
    fn uptime(&mut self) -> Result<f64> {
        let said = self.run("cut -d ' ' -f 1 /proc/uptime")?;
        said.parse().with_context(|| format!("a clock says {said}"))
    }

    /// Waits until a disk has so many bytes in the guest's eyes.
    fn wait_for_size(&mut self, disk: &str, bytes: u64) -> Result<()> {
        let sectors = (bytes / 512).to_string();
        until(self.context.deadline, "new size", || {
            Ok(self.run(&format!("cat /sys/block/{disk}/size"))? == sectors)
        })
    }
}

/// One guest for all of it: of two CPUs, its second disk of two queues.
fn disks_and_pause(context: &Context) -> Result<()> {
    let disk = context.image("disk.img", 4 * MIB)?;
    let mut guest = Guest::boot(context, |mvm| {
        mvm.args("--cpus 2 --io-threads 2")
            .disk(&disk, ",queues=2")
            .append("clocksource=kvm-clock")
    })?;
    queues(&mut guest)?;
    resized(&mut guest)?;
    swapped(&mut guest)?;
    held(&mut guest)?;
    paused(&mut guest)?;
    // A signal finds the guest when it goes on.
    guest.ctl("pause")?;
    guest.vm.signal(Signal::TERM)?;
    guest.vm.wait_for("which it sees when it is resumed")?;
    guest.ctl("resume")?;
    guest.vm.exits_with(0)?;
    Ok(())
}

/// Each CPU has a queue, and what they write at the same time is there.
fn queues(guest: &mut Guest<'_>) -> Result<()> {
    ensure!(guest.run("ls /sys/block/vdb/mq")? == "0 1");
    ensure!(guest.run("cat /sys/block/vdb/mq/*/cpu_list")? == "0 1");
    let said = guest.run(
        "cd /tmp; for c in 0 1; do head -c 1048576 /dev/urandom >r$c; done; \
         for c in 0 1; do taskset $((c + 1)) \
         dd if=r$c of=/dev/vdb bs=16k seek=$((64 * c)) oflag=direct conv=fsync,notrunc 2>/dev/null & done; wait; \
         for c in 0 1; do taskset $((2 - c)) \
         dd if=/dev/vdb bs=16k skip=$((64 * c)) count=64 iflag=direct 2>/dev/null | cmp - r$c; done",
    )?;
    ensure!(said.is_empty(), "{said}");
    let all = guest.ctl("disk disk1 statistics")?;
    let write = all.lines().find_map(|line| line.strip_prefix("write: "));
    let write = write.with_context(|| all.clone())?;
    ensure!(write.contains(", bytes 2097152, errors 0; "), "{all}");
    ensure!(all.contains("flush: "), "{all}");
    Ok(())
}

fn resized(guest: &mut Guest<'_>) -> Result<()> {
    guest.ctl("disk disk1 resize 8M")?;
    guest.wait_for_size("vdb", 8 * MIB)?;
    guest.run("dd if=/tmp/r0 of=/dev/vdb bs=64k seek=112 oflag=direct 2>/dev/null")?;
    guest.ctl("disk disk1 resize 2M")?;
    guest.wait_for_size("vdb", 2 * MIB)?;
    guest.run("dd if=/dev/vdb bs=64k count=16 iflag=direct 2>/dev/null | cmp - /tmp/r0")?;
    ensure!(fs::metadata(guest.context.path("disk.img"))?.len() == 2 * MIB);
    Ok(())
}

fn swapped(guest: &mut Guest<'_>) -> Result<()> {
    let other = guest.context.path("other.img");
    let mut bytes = b"another image".to_vec();
    bytes.resize(3 << 20, 0);
    fs::write(&other, bytes)?;
    guest.ctl(&format!("disk disk1 swap {}", other.display()))?;
    guest.wait_for_size("vdb", 3 * MIB)?;
    let read = "dd if=/dev/vdb bs=512 count=1 iflag=direct 2>/dev/null | head -c 13";
    ensure!(guest.run(read)? == "another image");
    Ok(())
}

/// Requests wait while their disk is paused, and the rest of the guest does not.
fn held(guest: &mut Guest<'_>) -> Result<()> {
    guest.ctl("disk disk1 pause")?;
    guest.run("dd if=/dev/vdb of=/tmp/late bs=512 count=1 iflag=direct >/dev/null 2>&1 &")?;
    thread::sleep(Duration::from_secs(1));
    ensure!(
        guest.run("wc -c </tmp/late")? == "0",
        "a paused disk answered"
    );
    guest.ctl("disk disk1 resume")?;
    until(guest.context.deadline, "late answer", || {
        Ok(guest.run("wc -c </tmp/late")? == "512")
    })
}

/// The guest stands still, its clock with it, and goes on as if nothing had been.
fn paused(guest: &mut Guest<'_>) -> Result<()> {
    const PAUSE: Duration = Duration::from_secs(5);
    let clock = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    ensure!(guest.run(&format!("cat {clock}"))? == "kvm-clock");
    let began = Instant::now();
    let before = guest.uptime()?;
    guest.ctl("pause")?;
    ensure!(guest.ctl("status")?.starts_with("state: Paused\n"));
    let run = guest.begin("echo I can hear you")?;
    thread::sleep(PAUSE);
    ensure!(
        !guest.vm.stdout().contains("hear you"),
        "a paused guest answered"
    );
    guest.ctl("resume")?;
    ensure!(guest.end_of(run)?.0 == "I can hear you");
    let after = guest.uptime()?;
    // Both clocks are the host's, and one of them stood still meanwhile; a tenth is for how it is rounded.
    let most = (began.elapsed() - PAUSE).as_secs_f64() + 0.1;
    ensure!(
        (0.0..=most).contains(&(after - before)),
        "the guest's clock went from {before} to {after}, and {most} s have passed for it"
    );
    let grumbles = guest.run("dmesg | grep -ci 'lockup\\|stall\\|hung' || true")?;
    ensure!(grumbles == "0", "the guest's kernel has noticed");
    Ok(())
}

/// A small file system on the host, unmounted in the end.
struct Small {
    place: PathBuf,
    /// Let go after it has been unmounted.
    _device: Loop,
}

impl Small {
    /// A copy of the guests' root file system, with `free` bytes free.
    fn mount(context: &Context, free: u64) -> Result<Self> {
        let image = context.rootfs()?;
        let small = context.path("small.ext4");
        fs::rename(image, &small)?;
        let place = context.path("small");
        fs::create_dir(&place)?;
        if !rustix::process::geteuid().is_root() {
            return Err(Skip("only root can mount a file system".to_owned()).into());
        }
        // Not by `mount -o loop`: some kernels mount no device that somebody has open for writing, as it has.
        let device = Loop::over(&small)?;
        let mount = ["-t", "ext4", &device.0].map(OsStr::new);
        host("mount", mount.into_iter().chain([place.as_os_str()]))?;
        let small = Self {
            place,
            _device: device,
        };
        // What is left for root is enough.
        let left = rustix::fs::statvfs(&small.place)?;
        let left = left.f_bfree * left.f_frsize;
        ensure!(left > free + 4 * MIB, "only {left} bytes are left");
        let ballast = vec![1; usize::try_from(left - free)?];
        fs::write(small.path("ballast"), ballast)?;
        Ok(small)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.join(name)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = host("umount", [&self.place]);
    }
}

/// Bytes that are not alike.
fn noise(len: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(len)?];
    talk::noise(&mut 0x9e37_79b9_7f4a_7c15, &mut bytes);
    Ok(bytes)
}

fn sparse(path: &Path, bytes: u64) -> Result<()> {
    Ok(fs::File::create(path)?.set_len(bytes)?)
}

/// A full file system is an I/O error in the guest, or stops it until there is room: then nothing is lost.
fn no_space(context: &Context) -> Result<()> {
    let small = Small::mount(context, 2 * MIB)?;
    let (report, stop) = (small.path("report.img"), small.path("stop.img"));
    sparse(&report, 4 * MIB)?;
    sparse(&stop, 4 * MIB)?;
    let data = context.path("data.img");
    fs::write(&data, noise(4 * MIB)?)?;
    let mut guest = Guest::boot(context, |mvm| {
        mvm.disk(&data, ",ro")
            .disk(&report, ",on-error=report")
            .disk(&stop, ",on-error=stop")
    })?;
    let copy = |to: &str| format!("dd if=/dev/vdb of=/dev/{to} bs=64k oflag=direct 2>&1");
    let run = guest.begin(&copy("vdc"))?;
    let (said, status) = guest.end_of(run)?;
    ensure!(
        status != "0" && said.contains("Input/output error"),
        "{said}"
    );
    guest
        .vm
        .wait_for("disk report.img: write failed: No space left on device")?;
    ensure!(guest.ctl("status")?.starts_with("state: Running\n"));
    let all = guest.ctl("disk disk2 statistics")?;
    ensure!(all.contains(", errors 1; "), "{all}");

    // What the first has taken is free again for the second.
    sparse(&report, 4 * MIB)?;
    let stopped = |guest: &Guest<'_>| -> Result<bool> {
        let said = guest.ctl("status")?;
        Ok(said.starts_with("state: Paused\n")
            && said.contains("trouble: disk stop.img: write failed: No space left on device"))
    };
    let run = guest.begin(&copy("vdd"))?;
    until(context.deadline, "stop", || stopped(&guest))?;
    guest
        .vm
        .wait_for("the VM is paused: see to it, and resume the VM")?;
    // In vain, as long as nobody has seen to it.
    guest.ctl("resume")?;
    until(context.deadline, "second stop", || stopped(&guest))?;
    fs::remove_file(small.path("ballast"))?;
    guest.ctl("resume")?;
    let (said, status) = guest.end_of(run)?;
    ensure!(status == "0", "{said}");
    ensure!(guest.ctl("status")?.starts_with("state: Running\n"));
    guest.run("cmp /dev/vdb /dev/vdd")?;
    guest.ctl("disk disk3 flush")?;
    ensure!(
        fs::read(&stop)? == fs::read(&data)?,
        "the host has other data"
    );
    guest.vm.type_in("end\n")?;
    guest.vm.exits_with(0)?;
    Ok(())
}

/// A block device of 4 MiB on the host, 32 KiB of which in its middle cannot be read or written until it is
/// mended. Taken down in the end.
struct Broken {
    name: String,
    /// Let go after what stands on it.
    device: Loop,
}

impl Broken {
    const BAD: u64 = 2 * MIB / 512;

    fn make(context: &Context, name: &str) -> Result<Self> {
        if !Path::new("/dev/mapper/control").exists() {
            return Err(Skip("this kernel has no device mapper".to_owned()).into());
        }
        let image = context.path(name);
        fs::write(&image, noise(4 * MIB)?)?;
        let broken = Self {
            name: format!("mvm-{name}-{}", std::process::id()),
            device: Loop::over(&image)?,
        };
        let (device, bad) = (&broken.device.0, Self::BAD);
        let (after, all) = (bad + 64, 4 * MIB / 512);
        let rest = all - after;
        broken.dmsetup(&format!(
            "printf '0 {bad} linear {device} 0\\n{bad} 64 error\\n{after} {rest} linear {device} {after}\\n' | \
             dmsetup create --noudevsync --noudevrules $0"
        ))?;
        Ok(broken)
    }

    /// Has the device mapper do something to it: a line of shell, to which it is `$0`.
    fn dmsetup(&self, line: &str) -> Result<String> {
        let said = host("sh", ["-c", line, &self.name])?;
        Ok(said.trim().to_owned())
    }

    fn mend(&self) -> Result<()> {
        let (device, all) = (&self.device.0, 4 * MIB / 512);
        self.dmsetup(&format!(
            "echo 0 {all} linear {device} 0 | dmsetup load $0 && \
             dmsetup resume --noudevsync --noudevrules $0"
        ))?;
        Ok(())
    }

    /// Its name among the devices.
    fn node(&self) -> Result<String> {
        self.dmsetup("dmsetup info -c --noheadings -o blkdevname $0")
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        let _ = self.dmsetup("dmsetup remove --noudevsync --noudevrules $0");
    }
}

/// Where the host's own disk is broken, the request that needs it fails and no other, or the VM waits until it
/// is mended; and what a failed flush has lost is not said to be there later.
fn broken(context: &Context) -> Result<()> {
    let (report, stop) = (
        Broken::make(context, "report")?,
        Broken::make(context, "stop")?,
    );
    let (report_node, stop_node) = (report.node()?, stop.node()?);
    let dev = Path::new("/dev");
    let mut guest = Guest::boot(context, |mvm| {
        mvm.disk(&dev.join(&report_node), "")
            .disk(&dev.join(&stop_node), ",cache=none,on-error=stop")
    })?;
    let write = |block: u64| {
        format!(
            "dd if=/dev/urandom of=/dev/vdb bs=32k count=1 seek={block} oflag=direct conv=fsync,notrunc 2>&1"
        )
    };
    let fails = |guest: &mut Guest<'_>, command: &str| -> Result<()> {
        let run = guest.begin(command)?;
        let (said, status) = guest.end_of(run)?;
        ensure!(
            status != "0" && said.contains("Input/output error"),
            "'{command}': {said}"
        );
        Ok(())
    };
    let bad = Broken::BAD / 64;
    let read = |block: u64| {
        format!("dd if=/dev/vdb of=/dev/null bs=32k count=1 skip={block} iflag=direct 2>&1")
    };
    fails(&mut guest, &read(bad))?;
    guest.vm.wait_for(&format!(
        "disk {report_node}: read failed: Input/output error"
    ))?;
    guest.run(&read(bad - 1))?;
    guest.run(&read(bad + 1))?;
    guest.run(&write(bad - 1))?;
    // The page cache takes it; that it is lost is found at the flush, and stays so.
    fails(&mut guest, &write(bad))?;
    fails(&mut guest, &write(bad - 1))?;
    ensure!(guest.ctl("status")?.starts_with("state: Running\n"));

    let run = guest.begin(
        "dd if=/dev/urandom of=/tmp/data bs=32k count=8 2>/dev/null; \
         dd if=/tmp/data of=/dev/vdc bs=32k seek=60 oflag=direct conv=fsync,notrunc 2>&1",
    )?;
    let trouble = format!("disk {stop_node}: write failed: Input/output error");
    let stopped = |guest: &Guest<'_>| -> Result<bool> {
        let said = guest.ctl("status")?;
        Ok(said.starts_with("state: Paused\n") && said.contains(&trouble))
    };
    until(context.deadline, "stop", || stopped(&guest))?;
    stop.mend()?;
    guest.ctl("resume")?;
    let (said, status) = guest.end_of(run)?;
    ensure!(status == "0", "{said}");
    guest
        .run("dd if=/dev/vdc bs=32k skip=60 count=8 iflag=direct 2>/dev/null | cmp - /tmp/data")?;
    guest.vm.type_in("end\n")?;
    guest.vm.exits_with(0)?;
    Ok(())
}

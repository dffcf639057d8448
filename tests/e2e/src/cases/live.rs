//! What can be done to a VM while it runs: it is paused and goes on.
//!
//! The guest does what it is told, a line of shell at a time: the `obey` script.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use super::tests;
use crate::context::{Context, Kernel};
use crate::vm::{Mvm, Vm};

tests! { "live":
    SHORT pause,
}

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
}

/// The guest stands still, its clock with it, and goes on as if nothing had been.
fn pause(context: &Context) -> Result<()> {
    const PAUSE: Duration = Duration::from_secs(5);
    let mut guest = Guest::boot(context, |mvm| {
        mvm.args("--cpus 2").append("clocksource=kvm-clock")
    })?;
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
    // A signal finds the guest when it goes on.
    guest.ctl("pause")?;
    guest.vm.signal(Signal::TERM)?;
    guest.vm.wait_for("which it sees when it is resumed")?;
    guest.ctl("resume")?;
    guest.vm.exits_with(0)?;
    Ok(())
}

//! Memory that the guest gives up comes back to the host, and the guest gets it again when it needs it.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

use super::tests;
use crate::context::{Context, Kernel};
use crate::vm::{Vm, until};

tests! { "balloon":
    LONG stock_live,
    LONG live,
    LONG stock_free_page_reporting,
    LONG stock_size_at_boot,
    LONG free_page_reporting,
    LONG deflate_on_oom,
    SHORT size_at_boot,
    SHORT off,
}

const MIB: u64 = 1 << 20;

/// A guest that uses memory as it is told: the `memory` script.
struct Guest<'a> {
    context: &'a Context,
    vm: Vm,
    socket: PathBuf,
    looks: u32,
}

/// What a guest's kernel says of its memory, in bytes.
#[derive(Debug, Clone, Copy)]
struct Memory {
    total: u64,
    free: u64,
}

impl<'a> Guest<'a> {
    fn boot(context: &'a Context, kernel: Kernel, options: &str) -> Result<Self> {
        let rootfs = context.rootfs()?;
        let socket = context.path("api");
        let vm = context
            .script(kernel, &rootfs, "memory")?
            .arg("--api")
            .arg(&socket)
            .append("quiet")
            .args(options)
            .spawn()?;
        vm.wait_for("ready")?;
        Ok(Self {
            context,
            vm,
            socket,
            looks: 0,
        })
    }

    fn tell(&mut self, command: &str) -> Result<()> {
        self.vm.type_in(&format!("{command}\n"))
    }

    fn look(&mut self) -> Result<Memory> {
        self.looks += 1;
        self.tell(&format!("look {}", self.looks))?;
        let line = self.vm.wait_for_line(&format!("look {}: ", self.looks))?;
        let mut kib = line.split(' ').map_while(|word| word.parse::<u64>().ok());
        let mut next = || kib.next().map(|kib| kib << 10);
        let (total, free) = next().zip(next()).context(line)?;
        Ok(Memory { total, free })
    }

    /// Looks until what is seen is as it should be.
    fn look_until(&mut self, what: &str, right: impl Fn(Memory) -> bool) -> Result<()> {
        until(self.context.deadline, what, || Ok(right(self.look()?)))
    }

    /// `mvm ctl`, and what it says.
    fn ctl(&self, words: &str) -> Result<String> {
        let mvm = self.context.mvm().arg("ctl").arg(&self.socket);
        Ok(mvm.args(words).exits_with(0)?.stdout)
    }

    /// A figure of the guest's statistics.
    fn figure(&self, name: &str) -> Result<u64> {
        let all = self.ctl("statistics")?;
        let start = format!("{name}: ");
        let value = all.lines().find_map(|line| line.strip_prefix(&start));
        Ok(value
            .with_context(|| format!("no {name} in: {all}"))?
            .parse()?)
    }

    /// Ends the script, and checks that nothing was killed for want of memory.
    fn end(mut self) -> Result<()> {
        self.tell("end")?;
        let outcome = self.vm.exits_with(0)?;
        ensure!(outcome.value("kills")? == "0", "something was killed");
        Ok(())
    }
}

/// The guest fills memory and frees it; mvm's own resident memory must follow.
fn reporting(context: &Context, kernel: Kernel) -> Result<()> {
    const FILL: u64 = 320 * MIB;
    let mut guest = Guest::boot(context, kernel, "--mem 768M")?;
    let before = guest.vm.resident()?;
    guest.tell("fill 320")?;
    guest.vm.wait_for("filled")?;
    let full = guest.vm.resident()?;
    ensure!(
        // Some of it is memory that the guest has touched before.
        full >= before + FILL - 64 * MIB,
        "{before} bytes are resident before and {full} after the guest filled {FILL}"
    );
    guest.tell("free")?;
    guest.vm.wait_for("freed")?;
    until(context.deadline, "fall of the resident memory", || {
        Ok(guest.vm.resident()? <= full - 256 * MIB)
    })?;
    // What was given back is there again when it is wanted.
    guest.tell("fill 64")?;
    guest.look_until("memory in use again", |memory| {
        memory.free < memory.total - 64 * MIB
    })?;
    guest.end()
}

fn free_page_reporting(context: &Context) -> Result<()> {
    reporting(context, Kernel::TinyElf)
}

fn stock_free_page_reporting(context: &Context) -> Result<()> {
    reporting(context, Kernel::StockBzimage)
}

/// A guest that may not take its memory back has that much less in all.
fn inflated(context: &Context, kernel: Kernel) -> Result<()> {
    let options = "--mem 384M --balloon size=128M,deflate-on-oom=off";
    let mut guest = Guest::boot(context, kernel, options)?;
    guest.look_until("a balloon of 128M", |memory| {
        memory.total <= (384 - 128) * MIB && memory.free <= memory.total
    })?;
    guest.end()
}

fn size_at_boot(context: &Context) -> Result<()> {
    inflated(context, Kernel::TinyElf)
}

fn stock_size_at_boot(context: &Context) -> Result<()> {
    inflated(context, Kernel::StockBzimage)
}

/// Sizes that are asked for while the guest runs are the guest's, and mvm's, soon after.
fn resized(context: &Context, kernel: Kernel) -> Result<()> {
    let options = "--mem 512M --balloon free-page-reporting=off,deflate-on-oom=off";
    let mut guest = Guest::boot(context, kernel, options)?;
    // The guest has touched most of its memory, and has no use for it now.
    guest.tell("fill 320")?;
    guest.vm.wait_for("filled")?;
    guest.tell("free")?;
    guest.vm.wait_for("freed")?;
    let (before, full) = (guest.look()?, guest.vm.resident()?);
    ensure!(guest.figure("total_memory")? == before.total, "{before:?}");
    guest.ctl("balloon 320M")?;
    let balloon = "balloon: 320M of 320M asked for\n";
    until(context.deadline, balloon, || {
        Ok(guest.ctl("balloon")? == balloon)
    })?;
    let (less, lean) = (guest.look()?, guest.vm.resident()?);
    ensure!(
        less.total == before.total - 320 * MIB,
        "{less:?}, not {before:?}"
    );
    ensure!(guest.figure("total_memory")? == less.total, "{less:?}");
    ensure!(
        lean + 256 * MIB <= full,
        "{lean} bytes are resident, were {full}"
    );
    // Back again, in two steps, of which the first is only begun.
    guest.ctl("balloon 100M")?;
    guest.ctl("balloon 0")?;
    let balloon = "balloon: 0B of 0B asked for\n";
    until(context.deadline, balloon, || {
        Ok(guest.ctl("balloon")? == balloon)
    })?;
    let after = guest.look()?;
    ensure!(after.total == before.total, "{after:?}, not {before:?}");
    guest.tell("fill 320")?;
    guest.look_until("memory in use again", |memory| {
        memory.free < before.free - 300 * MIB
    })?;
    let socket = guest.socket.clone();
    guest.end()?;
    ensure!(!socket.exists(), "the socket is left behind");
    Ok(())
}

fn live(context: &Context) -> Result<()> {
    resized(context, Kernel::TinyElf)
}

fn stock_live(context: &Context) -> Result<()> {
    resized(context, Kernel::StockBzimage)
}

/// A guest that needs more than the balloon leaves it gets it out of the balloon.
fn deflate_on_oom(context: &Context) -> Result<()> {
    let mut guest = Guest::boot(
        context,
        Kernel::TinyElf,
        "--mem 384M --balloon size=256M,free-page-reporting=off",
    )?;
    guest.look_until("a balloon of 256M", |memory| {
        memory.free <= (384 - 256) * MIB
    })?;
    guest.tell("fill 200")?;
    guest.vm.wait_for("filled")?;
    ensure!(
        !guest.vm.stdout().contains("not filled"),
        "the guest could not have its memory back"
    );
    let balloon = guest.ctl("balloon")?;
    ensure!(
        balloon.ends_with("M of 256M asked for\n") && !balloon.contains("256M of"),
        "the balloon is no smaller: {balloon}"
    );
    guest.end()
}

fn off(context: &Context) -> Result<()> {
    let mut guest = Guest::boot(context, Kernel::TinyElf, "--balloon off")?;
    guest.tell("end")?;
    let outcome = guest.vm.exits_with(0)?;
    let features = outcome.value("balloon features")?;
    ensure!(features == "none", "there is a balloon: {features}");
    Ok(())
}

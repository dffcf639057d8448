//! Memory that the guest gives up comes back to the host, and the guest gets it again when it needs it.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use super::tests;
use crate::context::{Context, Kernel};
use crate::vm::{Vm, until};

tests! { "balloon":
    LONG stock_free_page_reporting,
    LONG stock_size_at_boot,
    LONG free_page_reporting,
    LONG deflate_on_oom,
    SHORT size_at_boot,
    SHORT off,
}

const MIB: u64 = 1 << 20;

/// A guest that uses memory as it is told: the `memory` script.
struct Guest {
    vm: Vm,
    looks: u32,
    deadline: Instant,
}

/// What a guest's kernel says of its memory, in bytes.
#[derive(Debug, Clone, Copy)]
struct Memory {
    total: u64,
    free: u64,
}

impl Guest {
    fn boot(context: &Context, kernel: Kernel, options: &str) -> Result<Self> {
        let rootfs = context.rootfs()?;
        let vm = context
            .script(kernel, &rootfs, "memory")?
            .append("quiet")
            .args(options)
            .spawn()?;
        vm.wait_for("ready")?;
        Ok(Self {
            vm,
            looks: 0,
            deadline: context.deadline,
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
        until(self.deadline, what, || Ok(right(self.look()?)))
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

//! However a guest ends, mvm ends with it, promptly and with the right status.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::process::Signal;

use super::tests;
use crate::context::{Context, Kernel};

tests! { "end":
    LONG stock_reboot,
    LONG stock_panic,
    LONG stock_power_button,
    SHORT poweroff,
    SHORT reboot,
    SHORT halt,
    SHORT halt_of_two_cpus,
    SHORT panic,
    SHORT panic_without_acpi,
    SHORT panic_without_a_root,
    SHORT reboot_by_triple_fault,
    SHORT power_button_on_sigterm,
    SHORT power_button_on_sigint,
    SHORT second_sigterm,
    SHORT sighup,
    SHORT timeout,
}

fn ends(context: &Context, kernel: Kernel, script: &str, options: &str, status: i32) -> Result<()> {
    let rootfs = context.rootfs()?;
    context
        .script(kernel, &rootfs, script)?
        .args(options)
        .exits_with(status)?;
    Ok(())
}

fn stock_reboot(context: &Context) -> Result<()> {
    ends(context, Kernel::StockBzimage, "reboot", "--cpus 2", 0)
}

fn stock_panic(context: &Context) -> Result<()> {
    ends(context, Kernel::StockBzimage, "panic", "--cpus 2", 123)
}

fn stock_power_button(context: &Context) -> Result<()> {
    power_button(context, Kernel::StockBzimage, Signal::TERM)
}

fn poweroff(context: &Context) -> Result<()> {
    ends(context, Kernel::TinyElf, "poweroff", "--cpus 2", 0)
}

fn reboot(context: &Context) -> Result<()> {
    ends(context, Kernel::TinyElf, "reboot", "--cpus 2", 0)
}

fn halt(context: &Context) -> Result<()> {
    ends(context, Kernel::TinyElf, "halt", "", 0)
}

fn halt_of_two_cpus(context: &Context) -> Result<()> {
    ends(context, Kernel::TinyElf, "halt", "--cpus 2", 0)
}

fn panic(context: &Context) -> Result<()> {
    ends(context, Kernel::TinyElf, "panic", "--cpus 2", 123)
}

fn panic_without_acpi(context: &Context) -> Result<()> {
    ends(context, Kernel::TinyElf, "panic", "--no-acpi", 123)
}

fn panic_without_a_root(context: &Context) -> Result<()> {
    let outcome = context.boot(Kernel::TinyElf)?.exits_with(123)?;
    outcome.says("Kernel panic")?;
    Ok(())
}

/// `reboot=t` makes the kernel's restart load an empty interrupt table and fault: still a reboot, by the
/// mark that Linux leaves. (A fault without the mark is a crash; the tiny guests test that.)
fn reboot_by_triple_fault(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    context
        .script(Kernel::TinyElf, &rootfs, "reboot")?
        .append("reboot=t")
        .exits_with(0)?;
    Ok(())
}

fn power_button(context: &Context, kernel: Kernel, signal: Signal) -> Result<()> {
    let rootfs = context.rootfs()?;
    let mut vm = context.script(kernel, &rootfs, "wait")?.spawn()?;
    vm.wait_for("waiting")?;
    vm.signal(signal)?;
    vm.exits_with(0)?.says("power button: powering off")?;
    Ok(())
}

fn power_button_on_sigterm(context: &Context) -> Result<()> {
    power_button(context, Kernel::TinyElf, Signal::TERM)
}

fn power_button_on_sigint(context: &Context) -> Result<()> {
    power_button(context, Kernel::TinyElf, Signal::INT)
}

/// The script does not listen to the power button, so only the second signal ends the VM.
fn second_sigterm(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    let mut vm = context.script(Kernel::TinyElf, &rootfs, "hang")?.spawn()?;
    vm.wait_for("hanging")?;
    vm.signal(Signal::TERM)?;
    thread::sleep(Duration::from_secs(1));
    ensure!(vm.is_running()?, "the first SIGTERM ended the VM");
    vm.signal(Signal::TERM)?;
    let start = Instant::now();
    vm.exits_with(143)?;
    ensure!(
        start.elapsed() < Duration::from_secs(10),
        "it took {:?} to end",
        start.elapsed()
    );
    Ok(())
}

fn sighup(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    let mut vm = context.script(Kernel::TinyElf, &rootfs, "hang")?.spawn()?;
    vm.wait_for("hanging")?;
    vm.signal(Signal::HUP)?;
    vm.exits_with(129)?;
    Ok(())
}

fn timeout(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    let start = Instant::now();
    context
        .script(Kernel::TinyElf, &rootfs, "hang")?
        .args("--timeout 3s")
        .exits_with(124)?;
    ensure!(
        start.elapsed() >= Duration::from_secs(3),
        "it ended after {:?}",
        start.elapsed()
    );
    Ok(())
}

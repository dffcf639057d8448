//! At a terminal the console is raw, mvm's keys work, and the terminal is as it was afterwards, however mvm ends.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use rustix::process::Signal;

use super::tests;
use crate::context::{Context, Kernel};
use crate::pty::TerminalVm;

tests! { "terminal":
    SHORT restored_after_poweroff,
    SHORT restored_after_a_panic,
    SHORT restored_after_ctrl_a_x,
    SHORT restored_after_sigterm,
    SHORT restored_after_sigint,
    SHORT restored_after_sighup,
    SHORT restored_after_a_refusal,
    SHORT keys_are_listed,
    SHORT a_shell_is_at_home,
}

fn start(context: &Context, script: &str, until: &str) -> Result<TerminalVm> {
    let rootfs = context.rootfs()?;
    let vm = TerminalVm::spawn(context, &context.script(Kernel::TinyElf, &rootfs, script)?)?;
    vm.wait_for(until)?;
    vm.is_raw()?;
    Ok(vm)
}

fn restored_after_poweroff(context: &Context) -> Result<()> {
    let mut vm = start(context, "echo", "ready")?;
    vm.type_in(b"hello\r")?;
    vm.wait_for("heard: hello")?;
    // Not a signal at a raw terminal, but the guest's own, which its console turns into one for the script.
    vm.type_in(b"end\r")?;
    vm.exits_with(0)?;
    Ok(())
}

fn restored_after_a_panic(context: &Context) -> Result<()> {
    let mut vm = start(context, "panic", "init")?;
    vm.exits_with(123)?;
    Ok(())
}

fn restored_after_ctrl_a_x(context: &Context) -> Result<()> {
    let mut vm = start(context, "hang", "hanging")?;
    vm.type_in(b"\x01x")?;
    vm.exits_with(0)?;
    Ok(())
}

fn restored_after_sigterm(context: &Context) -> Result<()> {
    let mut vm = start(context, "hang", "hanging")?;
    vm.signal(Signal::TERM)?;
    thread::sleep(Duration::from_millis(300));
    vm.signal(Signal::TERM)?;
    vm.exits_with(143)?;
    Ok(())
}

fn restored_after_sigint(context: &Context) -> Result<()> {
    let mut vm = start(context, "wait", "waiting")?;
    vm.signal(Signal::INT)?;
    vm.wait_for("power button: powering off")?;
    vm.exits_with(0)?;
    Ok(())
}

fn restored_after_sighup(context: &Context) -> Result<()> {
    let mut vm = start(context, "hang", "hanging")?;
    vm.signal(Signal::HUP)?;
    vm.exits_with(129)?;
    Ok(())
}

fn restored_after_a_refusal(context: &Context) -> Result<()> {
    let file = context.path("not-a-kernel");
    fs::write(&file, "not a kernel")?;
    let mvm = context.mvm().arg("--kernel").arg(&file);
    TerminalVm::spawn(context, &mvm)?.exits_with(125)?;
    Ok(())
}

fn keys_are_listed(context: &Context) -> Result<()> {
    let mut vm = start(context, "echo", "ready")?;
    vm.type_in(b"\x01h")?;
    vm.wait_for("Ctrl-A x")?;
    // Neither key reached the guest.
    vm.type_in(b"word\r")?;
    vm.wait_for("heard: word")?;
    vm.type_in(b"end\r")?;
    vm.exits_with(0)?;
    Ok(())
}

/// The everyday line: a shell with job control, which Ctrl-C does not end.
fn a_shell_is_at_home(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    let mvm = context.boot(Kernel::TinyElf)?.arg("--rootfs").arg(&rootfs);
    let mut vm = TerminalVm::spawn(context, &mvm)?;
    vm.wait_for("mvm:/root#")?;
    vm.type_in(b"sleep 1000\r")?;
    thread::sleep(Duration::from_millis(500));
    vm.type_in(b"\x03")?;
    vm.type_in(b"echo alive $((6 * 7))\r")?;
    vm.wait_for("alive 42")?;
    vm.type_in(b"poweroff -f\r")?;
    vm.exits_with(0)?;
    Ok(())
}

//! virtio-console as the guest's only console: the whole boot, input, much of both, and the terminal's size.

use std::fs;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::console::{check_flood, connect, talk};
use super::tests;
use crate::context::{Context, Kernel};
use crate::pty::TerminalVm;

tests! { "hvc":
    LONG stock_boot_and_input,
    LONG much_output,
    SHORT boot,
    SHORT input,
    SHORT much_input_at_once,
    SHORT slow_reader,
    SHORT to_a_file,
    SHORT to_a_unix_socket,
    SHORT panic_of_the_kernel,
    SHORT without_acpi,
    SHORT a_shell_is_at_home,
    SHORT size_of_the_terminal,
}

/// The kernel's first words come through the serial port and the rest through the virtio-console, each
/// once; and what is typed long before there is a console is heard.
fn boot(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    let outcome = context
        .script(Kernel::TinyElf, &rootfs, "window")?
        .args("--console virtio")
        .spawn()
        .and_then(|mut vm| {
            vm.type_in("end\n")?;
            vm.exits_with(0)
        })?;
    ensure!(outcome.value("console")? == "hvc0", "it is another console");
    for words in [
        "] Linux version ",
        "] Freeing unused kernel image (initmem)",
        "] Run /sbin/init as init process",
    ] {
        let times = outcome.stdout.matches(words).count();
        ensure!(times == 1, "'{words}' was said {times} times");
    }
    Ok(())
}

fn echo(context: &Context, kernel: Kernel, lines: usize) -> Result<()> {
    let rootfs = context.rootfs()?;
    let mut vm = context
        .script(kernel, &rootfs, "echo")?
        .args("--console virtio")
        .spawn()?;
    vm.wait_for("ready")?;
    let all: String = (0..lines)
        .map(|number| format!("line {number} of many\n"))
        .collect();
    vm.type_in(&all)?;
    vm.type_in("end\n")?;
    let outcome = vm.exits_with(0)?;
    for number in 0..lines {
        outcome.says(&format!("heard: line {number} of many"))?;
    }
    Ok(())
}

fn input(context: &Context) -> Result<()> {
    echo(context, Kernel::TinyElf, 1)
}

/// More than the guest has buffers for, by far: it is taken as fast as the guest reads.
fn much_input_at_once(context: &Context) -> Result<()> {
    echo(context, Kernel::TinyElf, 500)
}

/// Its driver is a module there: the console comes only with the initrd.
fn stock_boot_and_input(context: &Context) -> Result<()> {
    echo(context, Kernel::StockBzimage, 3)
}

fn flood(context: &Context, numbers: &str, count: usize, rest: Duration) -> Result<()> {
    let rootfs = context.rootfs()?;
    let outcome = context
        .script(Kernel::TinyElf, &rootfs, &format!("flood,{numbers}"))?
        .args("--console virtio")
        .append("quiet")
        .read_slowly(rest)
        .exits_with(0)?;
    check_flood(&outcome.stdout, count)
}

/// More than a megabyte, which is more than mvm keeps of what has not been read.
fn much_output(context: &Context) -> Result<()> {
    flood(context, "1200,1000", 1200, Duration::ZERO)
}

fn slow_reader(context: &Context) -> Result<()> {
    flood(context, "2000", 2000, Duration::from_millis(100))
}

fn to_a_file(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    let file = context.path("console.log");
    let outcome = context
        .script(Kernel::TinyElf, &rootfs, "facts")?
        .args(&format!("--console virtio,file={}", file.display()))
        .exits_with(0)?;
    ensure!(outcome.stdout.is_empty(), "standard output has it too");
    let text = fs::read_to_string(&file)?;
    ensure!(text.contains("test facts: exit 0"), "the file holds {text}");
    Ok(())
}

fn to_a_unix_socket(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    let path = context.path("console.sock");
    let mut vm = context
        .script(Kernel::TinyElf, &rootfs, "echo")?
        .args(&format!("--console virtio,unix={}", path.display()))
        .spawn()?;
    let socket: UnixStream = connect(context, &path)?;
    talk(context, socket.try_clone()?, socket)?;
    vm.exits_with(0)?;
    Ok(())
}

fn panic_of_the_kernel(context: &Context) -> Result<()> {
    let outcome = context
        .boot(Kernel::TinyElf)?
        .args("--console virtio")
        .exits_with(123)?;
    outcome.says("Kernel panic")
}

fn without_acpi(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    let outcome = context
        .script(Kernel::TinyElf, &rootfs, "facts")?
        .args("--console virtio --no-acpi")
        .exits_with(0)?;
    outcome.says("test facts: exit 0")
}

fn a_shell_is_at_home(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    let mvm = context
        .boot(Kernel::TinyElf)?
        .arg("--rootfs")
        .arg(&rootfs)
        .args("--console virtio");
    let mut vm = TerminalVm::spawn(context, &mvm)?;
    vm.wait_for("mvm:/root#")?;
    vm.type_in(b"sh -c 'echo it is $(tty), ; exec sleep 1000'\r")?;
    vm.wait_for("it is /dev/hvc0,")?;
    // The guest's terminal turns it into a signal for what runs there.
    vm.type_in(b"\x03")?;
    vm.type_in(b"echo alive $((6 * 7))\r")?;
    vm.wait_for("alive 42")?;
    // mvm's own keys work here too.
    vm.type_in(b"\x01x")?;
    vm.exits_with(0)
}

/// The size is there from the start, and each change reaches the guest.
fn size_of_the_terminal(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    let mvm = context
        .script(Kernel::TinyElf, &rootfs, "window")?
        .args("--console virtio");
    let mut vm = TerminalVm::spawn_sized(context, &mvm, 100, 40)?;
    vm.wait_for("window: ")?;
    vm.asks_until(b"\r", "window: 40 100")?;
    vm.resize(132, 50)?;
    vm.asks_until(b"\r", "window: 50 132")?;
    vm.resize(70, 20)?;
    vm.asks_until(b"\r", "window: 20 70")?;
    vm.type_in(b"end\r")?;
    vm.exits_with(0)
}

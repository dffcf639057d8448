//! The serial console, wherever it goes: nothing is lost, and nobody waits for a reader for ever.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use super::tests;
use crate::context::{Context, Kernel};
use crate::vm::{Outcome, Stream};

tests! { "console":
    LONG stock_piped_input,
    SHORT piped_input,
    SHORT much_input_at_once,
    SHORT end_of_input_does_not_end_the_guest,
    SHORT much_output,
    SHORT slow_reader,
    SHORT closed_output,
    SHORT to_a_file,
    SHORT to_nowhere,
    SHORT to_a_unix_socket,
    SHORT to_a_pty,
}

fn echo(context: &Context, kernel: Kernel) -> Result<()> {
    let rootfs = context.rootfs()?;
    let mut vm = context.script(kernel, &rootfs, "echo")?.spawn()?;
    vm.wait_for("ready")?;
    vm.type_in("hello\n")?;
    vm.wait_for("heard: hello")?;
    vm.type_in("again and again\nend\n")?;
    vm.exits_with(0)?.says("heard: again and again")?;
    Ok(())
}

fn stock_piped_input(context: &Context) -> Result<()> {
    echo(context, Kernel::StockBzimage)
}

fn piped_input(context: &Context) -> Result<()> {
    echo(context, Kernel::TinyElf)
}

/// More than the serial port's FIFO holds, by far: it is taken as fast as the guest reads.
fn much_input_at_once(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    let mut vm = context.script(Kernel::TinyElf, &rootfs, "echo")?.spawn()?;
    vm.wait_for("ready")?;
    let lines: String = (0..100)
        .map(|number| format!("line {number} of many\n"))
        .collect();
    vm.type_in(&lines)?;
    vm.type_in("end\n")?;
    let outcome = vm.exits_with(0)?;
    for number in 0..100 {
        outcome.says(&format!("heard: line {number} of many"))?;
    }
    Ok(())
}

fn end_of_input_does_not_end_the_guest(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    let mut vm = context.script(Kernel::TinyElf, &rootfs, "wait")?.spawn()?;
    vm.close_stdin();
    vm.wait_for("waiting")?;
    thread::sleep(Duration::from_millis(500));
    ensure!(vm.is_running()?, "it ended with its input");
    vm.signal(Signal::TERM)?;
    vm.exits_with(0)?;
    Ok(())
}

/// Fails unless the numbers that the `flood` script prints are all there, in order and whole.
pub fn check_flood(console: &str, count: usize) -> Result<()> {
    let (_, rest) = console
        .split_once("flood begins")
        .context("the flood did not begin")?;
    let (flood, _) = rest
        .split_once("flood ends")
        .context("the flood did not end")?;
    // A kernel message may come between two lines, and a line ends in CR LF.
    let numbers = flood
        .lines()
        .filter_map(|line| line.trim().parse::<usize>().ok());
    ensure!(numbers.eq(1..=count), "numbers are missing or damaged");
    Ok(())
}

fn much_output(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    let outcome = context
        .script(Kernel::TinyElf, &rootfs, "flood,3000")?
        .append("quiet")
        .exits_with(0)?;
    check_flood(&outcome.stdout, 3000)?;
    Ok(())
}

fn slow_reader(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    let outcome = context
        .script(Kernel::TinyElf, &rootfs, "flood,2000")?
        .append("quiet")
        .read_slowly(Duration::from_millis(100))
        .exits_with(0)?;
    check_flood(&outcome.stdout, 2000)?;
    Ok(())
}

/// Nobody listens any more, and the guest does its work all the same.
fn closed_output(context: &Context) -> Result<()> {
    use std::process::{Command, Stdio};

    let rootfs = context.rootfs()?;
    let mvm = context.script(Kernel::TinyElf, &rootfs, "disk-write")?;
    let mut child = Command::new(mvm.program())
        .args(mvm.finish())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    drop(child.stdout.take());
    let status = crate::vm::wait_until(&mut child, context.deadline)?;
    let outcome = Outcome {
        status,
        stdout: String::new(),
        stderr: String::new(),
    };
    outcome.check(0)?;
    let check = context
        .script(Kernel::TinyElf, &rootfs, "disk-check")?
        .exits_with(0)?;
    check.says("/data/blob: OK")?;
    Ok(())
}

fn to_a_file(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    let file = context.path("console.log");
    let outcome = context
        .script(Kernel::TinyElf, &rootfs, "facts")?
        .args(&format!("--console file={}", file.display()))
        .exits_with(0)?;
    ensure!(
        outcome.stdout.is_empty(),
        "the console came to standard output too"
    );
    let text = fs::read_to_string(&file)?;
    ensure!(text.contains("test facts: exit 0"), "the file holds {text}");
    Ok(())
}

fn to_nowhere(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    let outcome = context
        .script(Kernel::TinyElf, &rootfs, "disk-write")?
        .args("--console none")
        .exits_with(0)?;
    ensure!(
        outcome.stdout.is_empty(),
        "the console came to standard output"
    );
    let check = context
        .script(Kernel::TinyElf, &rootfs, "disk-check")?
        .exits_with(0)?;
    check.says("/data/blob: OK")?;
    Ok(())
}

fn to_a_unix_socket(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    let path = context.path("console.sock");
    let mut vm = context
        .script(Kernel::TinyElf, &rootfs, "echo")?
        .args(&format!("--console unix={}", path.display()))
        .spawn()?;
    let socket = connect(context, &path)?;
    talk(context, socket.try_clone()?, socket)?;
    vm.exits_with(0)?;
    Ok(())
}

fn to_a_pty(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    let mut vm = context
        .script(Kernel::TinyElf, &rootfs, "echo")?
        .args("--console pty")
        .spawn()?;
    // mvm says where the console is.
    vm.wait_for("/dev/pts/")?;
    let (stdout, stderr) = (vm.stdout(), vm.stderr());
    let said = format!("{stdout}{stderr}");
    let path: PathBuf = said
        .split(|character: char| character.is_whitespace() || "'\",;".contains(character))
        .find(|word| word.starts_with("/dev/pts/"))
        .context("no path")?
        .into();
    let terminal = fs::OpenOptions::new().read(true).write(true).open(path)?;
    talk(context, terminal.try_clone()?, terminal)?;
    vm.exits_with(0)?;
    Ok(())
}

/// Connects to a socket that is about to be there.
pub fn connect(context: &Context, path: &std::path::Path) -> Result<UnixStream> {
    loop {
        match UnixStream::connect(path) {
            Ok(socket) => return Ok(socket),
            Err(error) => ensure!(
                Instant::now() < context.deadline,
                "nobody listens on the socket: {error}"
            ),
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Talks with the `echo` script over some pair of streams.
pub fn talk(
    context: &Context,
    reader: impl Read + Send + 'static,
    mut writer: impl Write,
) -> Result<()> {
    let transcript = context.transcript("(the console's other end)".to_owned());
    transcript.follow(reader, Stream::Stdout, Duration::ZERO);
    transcript.wait_for("ready", context.deadline)?;
    writer.write_all(b"hello there\n")?;
    transcript.wait_for("heard: hello there", context.deadline)?;
    writer.write_all(b"end\n")?;
    Ok(())
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn a_flood_with_a_hole_is_noticed() {
        check_flood(
            "x\r\nflood begins\r\n1\r\n[ 1.0] news\r\n2\r\nflood ends\r\n",
            2,
        )
        .unwrap();
        check_flood("flood begins\n1\n3\nflood ends", 3).unwrap_err();
        check_flood("flood begins\n1\n2\n", 2).unwrap_err();
    }
}

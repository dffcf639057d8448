//! The library in this very process: a VM per command, as in a test of somebody's own; and its examples.

use std::fs;
use std::io::{Read, Write};
use std::process;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use vmm::config::{DiskConfig, VmConfig};
use vmm::run::{Command, Status, Stdio};
use vmm::{CommandEnd, ExitReason};

use super::tests;
use crate::context::Context;

tests! { "library":
    SHORT output_of_a_command,
    SHORT streams_of_a_child,
    SHORT timeout_and_kill,
    SHORT crash,
    SHORT several_at_once_and_nothing_left,
    SHORT command_example,
    SHORT custom_device_example,
}

fn command(context: &Context, program: &str) -> Command {
    let mut config = VmConfig::new(context.guest("tiny-vmlinux"));
    config.rootfs = Some(DiskConfig {
        read_only: true,
        ..DiskConfig::new(context.guest("rootfs"))
    });
    Command::new(config, program)
}

fn shell(context: &Context, text: &str) -> Command {
    command(context, "sh").arg("-c").arg(text)
}

fn output_of_a_command(context: &Context) -> Result<()> {
    let output = shell(context, "echo $GREETING; pwd >&2; exit 3")
        .env("GREETING", "hello")
        .workdir("/tmp")
        .output()?;
    ensure!(output.status.code() == Some(3), "{output}");
    ensure!(output.stdout == b"hello\n", "{output}");
    ensure!(output.stderr == b"/tmp\n", "{output}");
    ensure!(output.console.contains("reboot: Power down"), "{output}");
    let output = command(context, "nope").output()?;
    ensure!(output.status.code() == Some(127), "{output}");
    Ok(())
}

fn streams_of_a_child(context: &Context) -> Result<()> {
    let mut child = command(context, "tr")
        .args(["a-z", "A-Z"])
        .stdin(Stdio::Piped)
        .stdout(Stdio::Piped)
        .stderr(Stdio::Null)
        .spawn()?;
    let mut stdin = child.stdin.take().context("no input")?;
    stdin.write_all(b"typed")?;
    drop(stdin);
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{output}");
    ensure!(output.stdout == b"TYPED", "{output}");
    Ok(())
}

fn timeout_and_kill(context: &Context) -> Result<()> {
    let status = command(context, "sleep")
        .arg("1000")
        .timeout(Duration::from_secs(8))
        .status()?;
    ensure!(status == Status::TimedOut, "{status:?}");

    let mut child = shell(
        context,
        "trap 'exit 5' TERM; echo r; while :; do sleep 0.1; done",
    )
    .stdout(Stdio::Piped)
    .spawn()?;
    let mut stdout = child.stdout.take().context("no output")?;
    stdout.read_exact(&mut [0])?;
    child.signal(15);
    let status = child.wait()?;
    ensure!(status.code() == Some(5), "{status:?}");

    let child = command(context, "sleep").arg("1000").spawn()?;
    child.kill();
    let status = child.wait()?;
    ensure!(status == Status::Lost(ExitReason::Stopped), "{status:?}");
    Ok(())
}

fn crash(context: &Context) -> Result<()> {
    let output = shell(context, "echo c >/proc/sysrq-trigger; sleep 10").output()?;
    ensure!(
        output.status == Status::Crashed(ExitReason::Panicked),
        "{output}"
    );
    ensure!(
        output.console.contains("sysrq: Trigger a crash"),
        "{output}"
    );
    Ok(())
}

fn several_at_once_and_nothing_left(context: &Context) -> Result<()> {
    let run = |number: u8| -> Result<()> {
        let output = shell(context, &format!("echo {number}; exit {number}")).output()?;
        ensure!(
            output.status == Status::Ended(CommandEnd::Exited(number)),
            "{output}"
        );
        ensure!(
            output.stdout == format!("{number}\n").as_bytes(),
            "{output}"
        );
        Ok(())
    };
    thread::scope(|scope| {
        let runs: Vec<_> = (1..=3)
            .map(|number| scope.spawn(move || run(number)))
            .collect();
        runs.into_iter().try_for_each(|run| {
            run.join()
                .map_err(|_| anyhow::anyhow!("a test's thread panicked"))?
        })
    })?;
    // Other tests have threads of theirs in this process, so only the names of a VM's own are looked for.
    let left: Vec<String> = fs::read_dir("/proc/self/task")?
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .filter(|name| name.trim() == "command")
        .collect();
    ensure!(left.is_empty(), "threads that are left: {left:?}");
    Ok(())
}

fn example(context: &Context, name: &str, program: &[&str]) -> Result<process::Output> {
    let image = format!("{},ro", context.guest("rootfs").display());
    process::Command::new(context.example(name))
        .arg(context.guest("tiny-vmlinux"))
        .arg(image)
        .args(program)
        .stdin(process::Stdio::null())
        .output()
        .with_context(|| format!("cannot start the example {name}"))
}

fn command_example(context: &Context) -> Result<()> {
    let output = example(context, "command", &["uname", "-m"])?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        text.contains("Exited(0)") && text.contains("x86_64"),
        "{output:?}"
    );
    Ok(())
}

fn custom_device_example(context: &Context) -> Result<()> {
    let output = example(context, "custom_device", &["head", "-c", "6", "/dev/hwrng"])?;
    ensure!(output.stdout == b"666666", "{output:?}");
    let told = String::from_utf8_lossy(&output.stderr);
    for thread in ["vcpu0", "io0", "command"] {
        ensure!(told.contains(&format!("thread: {thread}")), "{told}");
    }
    Ok(())
}

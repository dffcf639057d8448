//! The library in this very process: a VM per command, as in a test of somebody's own; and its examples.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use probe::talk;
use vmm::config::{DiskConfig, VmConfig, VsockConfig};
use vmm::run::{Command, Status, Stdio};
use vmm::vsock::VsockError;
use vmm::{CommandEnd, ExitReason, VmBuilder};

use super::tests;
use crate::context::Context;

tests! { "library":
    SHORT output_of_a_command,
    SHORT streams_of_a_child,
    SHORT timeout_and_kill,
    SHORT crash,
    SHORT several_at_once_and_nothing_left,
    SHORT vsock_of_the_embedder,
    SHORT command_example,
    SHORT custom_device_example,
}

fn guest(context: &Context) -> VmConfig {
    let mut config = VmConfig::new(context.guest("tiny-vmlinux"));
    config.rootfs = Some(DiskConfig {
        read_only: true,
        ..DiskConfig::new(context.guest("rootfs"))
    });
    config
}

fn command(context: &Context, program: &str) -> Command {
    Command::new(guest(context), program)
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

/// Both sides connect to each other, with nothing in the file system.
fn vsock_of_the_embedder(context: &Context) -> Result<()> {
    const PORT: u32 = 1024;
    let exchange =
        |stream: UnixStream| thread::spawn(move || talk::exchange(stream.into(), 1, 7000));
    let limit = context.deadline.saturating_duration_since(Instant::now());
    let mut config = guest(context);
    config.append = Some(format!("mvm.test=probe,vsock,both,3,5000,{PORT}"));
    config.vsock = Some(VsockConfig::new(3));
    let vm = VmBuilder::new(config).build()?;
    let vsock = vm.handle().vsock().cloned().context("no vsock")?;
    // Before the guest runs, so that its first connection finds somebody.
    let listener = vsock.listen(PORT)?;
    ensure!(matches!(vsock.listen(PORT), Err(VsockError::InUse(PORT))));
    let running = vm.run()?;
    let mut talks = Vec::new();
    for _ in 0..3 {
        talks.push(exchange(listener.accept(Some(limit))?));
    }
    // The guest connects at about the time it listens.
    while talks.len() < 6 {
        match vsock.connect(PORT, limit) {
            Ok(stream) => talks.push(exchange(stream)),
            Err(VsockError::Refused(PORT)) if Instant::now() < context.deadline => {}
            Err(error) => return Err(error.into()),
        }
    }
    for talk in talks {
        let got = talk
            .join()
            .map_err(|_| anyhow::anyhow!("a talk panicked"))??;
        ensure!(got == 5000, "{got} bytes");
    }
    ensure!(running.wait()?.reason == ExitReason::PoweredOff);
    ensure!(matches!(listener.accept(None), Err(VsockError::Over)));
    ensure!(matches!(vsock.connect(PORT, limit), Err(VsockError::Over)));
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

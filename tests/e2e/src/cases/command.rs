//! `mvm … -- COMMAND`: the command's status, its streams, its surroundings, and its end.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use super::tests;
use crate::context::{Context, Kernel, Skip};
use crate::lan::{self, HOST, Tap};
use crate::pty::TerminalVm;
use crate::vm::{Mvm, Outcome};

tests! { "command":
    LONG stock_kernel_with_its_modules,
    LONG stock_kernel_and_no_root_image,
    LONG a_pipe_of_100_mb,
    SHORT status_and_streams,
    SHORT over_the_serial_port,
    SHORT every_byte_comes_through,
    SHORT environment_and_directory,
    SHORT what_a_process_expects,
    SHORT not_found_and_not_executable,
    SHORT killed_by_a_signal,
    SHORT signals_are_passed_on,
    SHORT a_second_signal_ends_the_vm,
    SHORT orphans_are_reaped,
    SHORT what_is_left_running_does_not_hold_up_the_end,
    SHORT a_reader_that_leaves_is_a_broken_pipe,
    SHORT timeout,
    SHORT a_panic_under_the_command,
    SHORT a_power_off_under_the_command,
    SHORT a_root_that_is_none,
    SHORT the_image_is_changed_only_by_the_command,
    SHORT a_terminal,
    SHORT a_read_only_root,
    SHORT a_network_by_dhcp,
}

/// A guest with the tests' root file system, whose init is not used.
fn guest(context: &Context, kernel: Kernel) -> Result<Mvm<'_>> {
    let rootfs = context.rootfs()?;
    Ok(context.boot(kernel)?.arg("--rootfs").arg(rootfs))
}

fn tiny(context: &Context) -> Result<Mvm<'_>> {
    guest(context, Kernel::TinyElf)
}

/// Standard output and error, to the byte.
fn said(outcome: &Outcome, stdout: &str, stderr: &str) -> Result<()> {
    ensure!(
        outcome.stdout == stdout,
        "standard output: {:?}",
        outcome.stdout
    );
    ensure!(
        outcome.stderr == stderr,
        "standard error: {:?}",
        outcome.stderr
    );
    Ok(())
}

fn status_and_streams(context: &Context) -> Result<()> {
    let mut vm = tiny(context)?
        .shell("echo out; echo err >&2; echo kernel >/dev/kmsg; cat; exit 7")
        .spawn()?;
    vm.close_stdin();
    let outcome = vm.exits_with(7)?;
    said(&outcome, "out\n", "err\n")?;
    let outcome = tiny(context)?.command(["true"]).exits_with(0)?;
    said(&outcome, "", "")
}

fn stock_kernel_with_its_modules(context: &Context) -> Result<()> {
    let mut vm = guest(context, Kernel::StockBzimage)?
        .args("--cpus 2")
        .shell("uname -r; grep -c virtio /proc/modules >&2; tr a-z A-Z")
        .spawn()?;
    vm.type_in("typed\n")?;
    vm.close_stdin();
    let outcome = vm.exits_with(0)?;
    outcome.says("cloud-amd64")?;
    outcome.says("TYPED")
}

fn stock_kernel_and_no_root_image(context: &Context) -> Result<()> {
    let outcome = context
        .boot(Kernel::StockElf)?
        .shell("cat /proc/mounts; exit 5")
        .exits_with(5)?;
    outcome.says("rootfs / rootfs")
}

/// The guest has no vsock: a kernel without the driver.
fn over_the_serial_port(context: &Context) -> Result<()> {
    let outcome = tiny(context)?
        .append("initcall_blacklist=virtio_vsock_init")
        .shell("ls /sys/bus/virtio/drivers; seq 1 2000 | sha256sum >&2; exit 9")
        .exits_with(9)?;
    ensure!(
        !outcome.stdout.contains("vsock"),
        "the guest has a vsock after all: {}",
        outcome.stdout
    );
    // Of the same numbers.
    let sum = "6251e5743b6fd6a7d606130bdf7c15077ce85ebd3a0fdee284d15a46df199e38";
    ensure!(
        outcome.stderr == format!("{sum}  -\n"),
        "{}",
        outcome.stderr
    );
    Ok(())
}

fn a_pipe_of_100_mb(context: &Context) -> Result<()> {
    const MB: usize = 1_000_000;
    let mut vm = tiny(context)?.shell("sha256sum; echo done >&2").spawn()?;
    let mut stdin = vm.take_stdin().context("no pipe")?;
    let piece: Vec<u8> = (0..MB)
        .map(|at| u8::try_from(at % 253).unwrap_or(0))
        .collect();
    let data = piece.clone();
    let writer = thread::spawn(move || (0..100).try_for_each(|_| stdin.write_all(&data)));
    let outcome = vm.exits_with(0)?;
    writer
        .join()
        .map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    let expected = sha256_of(context, &piece, 100)?;
    ensure!(
        outcome.stdout == format!("{expected}  -\n"),
        "the guest says {}, it should be {expected}",
        outcome.stdout
    );
    Ok(())
}

/// By the lab's own sha256sum.
fn sha256_of(context: &Context, piece: &[u8], times: usize) -> Result<String> {
    let path = context.path("data");
    let mut file = fs::File::create(&path)?;
    (0..times).try_for_each(|_| file.write_all(piece))?;
    let output = Command::new("sha256sum").arg(&path).output()?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.split_whitespace().next().context("no sum")?.to_owned())
}

/// No CR for LF, nothing of the kernel in between, nothing lost at the end.
fn every_byte_comes_through(context: &Context) -> Result<()> {
    let outcome = tiny(context)?
        .shell("i=0; while [ $i -lt 40 ]; do seq 1 20000; echo $i >&2; echo noise >/dev/kmsg; i=$((i+1)); done")
        .exits_with(0)?;
    let once: String = (1..=20_000).map(|number| format!("{number}\n")).collect();
    ensure!(
        outcome.stdout == once.repeat(40),
        "standard output is not what was written"
    );
    let errors: String = (0..40).map(|number| format!("{number}\n")).collect();
    ensure!(
        outcome.stderr == errors,
        "standard error: {}",
        outcome.stderr
    );
    Ok(())
}

fn environment_and_directory(context: &Context) -> Result<()> {
    let outcome = tiny(context)?
        .args("--env A=b=c --env HOME=/tmp --workdir /mnt")
        .shell("echo $A $HOME $PWD; for word; do echo \"[$word]\"; done")
        .command(["sh", "one two", "", "$A"])
        .exits_with(0)?;
    said(&outcome, "b=c /tmp /mnt\n[one two]\n[]\n[$A]\n", "")?;
    let outcome = tiny(context)?
        .args("--workdir /nowhere")
        .command(["true"])
        .exits_with(125)?;
    let reason =
        "the working directory /nowhere cannot be entered in the guest: no such file or directory";
    said(&outcome, "", &format!("mvm: {reason}\n"))
}

fn what_a_process_expects(context: &Context) -> Result<()> {
    let script = "set -e
        for place in /proc/self /sys/class /dev/pts/ptmx /dev/shm /dev/fd/0 /dev/stdin /tmp /run; do
            [ -e $place ] || echo missing $place
        done
        for place in proc sys dev dev/pts dev/shm tmp run; do
            grep -q \" /$place \" /proc/mounts || echo not mounted: $place
        done
        touch /tmp/a /run/b /root/c
        ip link show lo | grep -q UP || echo lo is down
        [ $$ -ne 1 ] || echo the command is init
        ls /mvm 2>/dev/null || :
        echo complete";
    let outcome = tiny(context)?.shell(script).exits_with(0)?;
    said(&outcome, "complete\n", "")
}

fn not_found_and_not_executable(context: &Context) -> Result<()> {
    let outcome = tiny(context)?.command(["nope"]).exits_with(127)?;
    let line = "mvm: nope: not found in the guest, or its interpreter is not\n";
    said(&outcome, "", line)?;
    let outcome = tiny(context)?.command(["/etc/passwd"]).exits_with(126)?;
    let line = "mvm: /etc/passwd: cannot be executed in the guest: permission denied\n";
    said(&outcome, "", line)
}

fn killed_by_a_signal(context: &Context) -> Result<()> {
    let outcome = tiny(context)?.shell("kill -KILL $$").exits_with(137)?;
    said(&outcome, "", "")
}

fn signals_are_passed_on(context: &Context) -> Result<()> {
    let mut vm = tiny(context)?
        .shell("trap 'echo caught; exit 11' TERM; echo ready; while :; do sleep 0.1; done")
        .spawn()?;
    vm.wait_for("ready")?;
    vm.signal(Signal::TERM)?;
    let outcome = vm.exits_with(11)?;
    said(&outcome, "ready\ncaught\n", "")
}

fn a_second_signal_ends_the_vm(context: &Context) -> Result<()> {
    let mut vm = tiny(context)?
        .shell("trap '' TERM INT; echo ready; while :; do sleep 0.1; done")
        .spawn()?;
    vm.wait_for("ready")?;
    vm.signal(Signal::TERM)?;
    thread::sleep(Duration::from_millis(300));
    vm.signal(Signal::INT)?;
    vm.exits_with(130)?;
    Ok(())
}

fn orphans_are_reaped(context: &Context) -> Result<()> {
    let script = "for i in 1 2 3 4 5; do sh -c 'sleep 0.2 & exit'; done
        sleep 2
        grep -l '^State:.Z' /proc/[0-9]*/status
        echo none left";
    let outcome = tiny(context)?.shell(script).exits_with(0)?;
    said(&outcome, "none left\n", "")
}

fn what_is_left_running_does_not_hold_up_the_end(context: &Context) -> Result<()> {
    let outcome = tiny(context)?
        .shell("sleep 1000 & echo started")
        .exits_with(0)?;
    said(&outcome, "started\n", "")
}

fn a_reader_that_leaves_is_a_broken_pipe(context: &Context) -> Result<()> {
    let mvm = tiny(context)?.shell("trap '' PIPE; while echo more; do :; done 2>/dev/null; exit 6");
    let status = context.path("status");
    let output = Command::new("sh")
        .args(["-c", "{ \"$@\"; echo $? >\"$0\"; } | head -n 1"])
        .arg(&status)
        .arg(mvm.program())
        .args(mvm.finish())
        .stdin(Stdio::null())
        .output()?;
    ensure!(output.stdout == b"more\n", "{:?}", output.stdout);
    let status = fs::read_to_string(status)?;
    ensure!(status == "6\n", "the status is {status}");
    Ok(())
}

fn timeout(context: &Context) -> Result<()> {
    tiny(context)?
        .args("--timeout 10s")
        .command(["sleep", "1000"])
        .exits_with(124)?;
    Ok(())
}

fn a_panic_under_the_command(context: &Context) -> Result<()> {
    let outcome = tiny(context)?
        .shell("echo before; sleep 1; echo c >/proc/sysrq-trigger; sleep 10")
        .exits_with(123)?;
    outcome.says("before")?;
    // The console is not shown, but for its end where there is something to tell.
    let said = &outcome.stderr;
    let words = "mvm: the guest's kernel panicked\nmvm: the last lines of the guest's console:\n";
    ensure!(said.starts_with(words), "mvm says: {said}");
    ensure!(said.contains("sysrq: Trigger a crash"), "mvm says: {said}");
    Ok(())
}

fn a_power_off_under_the_command(context: &Context) -> Result<()> {
    let outcome = tiny(context)?
        .shell("echo before; echo '<0>last words' >/dev/kmsg; sleep 1; poweroff -f; sleep 10")
        .exits_with(125)?;
    outcome.says("before")?;
    let said = &outcome.stderr;
    let words = "mvm: the guest powered off before its command ended\nmvm: the last lines";
    ensure!(said.starts_with(words), "mvm says: {said}");
    ensure!(said.contains("last words"), "mvm says: {said}");
    Ok(())
}

/// A kernel that finds no root says so where it can be read.
fn a_root_that_is_none(context: &Context) -> Result<()> {
    let image = context.path("empty.img");
    fs::File::create(&image)?.set_len(1 << 20)?;
    let outcome = context
        .boot(Kernel::TinyElf)?
        .arg("--rootfs")
        .arg(image)
        .command(["true"])
        .exits_with(125)?;
    let words = "mvm: cannot find a file system that the kernel knows on /dev/vda: ";
    ensure!(
        outcome.stderr.starts_with(words),
        "mvm says: {}",
        outcome.stderr
    );
    Ok(())
}

fn the_image_is_changed_only_by_the_command(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    let run = |text: &str| {
        let mvm = context.boot(Kernel::TinyElf)?;
        mvm.arg("--rootfs").arg(&rootfs).shell(text).exits_with(0)
    };
    run("echo kept >/root/file")?;
    // Clean, so that what is read is what a mount would show.
    let outcome = run("cat /root/file; ls -a /")?;
    outcome.says("kept")?;
    outcome.does_not_say("mvm")?;
    // Its own init still boots.
    let outcome = context
        .script(Kernel::TinyElf, &rootfs, "facts")?
        .exits_with(0)?;
    outcome.says("checksum:")
}

fn a_terminal(context: &Context) -> Result<()> {
    let mvm = tiny(context)?.shell(
        "tty; stty size; echo err >&2; read -r line; echo \"heard $line\"; trap 'stty size; exit 4' WINCH; echo wait; while :; do sleep 0.1; done",
    );
    let mut vm = TerminalVm::spawn_sized(context, &mvm, 97, 31)?;
    vm.wait_for("/dev/pts/0")?;
    vm.wait_for("31 97")?;
    vm.wait_for("err")?;
    vm.is_raw()?;
    vm.type_in(b"hello\r")?;
    vm.wait_for("heard hello")?;
    vm.wait_for("wait")?;
    vm.resize(101, 41)?;
    vm.wait_for("41 101")?;
    vm.exits_with(4)
}

fn a_read_only_root(context: &Context) -> Result<()> {
    let mut rootfs = context.rootfs()?.into_os_string();
    rootfs.push(",ro");
    let outcome = context
        .boot(Kernel::TinyBzimage)?
        .arg("--rootfs")
        .arg(PathBuf::from(rootfs))
        .shell("touch /root/x || echo refused; touch /tmp/x && echo allowed")
        .exits_with(0)?;
    ensure!(outcome.stdout == "refused\nallowed\n", "{}", outcome.stdout);
    Ok(())
}

/// A server that is ended with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail for one that has ended, as they should.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Serves one address on `tap`, the last but for the host's.
fn dhcp_server(context: &Context, tap: &str) -> Result<Server> {
    let file = |name: &str| context.path(name).display().to_string();
    let settings = format!(
        "interface {tap}\nstart 10.0.0.50\nend 10.0.0.50\nlease_file {}\npidfile {}\n\
         opt subnet 255.255.255.0\nopt router {HOST}\nopt dns {HOST}\nopt lease 600\n",
        file("leases"),
        file("pid"),
    );
    let path = context.path("udhcpd.conf");
    fs::write(&path, settings)?;
    let mut command = Command::new("busybox");
    command.args(["udhcpd", "-f"]).arg(path);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    Ok(Server(child.map_err(|error| {
        Skip(format!("busybox, for its udhcpd: {error}"))
    })?))
}

/// And lo, always; and a card that nobody answers keeps no command from running.
fn a_network_by_dhcp(context: &Context) -> Result<()> {
    let script = "ip -4 addr show eth0 | grep -o 'inet [0-9./]*'
        ip route | grep -o 'default via [0-9.]*'
        cat /etc/resolv.conf
        ping -c 1 -W 20 10.0.0.1 >/dev/null && echo host answers
        ping -c 1 -W 20 127.0.0.1 >/dev/null && echo lo answers
        exit 0";
    lan::alone(|| {
        Tap::open("t0", false)?.stay(0)?;
        lan::give_addresses("t0")?;
        let guest = || Ok::<_, anyhow::Error>(tiny(context)?.args("--net tap=t0").shell(script));
        let outcome = guest()?.exits_with(0)?;
        let warning = "no DHCP server answers on interface eth0";
        ensure!(outcome.stderr.contains(warning), "{}", outcome.stderr);
        ensure!(outcome.stdout == "lo answers\n", "{}", outcome.stdout);

        let _server = dhcp_server(context, "t0")?;
        let outcome = guest()?.exits_with(0)?;
        let expected = "inet 10.0.0.50/24\ndefault via 10.0.0.1\nnameserver 10.0.0.1\n\
                        host answers\nlo answers\n";
        said(&outcome, expected, "")
    })
}

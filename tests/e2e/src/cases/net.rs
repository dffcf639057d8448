//! Network cards on taps: real drivers and the host's own network at the other end.

use std::env;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result, ensure};
use rustix::io::{FdFlags, fcntl_setfd};

use super::refusals::refused;
use super::tests;
use crate::context::{Context, Kernel};
use crate::lan::{self, Echo, HOST, HOST6, Tap};
use crate::vm::{Mvm, NOBODY, Outcome};

tests! { "net":
    LONG stock_ping_and_streams,
    LONG streams_both_ways,
    LONG nat_as_the_readme_has_it,
    LONG two_queue_pairs_on_two_cpus,
    SHORT large_packets,
    SHORT the_link_goes_down_and_comes_back,
    SHORT passed_as_a_descriptor,
    SHORT as_an_ordinary_user,
    SHORT one_tap_one_vm,
    SHORT refusals,
}

const MIB: usize = 1 << 20;

/// A guest that does something over a network card, quietly.
fn guest<'a>(context: &'a Context, kernel: Kernel, what: &str, card: &str) -> Result<Mvm<'a>> {
    let rootfs = context.rootfs()?;
    let mvm = context.script(kernel, &rootfs, &format!("net,{what}"))?;
    Ok(mvm.args("--log-level info --net").arg(card))
}

/// A tap that stays, with the host's addresses.
fn make_tap(name: &str, multi_queue: bool) -> Result<()> {
    Tap::open(name, multi_queue)?.stay(NOBODY)?;
    lan::give_addresses(name)
}

/// Whether three packets of each protocol were answered.
fn all_answered(outcome: &Outcome) -> Result<()> {
    for host in [HOST, HOST6] {
        outcome.says(&format!("{host} ping statistics"))?;
    }
    let answered = outcome
        .stdout
        .matches("3 packets received, 0% packet loss")
        .count();
    ensure!(answered == 2, "not all packets came back");
    Ok(())
}

fn stock_ping_and_streams(context: &Context) -> Result<()> {
    lan::alone(|| {
        make_tap("t0", false)?;
        let ping = guest(context, Kernel::StockBzimage, "ping", "tap=t0")?.exits_with(0)?;
        all_answered(&ping)?;
        stream(context, Kernel::StockBzimage, HOST, 20 * MIB)
    })
}

/// Streams `len` bytes to a guest and back, over the tap `t0`.
fn stream(context: &Context, kernel: Kernel, host: &str, len: usize) -> Result<()> {
    let echo = Echo::listen(host, 5000, len, context.deadline)?;
    let what = format!("stream,{host},5000");
    let mut vm = guest(context, kernel, &what, "tap=t0")?.spawn()?;
    let [there, back] = echo.serve()?;
    let outcome = vm.exits_with(0)?;
    println!(
        "    {} MiB over {host}: to the guest in {:.1} s, back in {:.1} s",
        len / MIB,
        there.as_secs_f64(),
        back.as_secs_f64()
    );
    ensure!(
        outcome.value("digest 5000")? == echo.digest(),
        "the guest received something else"
    );
    Ok(())
}

fn streams_both_ways(context: &Context) -> Result<()> {
    lan::alone(|| {
        make_tap("t0", false)?;
        stream(context, Kernel::TinyElf, HOST, 24 * MIB)?;
        stream(context, Kernel::TinyElf, HOST6, 24 * MIB)
    })
}

/// The lines of the first block of the README that has this in it, up to an empty one.
fn readme(text: &str) -> Result<Vec<&'static str>> {
    let blocks = include_str!("../../../../README.md").split("```\n");
    let block = blocks.skip(1).step_by(2).find(|block| block.contains(text));
    let lines = block.context("the README has changed")?.lines();
    Ok(lines.take_while(|line| !line.is_empty()).collect())
}

/// Runs what the README tells the user to run. Who runs this test is root, and busybox's shell would prefer an `ip` of
/// its own, which knows no taps.
fn run(command: &str) -> Result<()> {
    const MEANT: &str = "sudo() { \"$@\"; }\nip() { \"$IP\" \"$@\"; }\n";
    let path = env::var_os("PATH").unwrap_or_default();
    let mut programs = env::split_paths(&path).map(|directory| directory.join("ip"));
    let ip = programs.find(|ip| ip.is_file()).context("no ip")?;
    let output = Command::new("sh")
        .args(["-e", "-c", &format!("{MEANT}{command}")])
        .env("IP", ip)
        .env("USER", "root")
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command}: {}", said.trim());
    Ok(())
}

fn nat_as_the_readme_has_it(context: &Context) -> Result<()> {
    const LEN: usize = 8 * MIB;
    lan::alone(|| {
        let listen = || Echo::listen("203.0.113.2", 5000, LEN, context.deadline);
        lan::with_outside(listen, |echo| {
            let commands = readme("ip tuntap add")?;
            ensure!(commands.len() == 4, "not the four commands: {commands:?}");
            for command in commands {
                run(command)?;
            }
            let rootfs = context.rootfs()?;
            let mut vm = context
                .boot(Kernel::TinyElf)?
                .arg("--rootfs")
                .arg(rootfs)
                .args("--net tap=tap0")
                .spawn()?;
            vm.wait_for("powers off")?;
            for command in readme("ip route add default")? {
                vm.type_in(&format!("{command}\n"))?;
            }
            vm.type_in("/test/net stream 203.0.113.2 5000; exit\n")?;
            echo.serve()?;
            let outcome = vm.exits_with(0)?;
            outcome.says(&format!("digest 5000: {}", echo.digest()))
        })
    })
}

fn two_queue_pairs_on_two_cpus(context: &Context) -> Result<()> {
    lan::alone(|| {
        make_tap("t0", true)?;
        let echoes = [5000, 5002].map(|port| Echo::listen(HOST, port, 8 * MIB, context.deadline));
        let what = format!("streams,{HOST},5000");
        let mut vm = guest(context, Kernel::TinyElf, &what, "tap=t0,queues=2")?
            .args("--cpus 2 --io-threads 2")
            .spawn()?;
        let [one, other] = echoes;
        let (one, other) = (one?, other?);
        thread::scope(|scope| {
            let first = scope.spawn(|| one.serve());
            other.serve()?;
            first.join().unwrap_or_else(|_| Ok(Default::default()))
        })?;
        let outcome = vm.exits_with(0)?;
        ensure!(
            outcome.value("digest 5000")? == one.digest(),
            "not the same"
        );
        ensure!(
            outcome.value("digest 5002")? == other.digest(),
            "not the same"
        );
        // Each queue, both ways: more than the odd packet that a kernel sends by itself.
        for pair in 0..2 {
            let [received, sent] = frames_of(&outcome, pair)?;
            println!("    queue pair {pair}: {received} frames received, {sent} sent");
            ensure!(
                received > 20 && sent > 20,
                "pair {pair} hardly carried anything"
            );
        }
        Ok(())
    })
}

/// How many frames a queue pair received and sent, by mvm's last words on it.
fn frames_of(outcome: &Outcome, pair: u16) -> Result<[u64; 2]> {
    let start = format!("tap t0, queue pair {pair}: ");
    let line = outcome.stderr.lines().rev();
    let line = line.filter_map(|line| line.split_once(&start)).next();
    let (_, said) = line.with_context(|| format!("no words on pair {pair}"))?;
    let count = |part: &str| part.split_whitespace().next()?.parse().ok();
    let mut counts = said.split(", ").map(count);
    match (counts.next().flatten(), counts.next().flatten()) {
        (Some(received), Some(sent)) => Ok([received, sent]),
        _ => anyhow::bail!("not counts: {said}"),
    }
}

fn large_packets(context: &Context) -> Result<()> {
    lan::alone(|| {
        make_tap("t0", false)?;
        let outcome =
            guest(context, Kernel::TinyElf, "ping,8000", "tap=t0,mtu=9000")?.exits_with(0)?;
        all_answered(&outcome)?;
        ensure!(outcome.value("mtu")? == "9000", "the guest has another MTU");
        ensure!(
            outcome.value("fragments")? == "0",
            "packets were taken apart"
        );
        let mtu = fs::read_to_string("/sys/class/net/t0/mtu")?;
        ensure!(mtu.trim() == "9000", "the tap has an MTU of {mtu}");
        Ok(())
    })
}

fn the_link_goes_down_and_comes_back(context: &Context) -> Result<()> {
    lan::alone(|| {
        make_tap("t0", false)?;
        let mut vm = guest(context, Kernel::TinyElf, "link", "tap=t0")?.spawn()?;
        vm.wait_for("the link is 1")?;
        lan::ip("link set t0 down")?;
        vm.wait_for("the link is 0")?;
        lan::ip("link set t0 up")?;
        let outcome = vm.exits_with(0)?;
        outcome.says("3 packets received, 0% packet loss")
    })
}

/// By somebody who may not make a tap.
fn passed_as_a_descriptor(context: &Context) -> Result<()> {
    lan::alone(|| {
        let tap = Tap::open("t0", false)?;
        lan::give_addresses("t0")?;
        fcntl_setfd(&tap.0, FdFlags::empty())?;
        let card = format!("fd={},mac=02:aa:bb:cc:dd:ee", tap.0.as_raw_fd());
        let mvm = guest(context, Kernel::TinyElf, "ping", &card)?.ordinary(context)?;
        let outcome = mvm.exits_with(0)?;
        all_answered(&outcome)?;
        ensure!(
            outcome.value("address")? == "02:aa:bb:cc:dd:ee",
            "another address"
        );
        Ok(())
    })
}

fn as_an_ordinary_user(context: &Context) -> Result<()> {
    lan::alone(|| {
        make_tap("t0", false)?;
        let mvm = guest(context, Kernel::TinyElf, "ping", "tap=t0")?.ordinary(context)?;
        let first = mvm.exits_with(0)?;
        all_answered(&first)?;
        // The address comes from the tap's name, and stays.
        let second = mvm.exits_with(0)?;
        ensure!(
            first.value("address")? == second.value("address")?,
            "it changed"
        );
        Ok(())
    })
}

fn one_tap_one_vm(context: &Context) -> Result<()> {
    lan::alone(|| {
        make_tap("t0", false)?;
        make_tap("t1", true)?;
        let first = guest(context, Kernel::TinyElf, "link", "tap=t0")?
            .args("--net tap=t1,queues=2")
            .spawn()?;
        first.wait_for("the link is 1")?;
        for tap in ["t0", "t1"] {
            let second = context.boot(Kernel::TinyElf)?;
            let words = format!("tap {tap} is in use by another process");
            refused(&second.args("--net").arg(format!("tap={tap}")), &words)?;
        }
        // One that mvm makes is gone with it.
        refused(
            &context.mvm().args("--kernel /dev/null --net tap=t2"),
            "kernel",
        )?;
        ensure!(
            !Path::new("/sys/class/net/t2").exists(),
            "t2 is still there"
        );
        Ok(())
    })
}

fn refusals(context: &Context) -> Result<()> {
    lan::alone(|| {
        make_tap("t0", false)?;
        make_tap("t1", false)?;
        let tiny =
            |card: &str| -> Result<_> { Ok(context.boot(Kernel::TinyElf)?.arg("--net").arg(card)) };
        for (card, words) in [
            ("tap=lo", "lo is a network interface of another kind"),
            (
                "tap=t0,queues=2",
                "tap t0 was made for one queue and 2 are asked for",
            ),
            (
                "tap=abcdefghijklmnop",
                "'abcdefghijklmnop' is not a tap's name",
            ),
            ("tap=t0,mac=01:00:00:00:00:00", "is a multicast address"),
            ("tap=t0,mtu=67", "an MTU of '67' is impossible"),
            ("tap=t0,queues=0", "'0' queue pairs asked for"),
            ("tap=t0,queue=2", "did you mean 'queues'?"),
            ("fd=77", "descriptor 77 is not open"),
        ] {
            refused(&tiny(card)?, words)?;
        }
        refused(
            &tiny("tap=t0")?.args("--net tap=t0"),
            "tap t0 is given twice",
        )?;
        // Somebody without rights is told what would have to be done.
        for (card, words) in [
            ("tap=t9", "'sudo ip tuntap add dev t9 mode tap user $USER'"),
            (
                "tap=t9,queues=2",
                "'sudo ip tuntap add dev t9 mode tap user $USER multi_queue'",
            ),
            ("tap=t0,mtu=9000", "'sudo ip link set t0 mtu 9000'"),
        ] {
            refused(&tiny(card)?.user(NOBODY), words)?;
        }
        Tap::open("t2", false)?.stay(1)?;
        refused(
            &tiny("tap=t2")?.user(NOBODY),
            "tap t2 belongs to another user",
        )
    })
}

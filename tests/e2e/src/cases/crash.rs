//! mvm killed while its guest writes: what the guest had flushed is there, and every image is in order.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use probe::talk::random;
use rustix::process::Signal;

use super::image::qemu_img;
use super::tests;
use crate::context::{Context, Kernel};
use crate::vm::{Vm, until};

tests! { "crash":
    LONGEST killed_while_it_flushes_by_io_uring,
    LONGEST killed_while_it_flushes_by_system_calls,
}

/// Kills in each of the two tests.
const KILLS: u32 = 25;

/// Disks of one VM, each with a file system of its own, and what is known to be kept on each.
struct Disks {
    /// Their options, without how they are to be served.
    options: Vec<String>,
    qcow2: PathBuf,
    kept: Vec<u64>,
}

impl Disks {
    /// A raw image, an overlay and a qcow2 image with a backing file.
    fn make(context: &Context) -> Result<Self> {
        // Not the original, whose file system may be one that cannot go around the page cache.
        let (base, raw) = (context.path("base.ext4"), context.rootfs()?);
        fs::copy(&raw, &base)?;
        let base = base.to_str().context("a path that is not UTF-8")?;
        let qcow2 = context.path("disk.qcow2");
        let create = format!("create -q -f qcow2 -F raw -b {base}");
        qemu_img(&create, &qcow2)?;
        let overlay = context.path("overlay");
        Ok(Self {
            options: vec![
                raw.display().to_string(),
                format!("{base},overlay={}", overlay.display()),
                qcow2.display().to_string(),
            ],
            qcow2,
            kept: vec![0; 3],
        })
    }

    /// Boots a guest that looks for what was kept, and then writes.
    fn boot(&self, context: &Context, options: &str) -> Result<Vm> {
        let mut rootfs = context.guest("rootfs").into_os_string();
        rootfs.push(",ro");
        let last: Vec<_> = self.kept.iter().map(u64::to_string).collect();
        let script = format!("crash,{}", last.join(","));
        let mvm = context.script(Kernel::TinyElf, Path::new(&rootfs), &script)?;
        // qcow2 is served its own way, whatever the engine.
        let (_, cache) = options.split_once(',').unwrap_or_default();
        let mvm = self.options.iter().fold(mvm, |mvm, disk| {
            let its = if disk.ends_with(".qcow2") {
                cache
            } else {
                options
            };
            mvm.disk(Path::new(disk), &format!(",{its}"))
        });
        mvm.append("quiet").args("--mem 64M").spawn()
    }

    /// Takes down what the guest has reported, up to the last whole line; how many reports there were.
    fn note(&mut self, said: &str) -> usize {
        let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let mut reports = 0;
        for line in whole.lines() {
            let mut words = line.trim_end().split(' ');
            let (Some("kept"), Some(index), Some(number), None) =
                (words.next(), words.next(), words.next(), words.next())
            else {
                continue;
            };
            let kept = index
                .parse()
                .ok()
                .and_then(|index: usize| self.kept.get_mut(index));
            if let (Some(kept), Ok(number)) = (kept, number.parse()) {
                *kept = number;
                reports += 1;
            }
        }
        reports
    }
}

/// Kills mvm again and again, each time after another number of reports.
fn killed(context: &Context, options: [&str; 2]) -> Result<()> {
    let mut disks = Disks::make(context)?;
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for kill in 0..KILLS {
        let mut vm = disks.boot(context, options[kill as usize % 2])?;
        let told = |error: anyhow::Error| error.context(format!("after {kill} kills"));
        let good = vm.wait_for_line("all there: ").map_err(told)?;
        if good != "yes" {
            bail!("after {kill} kills something is lost:\n{}", vm.stdout());
        }
        let random = random(&mut state);
        let enough = random % 40 + 1;
        until(context.deadline, "report", || {
            let said = vm.stdout();
            let reports = said
                .lines()
                .filter(|line| line.starts_with("kept "))
                .count();
            Ok(reports as u64 > enough)
        })?;
        // Anywhere between two reports.
        thread::sleep(Duration::from_micros(random % 20_000));
        vm.signal(Signal::KILL)?;
        let outcome = vm.wait()?;
        ensure!(outcome.status.code().is_none(), "it ended by itself");
        disks.note(&outcome.stdout);
        // A kill between a cluster's count and the first reference to it costs the cluster's space, and no more:
        // anything else is no leak, is not repaired, and fails.
        qemu_img("check -q -r leaks", &disks.qcow2).map_err(told)?;
        qemu_img("check -q", &disks.qcow2).map_err(told)?;
    }
    println!("{KILLS} kills; kept: {:?}", disks.kept);
    ensure!(disks.kept.iter().all(|kept| *kept > u64::from(KILLS)));
    // And after the last.
    let vm = disks.boot(context, options[0])?;
    ensure!(vm.wait_for_line("all there: ")? == "yes", "{}", vm.stdout());
    Ok(())
}

fn killed_while_it_flushes_by_io_uring(context: &Context) -> Result<()> {
    killed(
        context,
        [
            "engine=io_uring,cache=writeback",
            "engine=io_uring,cache=none",
        ],
    )
}

fn killed_while_it_flushes_by_system_calls(context: &Context) -> Result<()> {
    killed(
        context,
        ["engine=sync,cache=writeback", "engine=sync,cache=none"],
    )
}

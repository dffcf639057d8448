//! `cargo xtask bench`: what mvm costs, beside the floor (`resources/bench/floor.c`: the same calls to KVM with nothing
//! around them), beside QEMU's microvm and beside fio, in one run, in turns. Times of different runs are not comparable;
//! ratios are.

mod block;
mod boot;
mod chart;
mod density;
mod end;
mod exits;
pub mod memory;
mod net;
pub mod process;
pub mod programs;
mod start;
mod stats;
mod table;
mod vsock;
mod weight;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::debian;
use crate::progress::Step;
use crate::workspace;
use weight::Weight;

/// What is measured, and how often.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Families to measure; all of them where none is named.
    #[arg(value_enum)]
    names: Vec<Family>,
    /// Samples of each, after one that is not counted.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(3..))]
    samples: u32,
    /// Where results are left: `bench.json`, and `bench-NAME.svg` for each family.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// What belongs together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Family {
    /// Spawn to the guest's first byte.
    Start,
    /// Memory of an idle VMM.
    Memory,
    /// Port and MMIO exits.
    Exits,
    /// The guest's last byte to the end of the process.
    Teardown,
    /// A disk, beside fio on the same file.
    Block,
    /// Frames through a tap, beside a loop of reads or writes.
    Net,
    /// Streams, beside a socketpair.
    Vsock,
    /// Whole kernels in the lab, to init.
    Boot,
    /// A hundred idle VMs: memory and wake-ups.
    Density,
}

/// What the measurements are made with.
#[derive(Debug)]
pub struct Tools {
    mvm: PathBuf,
    floor: PathBuf,
    /// QEMU, where this machine has it.
    qemu: Option<PathBuf>,
    samples: u32,
    directory: PathBuf,
}

/// How many exits the guests of that family make.
const EXITS: u32 = 20_000;

/// Measures, prints a table and leaves the results behind.
pub fn bench(options: &Options) -> Result<()> {
    if let Err(error) = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
    {
        bail!("nothing can be measured here: /dev/kvm does not open: {error}");
    }
    let out = options
        .out
        .clone()
        .unwrap_or_else(|| workspace::target().join("bench"));
    fs::create_dir_all(&out).with_context(|| out.display().to_string())?;
    let tools = Tools::prepare(options.samples)?;
    let families = if options.names.is_empty() {
        Family::value_variants()
    } else {
        &options.names
    };
    let mut all = Vec::new();
    for family in families {
        let step = Step::begin(format!("measuring {}", family.name()));
        let cases = match family {
            Family::Start => start::cases(&tools),
            Family::Memory => memory::cases(&tools),
            Family::Exits => exits::cases(&tools),
            Family::Teardown => end::cases(&tools),
            Family::Block => block::cases(&tools),
            Family::Net => net::cases(&tools),
            Family::Vsock => vsock::cases(&tools),
            Family::Boot => boot::cases(&tools),
            Family::Density => density::cases(&tools),
        }
        .with_context(|| family.name())?;
        step.done();
        if cases.is_empty() {
            continue;
        }
        println!("{}", table::text(&family.name(), &cases));
        let picture = out.join(format!("bench-{}.svg", family.name()));
        chart::draw(&picture, &family.name(), &cases)?;
        all.push((family.name(), cases));
    }
    let weight = Weight::of(&tools.mvm)?;
    let json = out.join("bench.json");
    fs::write(&json, table::json(&all, weight)?).with_context(|| json.display().to_string())?;
    println!("{weight}");
    println!("results and pictures: {}", out.display());
    Ok(())
}

impl Family {
    fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

impl Tools {
    fn prepare(samples: u32) -> Result<Self> {
        // As `cargo xtask build` makes it. Pages of a file that is not on disk yet would count as written by
        // whoever runs it.
        let mvm = workspace::release("mvm")?;
        fs::File::open(&mvm)?.sync_all()?;
        let directory = workspace::target().join("bench-guests");
        fs::create_dir_all(&directory)?;
        let floor = programs::host(&directory, "floor")?;
        for guest in ["IDLE", "IDLE_PVH", "END", "PORT", "MMIO"] {
            programs::guest(&directory, guest, EXITS)?;
        }
        Ok(Self {
            mvm,
            floor,
            qemu: debian::find("qemu-system-x86_64"),
            samples,
            directory,
        })
    }

    /// mvm with a guest of 128 MiB.
    fn mvm(&self, guest: &str) -> Command {
        let mut command = Command::new(&self.mvm);
        command
            .args(["--mem", "128M", "--kernel"])
            .arg(self.directory.join(guest));
        command
    }

    /// QEMU's microvm with the same, where there is a QEMU.
    fn qemu(&self, guest: &str) -> Option<Command> {
        let mut command = Command::new(self.qemu.as_ref()?);
        command
            .args(["-M", "microvm,acpi=off,rtc=off", "-accel", "kvm"])
            .args([
                "-cpu",
                "host",
                "-m",
                "128",
                "-nodefaults",
                "-no-user-config",
            ])
            .args(["-display", "none", "-serial", "stdio", "-kernel"])
            .arg(self.directory.join(guest));
        Some(command)
    }

    /// The floor with the same.
    fn floor(&self, guest: &str) -> Command {
        let mut command = Command::new(&self.floor);
        command.arg(self.directory.join(guest)).arg("128");
        command
    }
}

/// Takes a sample of each by turns, so that what disturbs one disturbs the other; the first of each is not counted.
fn by_turns(
    samples: u32,
    mut one: impl FnMut() -> Result<f64>,
    mut other: impl FnMut() -> Result<f64>,
) -> Result<(Vec<f64>, Vec<f64>)> {
    let (mut ones, mut others) = (Vec::new(), Vec::new());
    for sample in 0..=samples {
        let (a, b) = (one()?, other()?);
        if sample > 0 {
            ones.push(a);
            others.push(b);
        }
    }
    Ok((ones, others))
}

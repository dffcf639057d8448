//! Kernels come up, whatever their form, with the CPUs and the memory they were given.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest, Sha256};

use super::tests;
use crate::context::{Context, Kernel};
use crate::vm::Outcome;

tests! { "boot":
    LONG stock_bzimage_with_two_cpus,
    LONG stock_elf_with_one_cpu,
    LONG stock_with_four_cpus,
    SHORT tiny_elf,
    SHORT tiny_bzimage,
    SHORT tiny_with_two_cpus,
    SHORT tiny_with_four_cpus,
    SHORT tiny_with_an_initrd,
    SHORT tiny_in_little_memory,
    SHORT tiny_with_memory_above_4_gib,
    SHORT tiny_without_acpi,
    SHORT time_goes_on,
}

/// What the `facts` script of the root file system found out.
#[derive(Debug)]
struct Facts<'a> {
    cpus: u32,
    kib: u64,
    root: &'a str,
}

/// The facts, once the checksum that was read back from the disk is right.
fn facts(outcome: &Outcome) -> Result<Facts<'_>> {
    let mut written = String::new();
    for number in 1..=50_000 {
        writeln!(written, "{number}")?;
    }
    let digest: String = Sha256::digest(written)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let checksum = outcome.value("checksum")?;
    ensure!(
        checksum == digest,
        "the disk gave back {checksum}, and {digest} was written"
    );
    outcome.value("kernel")?;
    let memory = outcome.value("memory")?;
    Ok(Facts {
        cpus: outcome.value("cpus")?.parse()?,
        kib: memory
            .strip_suffix(" KiB")
            .with_context(|| memory.to_owned())?
            .parse()?,
        root: outcome.value("root")?,
    })
}

fn boots(context: &Context, kernel: Kernel, cpus: u32, options: &str) -> Result<()> {
    let rootfs = context.rootfs()?;
    let outcome = context
        .script(kernel, &rootfs, "facts")?
        .args(&format!("--cpus {cpus} {options}"))
        .exits_with(0)?;
    let facts = facts(&outcome)?;
    ensure!(
        facts.cpus == cpus,
        "the guest found {} CPUs, not {cpus}",
        facts.cpus
    );
    ensure!(
        facts.root == "/dev/vda ext4 rw",
        "the root is {}",
        facts.root
    );
    Ok(())
}

/// As [`boots`], with a job pinned to each CPU.
fn boots_and_works(context: &Context, kernel: Kernel, cpus: u32, options: &str) -> Result<()> {
    let rootfs = context.rootfs()?;
    let outcome = context
        .script(kernel, &rootfs, "smp")?
        .args(&format!("--cpus {cpus} {options}"))
        .exits_with(0)?;
    ensure!(outcome.value("cpus")?.parse() == Ok(cpus));
    for cpu in 0..cpus {
        outcome.says(&format!("cpu {cpu} counted to 2000"))?;
    }
    Ok(())
}

fn stock_bzimage_with_two_cpus(context: &Context) -> Result<()> {
    boots(context, Kernel::StockBzimage, 2, "--mem 512M")
}

fn stock_elf_with_one_cpu(context: &Context) -> Result<()> {
    boots(context, Kernel::StockElf, 1, "")
}

fn stock_with_four_cpus(context: &Context) -> Result<()> {
    boots_and_works(context, Kernel::StockBzimage, 4, "--mem 512M")
}

fn tiny_elf(context: &Context) -> Result<()> {
    boots(context, Kernel::TinyElf, 1, "")
}

fn tiny_bzimage(context: &Context) -> Result<()> {
    boots(context, Kernel::TinyBzimage, 1, "")
}

fn tiny_with_two_cpus(context: &Context) -> Result<()> {
    boots_and_works(context, Kernel::TinyElf, 2, "")
}

fn tiny_with_four_cpus(context: &Context) -> Result<()> {
    boots_and_works(context, Kernel::TinyBzimage, 4, "")
}

/// The initrd mounts the root itself, so this shows that it arrived whole.
fn tiny_with_an_initrd(context: &Context) -> Result<()> {
    let initrd = context.guest("initrd");
    let rootfs = context.rootfs()?;
    let outcome = context
        .script(Kernel::TinyElf, &rootfs, "facts")?
        .arg("--initrd")
        .arg(initrd)
        .exits_with(0)?;
    outcome.says("Run /init as init process")?;
    facts(&outcome)?;
    Ok(())
}

fn tiny_in_little_memory(context: &Context) -> Result<()> {
    boots(context, Kernel::TinyElf, 1, "--mem 48M")
}

/// Memory is split around the 32-bit hole, and taken from the host only as the guest touches it.
fn tiny_with_memory_above_4_gib(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    let outcome = context
        .script(Kernel::TinyElf, &rootfs, "facts")?
        .args("--mem 5G")
        .exits_with(0)?;
    let found = facts(&outcome)?.kib;
    ensure!(
        (4_900_000..=5 << 20).contains(&found),
        "the guest found {found} KiB of 5 GiB"
    );
    Ok(())
}

/// Without tables the kernel learns of its disk from the command line.
fn tiny_without_acpi(context: &Context) -> Result<()> {
    boots(context, Kernel::TinyElf, 1, "--no-acpi")
}

fn time_goes_on(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    let outcome = context
        .script(Kernel::TinyElf, &rootfs, "ticks")?
        .exits_with(0)?;
    let slept = outcome.value("slept")?;
    let milliseconds: u32 = slept.trim_end_matches(" ms").parse()?;
    // At least what was asked for; how much more depends on how busy the host is.
    ensure!(
        (990..20_000).contains(&milliseconds),
        "ten sleeps of 100 ms took {milliseconds} ms"
    );
    Ok(())
}

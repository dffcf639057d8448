//! Disks keep what is written to them, and refuse what they should.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Result, ensure};

use super::tests;
use crate::context::{Context, Kernel};

tests! { "disk":
    LONG stock_write_then_read_after_a_reboot,
    SHORT write_then_read_after_a_reboot,
    SHORT full,
    SHORT read_only_root,
    SHORT several,
    SHORT from_end_to_end_by_system_calls,
    SHORT from_end_to_end_by_io_uring,
    SHORT from_end_to_end_around_the_page_cache,
    SHORT from_end_to_end_around_the_page_cache_by_system_calls,
    SHORT discard,
    SHORT trim,
    SHORT one_image_one_writer,
    SHORT one_image_many_readers,
}

const MIB: u64 = 1 << 20;

fn write_then_read(context: &Context, kernel: Kernel) -> Result<()> {
    let rootfs = context.rootfs()?;
    let first = context
        .script(kernel, &rootfs, "disk-write")?
        .args("--cpus 2")
        .exits_with(0)?;
    let second = context
        .script(kernel, &rootfs, "disk-check")?
        .args("--cpus 2")
        .exits_with(0)?;
    second.says("/data/blob: OK")?;
    ensure!(
        first.value("wrote")? == second.value("read")?,
        "the second boot read something else"
    );
    Ok(())
}

fn stock_write_then_read_after_a_reboot(context: &Context) -> Result<()> {
    write_then_read(context, Kernel::StockBzimage)
}

fn write_then_read_after_a_reboot(context: &Context) -> Result<()> {
    write_then_read(context, Kernel::TinyElf)
}

fn full(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    let outcome = context
        .script(Kernel::TinyElf, &rootfs, "disk-full")?
        .exits_with(0)?;
    outcome.says("No space left on device")?;
    outcome.says("after the flood")?;
    Ok(())
}

fn read_only_root(context: &Context) -> Result<()> {
    // The original itself: a write would be seen by every other test.
    let rootfs = context.guest("rootfs");
    let before = fs::metadata(&rootfs)?.modified()?;
    let mut option = rootfs.clone().into_os_string();
    option.push(",ro");
    let outcome = context
        .script(Kernel::TinyElf, Path::new(&option), "read-only")?
        .exits_with(0)?;
    outcome.says("disk read-only: 1")?;
    outcome.says("Read-only file system")?;
    outcome.says("readable")?;
    outcome.does_not_say("remounted rw")?;
    ensure!(
        fs::metadata(&rootfs)?.modified()? == before,
        "the image was written"
    );
    Ok(())
}

fn several(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    let (second, third) = (
        context.image("second.img", 3 * MIB)?,
        context.image("third.img", 512)?,
    );
    let outcome = context
        .script(Kernel::TinyElf, &rootfs, "disks")?
        .disk(&second, ",serial=data-42")
        .disk(&third, ",ro,serial=tiny")
        .exits_with(0)?;
    outcome.says(&format!("disk vda: {} ro=0", fs::metadata(&rootfs)?.len()))?;
    outcome.says("disk vdb: 3145728 ro=0 serial=data-42")?;
    outcome.says("disk vdc: 512 ro=1 serial=tiny")?;
    Ok(())
}

fn from_end_to_end(context: &Context, options: &str) -> Result<()> {
    let rootfs = context.rootfs()?;
    let disk = context.image("disk.img", 4 * MIB)?;
    let outcome = context
        .script(Kernel::TinyElf, &rootfs, "disk-raw,vdb,4")?
        .args("--cpus 2")
        .disk(&disk, options)
        .exits_with(0)?;
    outcome.says("raw disk vdb: same")?;
    Ok(())
}

fn from_end_to_end_by_system_calls(context: &Context) -> Result<()> {
    from_end_to_end(context, ",engine=sync")
}

fn from_end_to_end_by_io_uring(context: &Context) -> Result<()> {
    from_end_to_end(context, ",engine=io_uring")
}

fn from_end_to_end_around_the_page_cache(context: &Context) -> Result<()> {
    from_end_to_end(context, ",engine=io_uring,cache=none")
}

fn from_end_to_end_around_the_page_cache_by_system_calls(context: &Context) -> Result<()> {
    from_end_to_end(context, ",engine=sync,cache=none")
}

fn discard(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    let disk = context.image("disk.img", 4 * MIB)?;
    let outcome = context
        .script(Kernel::TinyElf, &rootfs, "discard,vdb")?
        .disk(&disk, "")
        .exits_with(0)?;
    outcome.says("discarded")?;
    ensure!(
        outcome.value("bytes left")? == "0",
        "discarded sectors do not read as zeroes"
    );
    let allocated = fs::metadata(&disk)?.blocks() * 512;
    ensure!(
        allocated < MIB,
        "{allocated} bytes of the image are still allocated"
    );
    Ok(())
}

fn trim(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    let outcome = context
        .script(Kernel::TinyElf, &rootfs, "trim")?
        .exits_with(0)?;
    outcome.says("trimmed")?;
    let metadata = fs::metadata(&rootfs)?;
    let allocated = metadata.blocks() * 512;
    ensure!(
        allocated < metadata.len() / 2,
        "{allocated} of {} bytes are still allocated",
        metadata.len()
    );
    Ok(())
}

fn one_image_one_writer(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    let mut first = context.script(Kernel::TinyElf, &rootfs, "wait")?.spawn()?;
    first.wait_for("waiting")?;
    let second = context
        .script(Kernel::TinyElf, &rootfs, "poweroff")?
        .exits_with(125)?;
    let name = rootfs.display().to_string();
    ensure!(
        second.stderr.contains(&name),
        "the refusal does not name the image: {}",
        second.stderr
    );
    ensure!(
        second.stderr.trim().lines().count() == 1,
        "not one line: {}",
        second.stderr
    );
    // The first one is none the worse for it, and gives the image free at its end.
    first.signal(rustix::process::Signal::TERM)?;
    first.exits_with(0)?;
    context
        .script(Kernel::TinyElf, &rootfs, "poweroff")?
        .exits_with(0)?;
    Ok(())
}

fn one_image_many_readers(context: &Context) -> Result<()> {
    let mut rootfs = context.rootfs()?.into_os_string();
    rootfs.push(",ro");
    let rootfs = Path::new(&rootfs);
    let mut first = context.script(Kernel::TinyElf, rootfs, "wait")?.spawn()?;
    first.wait_for("waiting")?;
    context
        .script(Kernel::TinyElf, rootfs, "poweroff")?
        .exits_with(0)?;
    first.signal(rustix::process::Signal::TERM)?;
    first.exits_with(0)?;
    Ok(())
}

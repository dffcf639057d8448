//! Copy-on-write overlays: the image stays as it is, and what is written is where it was to be.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use sha2::{Digest, Sha256};

use super::tests;
use crate::context::{Context, Kernel};

tests! { "overlay":
    SHORT in_memory_shared_by_two,
    SHORT in_a_file_found_again,
    SHORT around_the_page_cache,
    SHORT of_another_image,
}

/// The root file system that all tests share, with an option: a write to it would be seen by every test.
fn original(context: &Context, options: &str) -> PathBuf {
    let mut path = context.guest("rootfs").into_os_string();
    path.push(options);
    path.into()
}

fn with_overlay(base: &Path, overlay: &Path) -> PathBuf {
    let mut option = OsString::from(base);
    option.push(",overlay=");
    option.push(overlay);
    option.into()
}

fn digest(path: &Path) -> Result<Vec<u8>> {
    Ok(Sha256::digest(fs::read(path)?).to_vec())
}

fn in_memory_shared_by_two(context: &Context) -> Result<()> {
    let base = context.guest("rootfs");
    let before = digest(&base)?;
    let rootfs = original(context, ",overlay");
    let mut first = context.script(Kernel::TinyElf, &rootfs, "wait")?.spawn()?;
    first.wait_for("waiting")?;
    // A second VM on the same image, writing.
    let second = context
        .script(Kernel::TinyElf, &rootfs, "disk-write")?
        .exits_with(0)?;
    second.value("wrote")?;
    first.signal(rustix::process::Signal::TERM)?;
    first.exits_with(0)?;
    // Nothing of it is left for a third.
    let third = context
        .script(Kernel::TinyElf, &rootfs, "disk-check")?
        .exits_with(0)?;
    third.does_not_say("/data/blob: OK")?;
    ensure!(digest(&base)? == before, "the image was written");
    Ok(())
}

fn found_again(context: &Context, base: &Path, options: &str) -> Result<()> {
    let before = digest(base)?;
    let overlay = context.path("overlay");
    let mut rootfs = with_overlay(base, &overlay).into_os_string();
    rootfs.push(options);
    let rootfs = Path::new(&rootfs);
    let first = context
        .script(Kernel::TinyElf, rootfs, "disk-write")?
        .exits_with(0)?;
    let second = context
        .script(Kernel::TinyElf, rootfs, "disk-check")?
        .exits_with(0)?;
    second.says("/data/blob: OK")?;
    ensure!(first.value("wrote")? == second.value("read")?);
    ensure!(digest(base)? == before, "the image was written");
    let metadata = fs::metadata(&overlay)?;
    ensure!(
        metadata.blocks() * 512 < metadata.len() / 2,
        "the overlay is not sparse: {} of {} bytes",
        metadata.blocks() * 512,
        metadata.len()
    );
    Ok(())
}

fn in_a_file_found_again(context: &Context) -> Result<()> {
    found_again(context, &context.guest("rootfs"), "")
}

fn around_the_page_cache(context: &Context) -> Result<()> {
    found_again(context, &context.rootfs()?, ",cache=none")
}

fn of_another_image(context: &Context) -> Result<()> {
    let overlay = context.path("overlay");
    let base = context.rootfs()?;
    let run =
        |base: &Path| context.script(Kernel::TinyElf, &with_overlay(base, &overlay), "poweroff");
    run(&base)?.exits_with(0)?;
    let other = context.image("other.img", 24 << 20)?;
    let before = digest(&overlay)?;
    let refused = run(&other)?.exits_with(125)?;
    ensure!(
        refused
            .stderr
            .contains("is an overlay of another image than"),
        "{}",
        refused.stderr
    );
    ensure!(refused.stderr.trim().lines().count() == 1);
    ensure!(digest(&overlay)? == before, "the overlay was changed");
    // The other way round: an image is no overlay.
    let rootfs = with_overlay(&base, &other);
    let refused = context
        .script(Kernel::TinyElf, &rootfs, "poweroff")?
        .exits_with(125)?;
    ensure!(
        refused.stderr.contains("is not an overlay of mvm's"),
        "{}",
        refused.stderr
    );
    // A setting that is refused makes no file.
    let never = context.path("never");
    context
        .script(Kernel::TinyElf, &with_overlay(&base, &never), "poweroff")?
        .args("--mem 1M")
        .exits_with(125)?;
    ensure!(
        !never.exists(),
        "an overlay was made for a VM that was refused"
    );
    Ok(())
}

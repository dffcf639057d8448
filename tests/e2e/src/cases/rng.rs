//! The guest's source of entropy: there by default, and absent where it is switched off.

use anyhow::{Result, ensure};

use super::tests;
use crate::context::{Context, Kernel};

tests! { "rng":
    SHORT there_by_default,
    SHORT off,
    SHORT stock_finds_it,
}

/// SHA-256 of nothing, which is what a source that gives no bytes comes to.
const NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn draws(context: &Context, kernel: Kernel) -> Result<()> {
    let rootfs = context.rootfs()?;
    let outcome = context.script(kernel, &rootfs, "rng")?.exits_with(0)?;
    let source = outcome.value("rng")?;
    ensure!(source.starts_with("virtio_rng"), "the source is '{source}'");
    let (first, second) = (outcome.value("first")?, outcome.value("second")?);
    ensure!(first != NOTHING, "no bytes came");
    ensure!(first != second, "the same bytes came twice");
    Ok(())
}

fn there_by_default(context: &Context) -> Result<()> {
    draws(context, Kernel::TinyElf)
}

fn stock_finds_it(context: &Context) -> Result<()> {
    draws(context, Kernel::StockBzimage)
}

fn off(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    let outcome = context
        .script(Kernel::TinyElf, &rootfs, "rng")?
        .args("--rng off")
        .exits_with(0)?;
    let source = outcome.value("rng")?;
    ensure!(source == "none", "the source is '{source}'");
    Ok(())
}

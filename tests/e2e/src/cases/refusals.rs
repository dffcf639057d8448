//! What cannot be booted is refused before any vCPU runs, in one line, with status 125.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::tests;
use crate::context::{Context, Kernel};
use crate::vm::Mvm;

tests! { "refusals":
    SHORT kernels,
    SHORT truncated_kernels,
    SHORT initrds,
    SHORT memory,
    SHORT command_lines,
    SHORT disks,
    SHORT options,
}

/// Fails unless mvm says one line with this in it, and nothing on the console.
pub fn refused(mvm: &Mvm<'_>, text: &str) -> Result<()> {
    let line = mvm.to_line();
    let outcome = mvm.exits_with(125).with_context(|| line.clone())?;
    let said = outcome.stderr.trim();
    ensure!(said.lines().count() == 1, "{line}: not one line: {said}");
    ensure!(said.contains(text), "{line}: no '{text}' in: {said}");
    ensure!(
        outcome.stdout.is_empty(),
        "{line}: the guest ran: {}",
        outcome.stdout
    );
    Ok(())
}

fn kernel<'a>(context: &'a Context, path: &Path) -> Mvm<'a> {
    context.mvm().arg("--kernel").arg(path)
}

fn kernels(context: &Context) -> Result<()> {
    let file = |name: &str, bytes: &[u8]| -> Result<_> {
        let path = context.path(name);
        fs::write(&path, bytes)?;
        Ok(path)
    };
    refused(&kernel(context, &context.path("missing")), "missing")?;
    refused(
        &kernel(context, &file("text", &b"#!/bin/sh\n".repeat(100))?),
        "text",
    )?;
    refused(&kernel(context, &file("empty", b"")?), "empty")?;
    refused(&kernel(context, context.path("").as_path()), "directory")?;
    // A program is an ELF file too.
    let program = fs::canonicalize(context.mvm().program())?;
    refused(&kernel(context, &program), "mvm")?;
    Ok(())
}

fn truncated_kernels(context: &Context) -> Result<()> {
    for name in ["vmlinuz", "tiny-vmlinux", "tiny-bzimage"] {
        let whole = fs::read(context.guest(name))?;
        for length in [100, 600, whole.len() / 2] {
            let path = context.path(&format!("{name}-{length}"));
            fs::write(&path, &whole[..length])?;
            refused(&kernel(context, &path), name)?;
        }
    }
    Ok(())
}

fn initrds(context: &Context) -> Result<()> {
    let tiny = || context.boot(Kernel::TinyElf);
    refused(
        &tiny()?.arg("--initrd").arg(context.path("missing")),
        "missing",
    )?;
    let big = context.image("big-initrd", 512 << 20)?;
    refused(
        &tiny()?.arg("--initrd").arg(big),
        "cannot hold the kernel and the initrd",
    )?;
    Ok(())
}

fn memory(context: &Context) -> Result<()> {
    refused(&context.boot(Kernel::TinyElf)?.args("--mem 1M"), "memory")?;
    refused(&context.boot(Kernel::StockElf)?.args("--mem 32M"), "mem")?;
    Ok(())
}

fn command_lines(context: &Context) -> Result<()> {
    let long = "x".repeat(5000);
    refused(
        &context.boot(Kernel::TinyElf)?.append(&long),
        "command line",
    )?;
    Ok(())
}

fn disks(context: &Context) -> Result<()> {
    let odd = context.image("odd.img", 1000)?;
    let tiny = || context.boot(Kernel::TinyElf);
    refused(&tiny()?.arg("--rootfs").arg(odd), "512")?;
    refused(
        &tiny()?.arg("--rootfs").arg(context.path("missing.img")),
        "missing.img",
    )?;
    refused(&tiny()?.arg("--rootfs").arg(context.path("")), "directory")?;
    Ok(())
}

fn options(context: &Context) -> Result<()> {
    refused(&context.mvm(), "--kernel")?;
    refused(
        &context.boot(Kernel::TinyElf)?.args("--frobnicate"),
        "--frobnicate",
    )?;
    refused(&context.boot(Kernel::TinyElf)?.args("--cpus 0"), "0")?;
    Ok(())
}

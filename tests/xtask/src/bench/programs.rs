//! What is built for a measurement: the floors, and guests of a few bytes.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::debian::{self, Program};
use crate::run;
use crate::workspace;

/// Builds `NAME.c` of the benchmarks as a program for this machine; its path.
pub fn host(directory: &Path, name: &str) -> Result<PathBuf> {
    let program = directory.join(name);
    let mut gcc = gcc()?;
    gcc.args(["-O2", "-static", "-pthread", "-Wall", "-Wextra", "-o"])
        .arg(&program)
        .arg(source(&format!("{name}.c")));
    run::quiet(&mut gcc)?;
    Ok(program)
}

/// Builds the guest that `guest.S` is with `GUEST_NAME` defined.
pub fn guest(directory: &Path, name: &str, count: u32) -> Result<()> {
    let mut gcc = kernel()?;
    gcc.arg(format!("-DGUEST_{name}"))
        .arg(format!("-DCOUNT={count}"))
        .arg("-o")
        .arg(directory.join(name))
        .arg(source("guest.S"));
    run::quiet(&mut gcc)
}

/// Builds the guest that is written in C, in `NAME.c`.
pub fn guest_in_c(directory: &Path, name: &str) -> Result<()> {
    let mut gcc = kernel()?;
    // The guest's processor has no SSE switched on, and its stack ends where it seems to.
    gcc.args([
        "-O2",
        "-ffreestanding",
        "-mgeneral-regs-only",
        "-mno-red-zone",
    ])
    .args(["-fno-stack-protector", "-fcf-protection=none", "-fno-pic"])
    .args(["-no-pie", "-Wall", "-Wextra", "-DGUEST_C", "-o"])
    .arg(directory.join(name))
    .args([source("guest.S"), source(&format!("{name}.c"))]);
    run::quiet(&mut gcc)
}

/// A kernel of one segment, where mvm and the floor expect it.
fn kernel() -> Result<Command> {
    let mut gcc = gcc()?;
    gcc.args(["-nostdlib", "-static", "-Wl,-Ttext-segment=0x100000"])
        .args(["-Wl,--build-id=none", "-Wl,-z,noexecstack"]);
    Ok(gcc)
}

fn gcc() -> Result<Command> {
    debian::require(&[Program("gcc", "gcc")])?;
    Ok(Command::new("gcc"))
}

fn source(name: &str) -> PathBuf {
    workspace::root().join("resources/bench").join(name)
}

//! Running other programs.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::progress::Step;

/// Runs a program to its end without showing what it says, unless it fails: then its last lines are the error.
pub fn quiet(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| name(command))?;
    if output.status.success() {
        return Ok(());
    }
    let mut said = output.stdout;
    said.extend(output.stderr);
    let said = String::from_utf8_lossy(&said);
    bail!(
        "{} ended with {}: {}",
        name(command),
        output.status,
        tail(&said, 5)
    )
}

/// As [`quiet`], with each line that the program prints shown as what `step` is at.
pub fn watched(command: &mut Command, step: &Step) -> Result<()> {
    let (reader, writer) = std::io::pipe()?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()
        .with_context(|| name(command))?;
    // The command keeps its copies of the pipe's end; without letting go of them, the reader never ends.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut said = Vec::new();
    for line in BufReader::new(reader).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).trim().to_owned();
        step.at(line.clone());
        said.push(line);
    }
    let status = child.wait()?;
    if !status.success() {
        bail!(
            "{} ended with {status}: {}",
            name(command),
            tail(&said.join("\n"), 15)
        );
    }
    Ok(())
}

/// Runs a program with this process's own streams, as a stage of a build, and fails if it does.
pub fn shown(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| name(command))?;
    if !status.success() {
        bail!("{} ended with {status}", name(command));
    }
    Ok(())
}

fn name(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(
        command
            .get_args()
            .take(2)
            .map(std::ffi::OsStr::to_string_lossy),
    );
    format!("`{}`", words.join(" "))
}

/// The last `count` lines of what a program said.
pub fn tail(text: &str, count: usize) -> String {
    let lines: Vec<_> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

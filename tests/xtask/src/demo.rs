//! `cargo xtask demo`: from a fresh checkout to a stock Debian guest, and how long that took.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::guest::{Guests, Stock};
use crate::host::Host;
use crate::lab;
use crate::progress::{Seconds, Step};
use crate::workspace;

/// What the guest is given, and has to find.
const CPUS: u32 = 2;
const MIB: u32 = 512;

/// Builds, prepares and boots. The exit status is the guest's at a terminal, and otherwise tells whether the guest
/// found what it was given.
pub fn demo() -> Result<u8> {
    let mut stages = Vec::new();

    let step = Step::begin("building mvm");
    // cargo shows its own progress.
    step.hide();
    let mvm = workspace::release("mvm")?;
    stages.push(("build", step.done()));

    let start = Instant::now();
    let guests = Guests::open()?;
    let stock = guests.stock()?;
    let rootfs = guests.rootfs()?;
    stages.push(("guest files", start.elapsed()));

    let host = Host::ask(&mvm)?;
    eprintln!("{}", host.sentence());
    let shell = lab::interactive();
    let (status, console) = if host == Host::Hardware {
        let start = Instant::now();
        let ended = on_this_host(&mvm, &stock, &rootfs, shell)?;
        stages.push(("guest", start.elapsed()));
        ended
    } else {
        let files = lab::GUEST_FILES;
        let mut options = lab::Options::command(arguments(
            OsString::from("mvm"),
            &files.map(PathBuf::from),
            shell,
        ));
        options.timeout = (!shell).then_some(180);
        let ended = lab::boot(&guests, &[mvm], &options, lab::Capture::Output)?;
        stages.push(("lab", ended.boot));
        stages.push(("guest", ended.command));
        (i32::from(ended.status), ended.output)
    };

    if !shell {
        ensure!(status == 0, "mvm ended with status {status}");
        check(&String::from_utf8_lossy(&console), &stock.release)
            .context("the guest is not as it should be")?;
    }
    println!("{}", summary(&stages));
    Ok(u8::try_from(status).unwrap_or(u8::MAX))
}

/// The command line: kernel, initrd and root file system, in this order.
fn arguments(mvm: OsString, files: &[PathBuf; 3], shell: bool) -> Vec<OsString> {
    let [kernel, initrd, rootfs] = files;
    let mut arguments = vec![mvm];
    for (option, file) in [
        ("--kernel", kernel),
        ("--initrd", initrd),
        ("--rootfs", rootfs),
    ] {
        arguments.extend([option.into(), file.into()]);
    }
    let sizes = ["--cpus", &CPUS.to_string(), "--mem", &format!("{MIB}M")].map(OsString::from);
    arguments.extend(sizes);
    let words = if shell { "quiet" } else { "quiet mvm.demo" };
    arguments.extend(["--append".into(), words.into()]);
    arguments
}

/// Boots on this machine's KVM; the status, and the console where it was not the terminal.
fn on_this_host(mvm: &Path, stock: &Stock, rootfs: &Path, shell: bool) -> Result<(i32, Vec<u8>)> {
    // The guest writes its disk: not the cached one.
    let directory = workspace::target().join("demo");
    fs::create_dir_all(&directory)?;
    let disk = directory.join("rootfs.ext4");
    fs::copy(rootfs, &disk)?;
    let files = [stock.vmlinuz.clone(), stock.initrd.clone(), disk];
    let arguments = arguments(mvm.into(), &files, shell);
    let mut command = Command::new(mvm);
    command.args(&arguments[1..]);
    if shell {
        return Ok((command.status()?.code().unwrap_or(1), Vec::new()));
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut console = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        let mut reader = BufReader::new(stdout);
        loop {
            let from = console.len();
            if reader.read_until(b'\n', &mut console)? == 0 {
                break;
            }
            io::stdout().write_all(&console[from..])?;
        }
    }
    Ok((child.wait()?.code().unwrap_or(1), console))
}

/// Fails unless the guest found what it was given.
fn check(console: &str, release: &str) -> Result<()> {
    let value = |key: &str| {
        let start = format!("{key}: ");
        let line = console
            .lines()
            .find_map(|line| line.trim_end().strip_prefix(start.as_str()));
        line.with_context(|| format!("it did not say its {key}"))
    };
    let expect = |key: &str, expected: &str| {
        let got = value(key)?;
        ensure!(got == expected, "its {key} is {got}, not {expected}");
        Ok(())
    };
    expect("kernel", release)?;
    expect("cpus", &CPUS.to_string())?;
    expect("root", "/dev/vda ext4 rw")?;
    expect("checksum", &proof_checksum()?)?;
    let memory = value("memory")?;
    let kib: u32 = memory
        .trim_end_matches(" KiB")
        .parse()
        .with_context(|| memory.to_owned())?;
    // The kernel keeps some for itself.
    if !(MIB * 1024 * 4 / 5..=MIB * 1024).contains(&kib) {
        bail!("it has {memory} of {MIB} MiB");
    }
    Ok(())
}

/// What the guest's `facts` script must have read back.
fn proof_checksum() -> Result<String> {
    let mut proof = String::new();
    for number in 1..=50_000 {
        writeln!(proof, "{number}")?;
    }
    Ok(Sha256::digest(proof)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

fn summary(stages: &[(&str, Duration)]) -> String {
    let list: Vec<_> = stages
        .iter()
        .map(|(name, took)| format!("{name} {}", Seconds(*took)))
        .collect();
    let total = stages.iter().map(|(_, took)| *took).sum();
    format!("{} in all: {}", Seconds(total), list.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(cpus: &str, checksum: &str) -> String {
        format!(
            "[ 0.1] x\r\nkernel: 6.1\r\ncpus: {cpus}\r\nmemory: 480000 KiB\r\nroot: /dev/vda ext4 rw\r\n\
             checksum: {checksum}\r\n"
        )
    }

    #[test]
    fn a_guest_that_lacks_something_is_noticed() {
        let right = proof_checksum().unwrap();
        check(&console("2", &right), "6.1").unwrap();
        check(&console("1", &right), "6.1").unwrap_err();
        check(&console("2", "0000"), "6.1").unwrap_err();
        check(&console("2", &right), "6.2").unwrap_err();
        check("", "6.1").unwrap_err();
    }
}

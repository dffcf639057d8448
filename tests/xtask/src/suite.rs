//! `cargo xtask test`: every test there is, each where it can be run.
//!
//! Unit tests, doc tests and tests with guests of a few bytes are cargo's own. The end-to-end tests need a KVM that
//! runs stock kernels: this machine's, or the lab's, and in the lab the library's tests run once more, so that what
//! an interpreting KVM cannot do is tested all the same.

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::guest::Guests;
use crate::host::Host;
use crate::lab;
use crate::progress::Seconds;
use crate::workspace;

/// The packages whose tests use KVM.
const KVM_PACKAGE: &str = "mvm-vmm";

/// A lab with all the end-to-end tests in it takes less than this by far.
const LAB_LIMIT: u64 = 25 * 60;

/// How many tests went which way.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Count {
    passed: usize,
    failed: usize,
    skipped: usize,
}

/// Which tests to run; all of them where nothing is said.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Only the end-to-end tests, and of these the ones whose name contains one of the words.
    #[arg(long)]
    e2e: bool,
    /// Words of end-to-end tests' names.
    #[arg(requires = "e2e")]
    filter: Vec<String>,
}

/// Runs the tests; whether all went well. The last line is the count.
pub fn suite(options: &Options) -> Result<bool> {
    let start = Instant::now();
    let mut count = Count::default();
    let mut well = true;
    if !options.e2e {
        let mut cargo = workspace::cargo_command(&["test", "--workspace", "--no-fail-fast"]);
        well &= counted(&mut cargo, &mut count)?;
    }
    well &= end_to_end(&options.filter, !options.e2e, &mut count)?;
    println!("all tests took {}", Seconds(start.elapsed()));
    println!(
        "{} passed, {} failed, {} skipped",
        count.passed, count.failed, count.skipped
    );
    // A binary that died before it could count is a failure too.
    Ok(well && count.failed == 0)
}

fn end_to_end(filter: &[String], library_too: bool, count: &mut Count) -> Result<bool> {
    let mvm = workspace::release("mvm")?;
    let e2e = workspace::debug("e2e")?;
    let guests = Guests::open()?;
    // The tests are of both kernels; the small one is the lab's own kernel besides.
    let tiny = guests.tiny()?;
    let out = workspace::target().join("e2e");
    if out.exists() {
        fs::remove_dir_all(&out)?;
    }
    fs::create_dir_all(&out)?;
    let host = Host::ask(&mvm)?;
    eprintln!("{}", host.sentence());

    if host == Host::Hardware {
        let directory = workspace::target().join("e2e-guest");
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir_all(&directory)?;
        for (name, file) in lab::guest_files(&guests, Some(&tiny))? {
            let name = PathBuf::from(name);
            symlink(
                file,
                directory.join(name.file_name().context("a file without a name")?),
            )?;
        }
        let mut command = Command::new(e2e);
        for (option, path) in [("--mvm", &mvm), ("--guest", &directory), ("--out", &out)] {
            command.arg(option).arg(path);
        }
        return counted(command.args(filter), count);
    }

    let mut programs = vec![mvm, e2e];
    let mut script = String::from("status=0\n");
    if library_too {
        for (number, program) in test_programs(KVM_PACKAGE)?.into_iter().enumerate() {
            // Under names of their own, for cargo's have a hash in them that would be seen in the log.
            let name = program
                .file_name()
                .and_then(|name| name.to_str())
                .context("a test without a name")?;
            script.push_str(&format!(
                "echo; echo '{KVM_PACKAGE} in the lab, program {}'\n{name} || status=1\n",
                number + 1
            ));
            programs.push(program);
        }
    }
    script.push_str(
        "echo; echo 'end-to-end tests in the lab'\ne2e \"$@\" || status=1\nexit $status\n",
    );
    let mut command: Vec<OsString> = ["sh", "-c", &script, "sh"].map(OsString::from).into();
    command.extend(filter.iter().map(OsString::from));
    let mut options = lab::Options::command(command);
    options.timeout = Some(LAB_LIMIT);
    options.out = Some(out);
    let ended = lab::boot(&guests, &programs, &options, lab::Capture::Output)?;
    for line in String::from_utf8_lossy(&ended.output).lines() {
        count.add_line(line);
    }
    Ok(ended.status == 0)
}

/// The test programs of a package, built.
fn test_programs(package: &str) -> Result<Vec<PathBuf>> {
    let mut cargo =
        workspace::cargo_command(&["test", "--package", package, "--lib", "--tests", "--no-run"]);
    let output = cargo
        .arg("--message-format=json")
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        bail!("the tests of {package} do not build");
    }
    let messages = String::from_utf8(output.stdout)?;
    let programs = messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_test = message["profile"]["test"].as_bool()?;
        is_test.then(|| message["executable"].as_str().map(PathBuf::from))?
    });
    Ok(programs.collect())
}

/// Runs a command that runs tests, shows what it prints, and adds up its results; whether it ended well.
fn counted(command: &mut Command, count: &mut Count) -> Result<bool> {
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let stdout = child.stdout.take().context("no pipe")?;
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line?;
        let mut out = io::stdout().lock();
        out.write_all(&line)?;
        out.write_all(b"\n")?;
        count.add_line(&String::from_utf8_lossy(&line));
    }
    Ok(child.wait()?.success())
}

impl Count {
    /// Adds the counts of a line that sums up: cargo's (`test result: ok. 3 passed; 0 failed; 1 ignored; …`) or that
    /// of the end-to-end tests (`3 passed, 0 failed, 1 skipped`).
    fn add_line(&mut self, line: &str) {
        let line = line.trim();
        let sums = match line.strip_prefix("test result: ") {
            Some(result) => result.split_once(". ").map_or(result, |(_, sums)| sums),
            None if line.ends_with(" skipped") => line,
            None => return,
        };
        let sum = |what: &str| {
            let mut parts = sums.split([';', ',']);
            let number =
                parts.find_map(|part| part.trim().strip_suffix(what)?.trim().parse::<usize>().ok());
            number.unwrap_or_default()
        };
        self.passed += sum("passed");
        self.failed += sum("failed");
        self.skipped += sum("ignored") + sum("skipped");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_sums_are_understood() {
        let mut count = Count::default();
        for line in [
            "running 5 tests",
            "test a ... ok",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test boot::x ... skipped: no kernel",
            "5 passed, 1 failed, 2 skipped\r",
        ] {
            count.add_line(line);
        }
        let expected = Count {
            passed: 9,
            failed: 3,
            skipped: 3,
        };
        assert_eq!(count, expected);
    }
}

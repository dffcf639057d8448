//! `cargo xtask test`: every test there is, each where it can be run.
//!
//! Unit tests, doc tests and tests with guests of a few bytes are cargo's own. Each fuzz target runs for a while. The
//! end-to-end tests need a KVM that runs stock kernels: this machine's, or the lab's, and in the lab the library's
//! tests run once more, so that what an interpreting KVM cannot do is tested all the same. A lab has one CPU, so there
//! is a lab for each CPU of this machine, each with its part of the tests.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::debian::{self, Program};
use crate::fuzz;
use crate::guest::Guests;
use crate::host::Host;
use crate::lab;
use crate::progress::Seconds;
use crate::workspace;

/// The packages whose tests use KVM.
const KVM_PACKAGE: &str = "mvm-vmm";

/// Its examples that boot a real kernel.
const EXAMPLES: [&str; 2] = ["command", "custom_device"];

/// What unit tests check their results with.
const COMPARED_WITH: [Program; 1] = [Program("qemu-img", "qemu-utils")];

/// In seconds; a lab with all the end-to-end tests in it takes less than this by far.
const LAB_LIMIT: &str = "2400";

/// For each fuzz target: enough to go through the seeds and to see what is easily found.
const FUZZ_SECONDS: u32 = 10;

/// How many tests went which way, and what is known of those that failed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Count {
    passed: usize,
    failed: usize,
    skipped: usize,
    /// The last words of each failure, the name first: the output of a whole run is long, and its end is what is read.
    failures: Vec<Vec<String>>,
    /// Whether the lines that come now belong to the last of the failures.
    in_failure: bool,
}

/// Lines that are kept of a failure.
const WORDS: usize = 12;

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
        // Unit tests compare with these, and do less where they are missing.
        debian::require(&COMPARED_WITH)?;
        let mut cargo = workspace::cargo_command(&["test", "--workspace", "--no-fail-fast"]);
        well &= counted(&mut cargo, &mut count)?;
        for target in fuzz::all(FUZZ_SECONDS, false)? {
            match target {
                None => count.passed += 1,
                Some(found) => {
                    well = false;
                    count.failed += 1;
                    count.failures.push(found);
                }
            }
        }
    }
    well &= end_to_end(&options.filter, !options.e2e, &mut count)?;
    println!("all tests took {}", Seconds(start.elapsed()));
    for failure in &count.failures {
        println!("failed: {}", failure.join("\n    "));
    }
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
    let examples = workspace::examples(KVM_PACKAGE, &EXAMPLES)?;
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
        debian::require(&lab::TOOLS)?;
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
        let examples = workspace::target().join("debug/examples");
        for (option, path) in [
            ("--mvm", &mvm),
            ("--guest", &directory),
            ("--examples", &examples),
            ("--out", &out),
        ] {
            command.arg(option).arg(path);
        }
        return counted(command.args(filter), count);
    }

    let library = if library_too {
        test_programs(KVM_PACKAGE)?
    } else {
        Vec::new()
    };
    let with: Vec<PathBuf> = [e2e].into_iter().chain(examples).collect();
    in_labs(&with, &library, filter, &out, count)
}

/// Runs the end-to-end tests in as many labs as this machine carries, and the library's in the first of them. The
/// programs of `with`, the tests themselves among them, are there too.
fn in_labs(
    with: &[PathBuf],
    library: &[PathBuf],
    filter: &[String],
    out: &Path,
    count: &mut Count,
) -> Result<bool> {
    let parts = labs_that_fit();
    let mut labs = Vec::new();
    for part in 1..=parts {
        let library = if part == 1 { library } else { &[] };
        let mut script = String::from("status=0\n");
        for program in library {
            let name = program
                .file_name()
                .and_then(|name| name.to_str())
                .context("a test without a name")?;
            script.push_str(&format!("./{name} || status=1\n"));
        }
        script.push_str(&format!(
            "./e2e --part {part}/{parts} \"$@\" || status=1\nexit $status\n"
        ));
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("lab")
            .args(["--timeout", LAB_LIMIT, "--out"])
            .arg(out);
        for program in library.iter().chain(with) {
            command.arg("--with").arg(program);
        }
        command.args(["--", "sh", "-c", &script, "sh"]).args(filter);
        labs.push(command);
    }
    eprintln!("{parts} labs side by side");
    thread::scope(|scope| {
        let running: Vec<_> = labs
            .iter_mut()
            .map(|lab| {
                scope.spawn(|| {
                    let mut count = Count::default();
                    counted(lab.stdin(Stdio::null()), &mut count).map(|well| (well, count))
                })
            })
            .collect();
        let mut well = true;
        for lab in running {
            let ended = lab
                .join()
                .map_err(|_| anyhow::anyhow!("a thread panicked"))?;
            let (lab_well, lab_count) = ended?;
            well &= lab_well;
            count.add(lab_count);
        }
        Ok(well)
    })
}

/// A lab for each CPU, and memory for all of them.
fn labs_that_fit() -> usize {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = meminfo
        .lines()
        .find_map(|line| {
            line.strip_prefix("MemAvailable:")?
                .trim()
                .strip_suffix(" kB")?
                .parse::<usize>()
                .ok()
        })
        .unwrap_or_default();
    // What a lab of the usual size really touches.
    let for_each = 3 << 20;
    cpus.min(available / for_each).clamp(1, 4)
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
        let line = String::from_utf8_lossy(&line);
        count.add_line(&line);
        count.add_failure(line.trim_end());
    }
    Ok(child.wait()?.success())
}

impl Count {
    /// Adds another count.
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.failures.extend(other.failures);
    }

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

    /// Keeps a line that tells of a failure: cargo's section of a test's output (`---- name stdout ----` up to the next
    /// section), or that of an end-to-end test (`test name ... FAILED (1.0 s)`, and what is indented after it).
    fn add_failure(&mut self, line: &str) {
        let section = line
            .strip_prefix("---- ")
            .and_then(|line| line.strip_suffix(" stdout ----"));
        let end_to_end = line
            .strip_prefix("test ")
            .filter(|line| line.contains(" ... FAILED ("));
        if let Some(name) = section.or(end_to_end) {
            self.failures.push(vec![name.to_owned()]);
            self.in_failure = true;
        } else if ["failures:", "test ", "failed: "]
            .iter()
            .any(|end| line.starts_with(end))
        {
            self.in_failure = false;
        } else if self.in_failure
            && !line.is_empty()
            && let Some(failure) = self.failures.last_mut()
            && failure.len() <= WORDS
        {
            failure.push(line.trim_start().to_owned());
        }
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
            ..Count::default()
        };
        assert_eq!(count, expected);
    }

    #[test]
    fn a_failure_is_told_with_its_words() {
        let mut count = Count::default();
        for line in [
            "test a ... FAILED",
            "test b ... ok",
            "failures:",
            "",
            "---- a stdout ----",
            "",
            "thread 'a' panicked at src/lib.rs:1:1:",
            "one is not two",
            "",
            "failures:",
            "    a",
            "",
            "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test boot::x ... FAILED (1.0 s)",
            "    no prompt",
            "test boot::y ... ok (1.0 s)",
            "    5 MB",
            "failed: boot::x",
        ] {
            count.add_failure(line);
        }
        let expected = [
            vec![
                "a",
                "thread 'a' panicked at src/lib.rs:1:1:",
                "one is not two",
            ],
            vec!["boot::x ... FAILED (1.0 s)", "no prompt"],
        ];
        assert_eq!(count.failures, expected);
    }
}

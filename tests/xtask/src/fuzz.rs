//! `cargo xtask fuzz`: the fuzz targets under libFuzzer, one for as long as it is let, or all of them for a while.
//!
//! libFuzzer works on a stable compiler: rustc takes LLVM's coverage pass by name. Everything that it needs is built
//! apart, so that the flags disturb no other build. What has been found interesting stays in `target/fuzz/corpus`, and
//! the next run goes on from there.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result, bail};

use crate::debian::{self, Program};
use crate::progress::Step;
use crate::run;
use crate::workspace;

/// The flags of cargo-fuzz without those that need a nightly compiler: counters for each edge and a trace of
/// comparisons.
const COVERAGE: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";
/// With these flags build scripts and macros are built for the host, without the flags.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Seconds after which an input is a hang. None takes one, on a busy machine neither.
const HANG: &str = "-timeout=120";
/// MiB above which an input is a leak.
const MEMORY: &str = "-rss_limit_mb=3072";
/// Bytes of an input; the longest seeds have as many.
const LENGTH: &str = "-max_len=4096";
/// The target sees to files that are too long.
const NO_SIGNAL: &str = "-handle_xfsz=0";

/// What to fuzz and for how long.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The target; without one they are listed.
    name: Option<String>,
    /// All targets, as many at a time as there are CPUs.
    #[arg(long, conflicts_with = "name", requires = "seconds")]
    all: bool,
    /// Stop each after so many seconds; a single target runs until Ctrl-C otherwise.
    #[arg(long)]
    seconds: Option<u32>,
    /// Check every access to memory too (AddressSanitizer): slower, for the unsafe code.
    #[arg(long)]
    asan: bool,
    /// Arguments for libFuzzer.
    #[arg(last = true)]
    libfuzzer: Vec<String>,
}

/// Lists, fuzzes one target, or all; whether nothing was found.
pub fn fuzz(options: &Options) -> Result<bool> {
    match &options.name {
        Some(name) => one(name, options),
        None if options.all => {
            let targets = all(options.seconds.unwrap_or(10), options.asan)?;
            Ok(targets.iter().all(Option::is_none))
        }
        None => {
            print!("{}", list()?);
            println!("\nFuzz one with `cargo xtask fuzz NAME`, until Ctrl-C or a finding.");
            Ok(true)
        }
    }
}

/// Fuzzes each target for so many seconds, which begins from its seeds; for each, what was found, in some lines.
pub fn all(seconds: u32, asan: bool) -> Result<Vec<Option<Vec<String>>>> {
    let build = Build::new(asan)?;
    let list = list()?;
    let names: Vec<&str> = list
        .lines()
        .filter_map(|line| line.split('\t').next())
        .collect();
    let next = Mutex::new(names.iter());
    let outcomes = Mutex::new(Vec::new());
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let work = || -> Result<()> {
        loop {
            let Some(name) = next.lock().ok().and_then(|mut names| names.next()) else {
                return Ok(());
            };
            let found = build.bounded(name, seconds)?;
            if let Ok(mut outcomes) = outcomes.lock() {
                outcomes.push(found);
            }
        }
    };
    thread::scope(|scope| -> Result<()> {
        let running: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        for worker in running {
            let ended = worker.join();
            ended.map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        Ok(())
    })?;
    let outcomes = outcomes.into_inner();
    outcomes.map_err(|_| anyhow::anyhow!("a thread panicked"))
}

fn one(name: &str, options: &Options) -> Result<bool> {
    if !list()?
        .lines()
        .any(|line| line.split('\t').next() == Some(name))
    {
        bail!("there is no fuzz target '{name}'; `cargo xtask fuzz` lists them");
    }
    let build = Build::new(options.asan)?;
    let mut command = build.command(name)?;
    if let Some(seconds) = options.seconds {
        command.arg(format!("-max_total_time={seconds}"));
    }
    let status = command.args(&options.libfuzzer).status()?;
    if !status.success() {
        eprintln!("{}", found(name)?);
    }
    Ok(status.success())
}

/// The targets, a name, a tab and a description on each line.
fn list() -> Result<String> {
    let program = workspace::debug("fuzz")?;
    let output = Command::new(program).arg("list").output()?;
    Ok(String::from_utf8(output.stdout)?)
}

/// Where everything of the fuzzer's is.
fn home() -> PathBuf {
    workspace::target().join("fuzz")
}

/// What a finding is, and how to see it again.
fn found(name: &str) -> Result<String> {
    let newest = fs::read_dir(findings(name))?
        .filter_map(Result::ok)
        .max_by_key(|entry| entry.metadata().and_then(|data| data.modified()).ok());
    Ok(match newest {
        Some(input) => format!(
            "fuzz {name}: found an input; explain and run it with `cargo run -p fuzz -- run {name} {}`",
            input.path().display()
        ),
        None => format!("fuzz {name}: ended without an input to show for it"),
    })
}

fn findings(name: &str) -> PathBuf {
    home().join("findings").join(name)
}

/// The targets, built for libFuzzer.
#[derive(Debug)]
struct Build {
    program: PathBuf,
}

impl Build {
    fn new(asan: bool) -> Result<Self> {
        debian::require(&[Program("g++", "g++")])?;
        let (directory, flags) = if asan {
            ("asan", format!("{COVERAGE} -Zsanitizer=address"))
        } else {
            ("build", COVERAGE.to_owned())
        };
        let directory = home().join(directory);
        let mut cargo =
            workspace::cargo_command(&["build", "--package", "fuzz", "--bin", "libfuzzer"]);
        cargo
            .args([
                "--features",
                "libfuzzer",
                "--profile",
                "fuzz",
                "--target",
                TRIPLE,
            ])
            .arg("--target-dir")
            .arg(&directory)
            .env("RUSTFLAGS", flags);
        if asan {
            // The sanitizer comes with stable compilers, its flag does not.
            cargo.env("RUSTC_BOOTSTRAP", "1");
        }
        let step = Step::begin("building the fuzz targets");
        step.hide();
        run::shown(&mut cargo)?;
        step.done();
        let program = directory.join(TRIPLE).join("fuzz/libfuzzer");
        Ok(Self { program })
    }

    /// libFuzzer on a target, from its seeds and what was found interesting before.
    fn command(&self, name: &str) -> Result<Command> {
        let (corpus, seeds) = (
            home().join("corpus").join(name),
            home().join("seeds").join(name),
        );
        let findings = findings(name);
        if seeds.exists() {
            fs::remove_dir_all(&seeds)?;
        }
        for directory in [&corpus, &findings] {
            fs::create_dir_all(directory)?;
        }
        let mut write = Command::new(workspace::target().join("debug/fuzz"));
        run::quiet(write.arg("seeds").arg(name).arg(&seeds))?;
        let mut command = Command::new(&self.program);
        // Disk images and the like are made for each input.
        if Path::new("/dev/shm").is_dir() {
            command.env("TMPDIR", "/dev/shm");
        }
        command
            .env("MVM_FUZZ_TARGET", name)
            .args([HANG, MEMORY, LENGTH, NO_SIGNAL, "-print_final_stats=1"])
            .arg(format!("-artifact_prefix={}/", findings.display()))
            .args([&corpus, &seeds]);
        Ok(command)
    }

    /// Fuzzes a target for a while, its words kept in a file; what was found, and the input itself in Base64.
    fn bounded(&self, name: &str, seconds: u32) -> Result<Option<Vec<String>>> {
        let path = home().join(format!("{name}.log"));
        let log = File::create(&path)?;
        let mut command = self.command(name)?;
        let status = command
            .arg(format!("-max_total_time={seconds}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .status()?;
        let said = fs::read(&path).with_context(|| path.display().to_string())?;
        let said = String::from_utf8_lossy(&said);
        if status.success() {
            println!("fuzz {name}: {}", summary(&said));
            return Ok(None);
        }
        let found = found(name)?;
        println!("{}\n{found}", tail_of(&said, &path));
        let mut lines = vec![found];
        let panic = said
            .lines()
            .skip_while(|line| !line.contains(" panicked at "));
        let input = said.lines().filter(|line| line.starts_with("Base64: "));
        lines.extend(panic.take(3).chain(input).map(str::to_owned));
        Ok(Some(lines))
    }
}

fn tail_of(said: &str, path: &Path) -> String {
    format!("{}\n(all of it in {})", run::tail(said, 40), path.display())
}

/// What libFuzzer did, of its own words.
fn summary(said: &str) -> String {
    let stat = |name: &str| {
        let line = said.lines().rev().find_map(|line| line.strip_prefix(name));
        line.map_or("?", str::trim).to_owned()
    };
    let after = |word: &str| {
        let line = said.lines().rev().find(|line| line.contains(word));
        let rest = line.and_then(|line| line.split(word).nth(1));
        rest.and_then(|rest| rest.split_whitespace().next())
            .unwrap_or("?")
            .to_owned()
    };
    format!(
        "{} runs, {} a second, {} edges, nothing found",
        stat("stat::number_of_executed_units:"),
        stat("stat::average_exec_per_sec:"),
        after(" cov: "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libfuzzers_words_are_understood() {
        let said = "#10 INITED cov: 7 ft: 9 corp: 1\n#99 DONE   cov: 123 ft: 456 corp: 7/8b\n\
            stat::number_of_executed_units: 99\nstat::average_exec_per_sec:     33\n";
        assert_eq!(
            summary(said),
            "99 runs, 33 a second, 123 edges, nothing found"
        );
        assert!(summary("").starts_with("? runs"));
    }
}

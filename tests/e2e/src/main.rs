//! End-to-end tests: real kernels booted by the `mvm` binary, judged by what comes out of it.
//!
//! `cargo xtask test` runs this on the host where its KVM runs stock kernels, and otherwise in the lab, all tests
//! in one boot of it. Each test has a directory, a time limit and its own guests; what the guests said is kept where
//! a test fails.

mod cases;
mod context;
mod host;
mod lan;
mod pty;
mod runner;
mod servers;
mod vm;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use crate::context::Setting;

/// End-to-end tests of mvm.
#[derive(Debug, Parser)]
struct Args {
    /// The binary under test.
    #[arg(long, default_value = "/bin/mvm")]
    mvm: PathBuf,
    /// Where the guest files are, by the names that `cargo xtask guest` prints.
    #[arg(long, default_value = "/guest")]
    guest: PathBuf,
    /// Where the library's examples are.
    #[arg(long, default_value = "/work")]
    examples: PathBuf,
    /// Where the logs of failed tests are put.
    #[arg(long, default_value = "/out")]
    out: PathBuf,
    /// How many tests run at once; by default as many as there are CPUs.
    #[arg(long)]
    jobs: Option<usize>,
    /// Run only the I-th of N parts of the tests.
    #[arg(long, value_name = "I/N", value_parser = parse_part, default_value = "1/1")]
    part: (usize, usize),
    /// Print the names of the tests and run none.
    #[arg(long)]
    list: bool,
    /// Run only tests whose name contains one of these.
    filter: Vec<String>,
}

/// Reads `I/N`, with 1 <= I <= N.
fn parse_part(text: &str) -> Result<(usize, usize), String> {
    let numbers = text
        .split_once('/')
        .and_then(|(part, parts)| Some((part.parse().ok()?, parts.parse().ok()?)));
    numbers
        .filter(|(part, parts)| (1..=*parts).contains(part))
        .ok_or_else(|| "write it as 1/2".to_owned())
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("e2e: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Runs what was asked for; whether nothing failed.
fn run(args: &Args) -> Result<bool> {
    let mut tests = cases::all();
    if !args.filter.is_empty() {
        tests.retain(|test| {
            args.filter
                .iter()
                .any(|word| test.name.contains(word.as_str()))
        });
    }
    let (part, parts) = args.part;
    let tests: Vec<_> = tests.into_iter().skip(part - 1).step_by(parts).collect();
    if args.list {
        for test in &tests {
            println!("{}", test.name);
        }
        return Ok(true);
    }
    let setting = Setting {
        mvm: args.mvm.clone(),
        guest: args.guest.clone(),
        examples: args.examples.clone(),
        out: args.out.clone(),
    };
    let jobs = args
        .jobs
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    Ok(runner::run(&tests, &setting, jobs))
}

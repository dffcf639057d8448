//! Developer tooling, as `cargo xtask`: guest files, the lab, the demo and the test suite.

mod cpio;
mod debian;
mod guest;
mod progress;
mod run;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Developer tooling for mvm.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Prepare guest files once and print their paths, one `name=path` a line.
    Guest {
        /// Which of them.
        #[arg(value_enum, default_value = "stock")]
        kind: guest::Kind,
    },
}

fn main() -> ExitCode {
    match run_task(Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_task(args: Args) -> Result<ExitCode> {
    match args.command {
        Task::Guest { kind } => {
            for (name, path) in guest::prepare(kind)? {
                println!("{name}={}", path.display());
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

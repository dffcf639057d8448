//! The targets without a fuzzer: lists them, writes their seeds, runs one input.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

/// Fuzz targets, without a fuzzer.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Print the name of each target and what it is.
    List,
    /// Write the seeds of a target, one file each.
    Seeds {
        /// The target.
        name: String,
        /// Where to.
        directory: PathBuf,
    },
    /// Print what an input means and run it.
    Run {
        /// The target.
        name: String,
        /// The input.
        file: PathBuf,
    },
}

fn find(name: &str) -> Result<Box<dyn fuzz::Target>> {
    fuzz::find(name).with_context(|| format!("there is no target '{name}'"))
}

fn main() -> Result<()> {
    match Args::parse().command {
        Task::List => {
            for target in fuzz::all() {
                println!("{}\t{}", target.name(), target.about());
            }
        }
        Task::Seeds { name, directory } => {
            fs::create_dir_all(&directory)?;
            for (number, seed) in find(&name)?.seeds().iter().enumerate() {
                fs::write(directory.join(format!("seed-{number:04}")), seed)?;
            }
        }
        Task::Run { name, file } => {
            let target = find(&name)?;
            let data = fs::read(&file).with_context(|| file.display().to_string())?;
            print!("{}", target.explain(&data));
            fuzz::keep_files_short();
            target.run(&data);
        }
    }
    Ok(())
}

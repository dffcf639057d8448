//! Developer tooling, as `cargo xtask`: guest files, the lab, the demo and the test suite.

mod bench;
mod cpio;
mod debian;
mod demo;
mod fuzz;
mod guest;
mod host;
mod lab;
mod layout;
mod progress;
mod run;
mod suite;
mod workspace;

use std::path::PathBuf;
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
        /// Only print the paths, and fail where something has not been prepared.
        #[arg(long)]
        print: bool,
    },
    /// Run a command, or a shell, on a software-emulated host with a working /dev/kvm.
    #[command(long_about = LAB_HELP)]
    Lab(lab::Options),
    /// Build mvm as one static file, for any Linux of this architecture, and print its path.
    Build,
    /// Build mvm and boot a stock Debian guest with it: a shell at a terminal, otherwise facts that are checked.
    Demo,
    /// Run all tests: cargo's, and the end-to-end tests on this machine's KVM or in the lab.
    Test(suite::Options),
    /// Fuzz a device or a parser until something is found; without a name, list the targets.
    Fuzz(fuzz::Options),
    /// Measure what mvm costs beside the floor: the same calls to KVM with nothing around them.
    Bench(bench::Options),
    /// Find out what a boot and an idle VM run, and write the file by which that is put together in the binary.
    Layout,
    /// The lab's own end of the wire.
    #[command(hide = true)]
    LabInside {
        /// The virtio port.
        port: PathBuf,
    },
}

const LAB_HELP: &str = "\
Run a command, or a shell, on a software-emulated host with a working /dev/kvm.

The lab has busybox, mvm, and the guest files as /guest/{vmlinuz,vmlinux,initrd,rootfs} and, once they have been
built, /guest/{tiny-vmlinux,tiny-bzimage}. The command runs in /work, which is empty and writable; its input, output
and exit status are those of this command. Files that it leaves in /out are carried to --out.

Example: cargo xtask lab -- mvm --kernel /guest/vmlinuz --initrd /guest/initrd --rootfs /guest/rootfs --append mvm.demo";

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
        Task::Guest { kind, print } => {
            for (name, path) in guest::prepare(kind, print)? {
                println!("{name}={}", path.display());
            }
        }
        Task::Lab(options) => return Ok(lab::lab(options)?.into()),
        Task::Build => println!("{}", workspace::release("mvm")?.display()),
        Task::Demo => return Ok(demo::demo()?.into()),
        Task::Test(options) => {
            if !suite::suite(&options)? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Task::Fuzz(options) => {
            if !fuzz::fuzz(&options)? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Task::Bench(options) => bench::bench(&options)?,
        Task::Layout => println!("{}", layout::layout()?.display()),
        Task::LabInside { port } => lab::inside::serve(&port)?,
    }
    Ok(ExitCode::SUCCESS)
}

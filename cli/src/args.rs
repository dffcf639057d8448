//! The command line: what can be said, the help that teaches it, and errors in one line.
//!
//! Only syntax lives here; what the settings mean together is [`crate::config`]'s.

use std::error::Error as _;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::Settings;
use crate::ctl::CtlArgs;
use crate::matrix::TestArgs;

/// A whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "mvm",
    version,
    about = "Boots a Linux kernel in a KVM micro-VM",
    override_usage = "mvm --kernel PATH [--rootfs IMAGE] [OPTIONS] [-- COMMAND [ARG]...]\n       mvm doctor [--json]\n       mvm ctl SOCKET COMMAND\n       mvm test FILE",
    after_help = "'mvm --help' has examples, the exit statuses and the keys at the terminal.",
    after_long_help = AFTER_LONG_HELP,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true,
    max_term_width = 100
)]
pub struct CommandLine {
    /// What to do other than boot a VM.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The VM and how it is run.
    #[command(flatten)]
    pub vm: Vm,
}

/// A VM to boot.
#[derive(Debug, Args)]
pub struct Vm {
    /// Its settings.
    #[command(flatten)]
    pub settings: Settings,
    /// Read settings from FILE, TOML or JSON
    ///
    /// A key is the name of an option without its dashes: `kernel = "vmlinux"`, `no-acpi = true`,
    /// `disk = ["a.img", "b.img,ro"]`. Paths are relative to the file. An option on the command line
    /// wins over the file; a repeatable one, such as `--disk`, replaces the file's list.
    #[arg(long, value_name = "FILE", help_heading = "Configuration")]
    pub config: Option<PathBuf>,
}

/// What mvm does besides booting a VM.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Tell what this host can do, and the remedy where it cannot
    ///
    /// Looks at /dev/kvm, runs a tiny guest on it, and checks huge pages, tun and the programs that
    /// testing needs. The exit status is 0 where stock kernels boot, 1 where they do not; warnings do
    /// not count.
    Doctor(DoctorArgs),
    /// Control a running VM through its --api socket
    ///
    /// Example: `mvm ctl vm.sock balloon 256M`. The exit status is 0 where the VM has done it, 125 where
    /// it has not.
    Ctl(CtlArgs),
    /// Run many boots as tests: every combination of kernels, images, CPUs, commands
    ///
    /// FILE has settings as a --config file: those of [settings] are every case's, of those in [matrix]
    /// each is a list, and every combination is a case; [[case]] tables, each with a name, are combined
    /// with the matrix in turn. A case passes as the boot would that has status 0; without a timeout of
    /// its own it has 5m. The exit status is 0 where all pass, 1 where one does not, 125 where the file
    /// cannot be used or this host has no KVM for it, 128+N where signal N ended it. What a case that
    /// does not pass leaves is run again with mvm --config DIR/CASE/settings.json.
    Test(TestArgs),
}

/// `mvm doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print one JSON object: version, host, checks
    #[arg(long)]
    pub json: bool,
}

const AFTER_LONG_HELP: &str = "\
Examples:
  mvm --kernel vmlinux --rootfs img.ext4
  mvm --kernel vmlinuz --initrd initrd.img --rootfs img.ext4 --cpus 2 --mem 1G
  mvm --kernel vmlinux --rootfs img.ext4,ro --disk data.img,serial=data --disk 'a,,b.img,ro'
  mvm --kernel vmlinux --rootfs img.ext4 --console file=boot.log --timeout 2m
  mvm --kernel vmlinuz --initrd initrd.img --expect 'login: ' --kernel-errors fatal --timeout 60s
  mvm --kernel vmlinuz --rootfs debian.img --script login.script --report login.xml
  mvm --config vm.toml --mem 4G
  mvm --kernel vmlinux --rootfs img.ext4 --api vm.sock
  mvm ctl vm.sock balloon 256M
  mvm --kernel bzImage --rootfs img.ext4 --timeout 60s -- make check

At the terminal (where the console is stdio and standard input is a terminal):
  Ctrl-A x       end the VM
  Ctrl-A h       list these keys
  Ctrl-A Ctrl-A  send Ctrl-A to the guest

Signals:
  SIGTERM, SIGINT   the first is COMMAND's, or presses the power button; the second ends the VM
  SIGHUP, SIGQUIT   end the VM

Exit status: that of COMMAND (127 it is not in the guest, 126 it cannot be executed), or
  0      every --expect matched and the --script is done; or without these, the guest powered off,
         rebooted or halted, or Ctrl-A x ended it
  122    an --expect did not match or the --script was not done before the guest ended, a step of it
         took too long, a --fail-on matched, or the kernel reported an error that is fatal
  123    the guest panicked or triple-faulted
  124    --timeout ran out
  125    mvm itself failed: arguments, files, KVM, a guest that did not get as far as COMMAND
  128+N  signal N ended the VM (130 SIGINT, 143 SIGTERM)
";

/// A command line that cannot be obeyed, or that asks for text only.
#[derive(Debug)]
pub enum Refusal {
    /// `--help` or `--version`: print this and succeed.
    Text(Box<clap::Error>),
    /// One line for the user.
    Usage(String),
}

impl CommandLine {
    /// Reads a command line.
    pub fn read(args: impl IntoIterator<Item = OsString>) -> Result<Self, Refusal> {
        let args: Vec<OsString> = args.into_iter().collect();
        if let Some(vm) = Vm::read(&args) {
            return Ok(Self { command: None, vm });
        }
        Self::try_parse_from(args).map_err(|error| match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Refusal::Text(Box::new(error)),
            _ => Refusal::Usage(in_one_line(&error)),
        })
    }
}

impl Vm {
    /// Reads a line that asks for a VM and is right. Any other is left to the whole definition, for its
    /// commands and its messages: to make that of the commands takes as long as all the rest of reading.
    fn read(args: &[OsString]) -> Option<Self> {
        let line = Self::augment_args(clap::Command::new("mvm"));
        let matches = line.try_get_matches_from(args).ok()?;
        Self::from_arg_matches(&matches).ok()
    }
}

/// clap explains over several lines; here the option, the cause and the remedy are one.
fn in_one_line(error: &clap::Error) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => Some(texts.join(", ")),
        _ => None,
    };
    let option = context(ContextKind::InvalidArg)
        .map(|text| without_value(&text))
        .unwrap_or_default();
    let value = context(ContextKind::InvalidValue).unwrap_or_default();
    match error.kind() {
        ErrorKind::ValueValidation => {
            let cause = error.source().map(ToString::to_string).unwrap_or_default();
            format!("{option} {value}: {cause}")
        }
        ErrorKind::InvalidValue if value.is_empty() => {
            format!("{option} needs a value; see 'mvm --help'")
        }
        ErrorKind::InvalidValue => {
            let valid = context(ContextKind::ValidValue).unwrap_or_default();
            format!("{option} {value}: not one of {valid}")
        }
        ErrorKind::UnknownArgument if option.starts_with('-') => {
            let hint = context(ContextKind::SuggestedArg)
                .map_or_else(String::new, |near| format!(", did you mean {near}?"));
            format!("unknown option {option}{hint}; see 'mvm --help'")
        }
        ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand => {
            let word = context(ContextKind::InvalidSubcommand).unwrap_or(option);
            // Behind an option clap takes a command's name for a stray word.
            if CommandLine::command().find_subcommand(&word).is_some() {
                return format!("'{word}' is for itself; leave out the options of a VM");
            }
            format!(
                "unexpected argument '{word}'; a kernel is given as --kernel PATH, a command for the guest after '--'; mvm's own are doctor, ctl and test"
            )
        }
        ErrorKind::MissingRequiredArgument => {
            let missing = context(ContextKind::InvalidArg).unwrap_or_default();
            format!("missing: {missing}; see 'mvm --help'")
        }
        ErrorKind::MissingSubcommand => {
            "ctl needs a socket and a command, such as 'mvm ctl vm.sock status'; see 'mvm ctl --help'"
                .to_owned()
        },
        ErrorKind::ArgumentConflict => {
            let prior = context(ContextKind::PriorArg).map(|text| without_value(&text));
            match (context(ContextKind::InvalidSubcommand), prior) {
                (Some(command), _) => {
                    format!("'{command}' is for itself; leave out the options of a VM")
                }
                (None, Some(prior)) if prior != option => {
                    format!("{option} cannot be used together with {prior}")
                }
                _ => format!("{option} is given twice"),
            }
        }
        _ => {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            let first = first.strip_prefix("error: ").unwrap_or(first);
            format!("{first}; see 'mvm --help'")
        }
    }
}

/// `--mem <SIZE>` names the option and its value; the option will do.
fn without_value(option: &str) -> String {
    option.split(" <").next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(args: &str) -> String {
        let args = ["mvm"].into_iter().chain(args.split_whitespace());
        match CommandLine::read(args.map(OsString::from)) {
            Err(Refusal::Usage(line)) => line,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn every_refusal_is_one_line_with_the_option_and_the_remedy() {
        for (args, line) in [
            (
                "--mem 1.5G",
                "--mem 1.5G: '1.5G' is not a size; write a whole number and a unit, such as 256M or 4G",
            ),
            (
                "--disk a.img,rw",
                "--disk a.img,rw: unknown key 'rw', did you mean 'ro'?; known keys: ro, serial, layout, engine, cache, overlay, format, on-error, queues, bps, iops, burst",
            ),
            (
                "--disk a.img,bps=0",
                "--disk a.img,bps=0: disk a.img: bps=0 is no rate; it can be 1K to 1T a second, or be left out for no limit",
            ),
            (
                "--rng burst=1M",
                "--rng burst=1M: rng: burst=1M needs a rate that it goes beyond; add bps or iops",
            ),
            ("--cpus 300", "--cpus 300: 300 is not in 0..=255"),
            (
                "--log-level loud",
                "--log-level loud: not one of off, error, warn, info, debug, trace",
            ),
            (
                "--kernal x",
                "unknown option --kernal, did you mean --kernel?; see 'mvm --help'",
            ),
            ("--frob", "unknown option --frob; see 'mvm --help'"),
            ("--kernel", "--kernel needs a value; see 'mvm --help'"),
            (
                "vmlinux",
                "unexpected argument 'vmlinux'; a kernel is given as --kernel PATH, a command for the guest after '--'; mvm's own are doctor, ctl and test",
            ),
            ("--mem 1G --mem 2G", "--mem is given twice"),
        ] {
            assert_eq!(refused(args), line);
        }
    }

    #[test]
    fn a_vm_is_read_alike_with_and_without_the_definition_of_commands() {
        for line in [
            "mvm",
            "mvm --kernel k --disk a --disk b,ro --cpus 2",
            "mvm --config f --mem 1G -- doctor --json",
        ] {
            let args: Vec<_> = line.split(' ').map(OsString::from).collect();
            let short = Vm::read(&args).expect("a VM");
            let whole = CommandLine::try_parse_from(&args).expect("a VM");
            assert!(whole.command.is_none());
            assert_eq!(short.settings, whole.vm.settings);
            assert_eq!(short.config, whole.vm.config);
        }
        for line in ["mvm doctor", "mvm --help", "mvm --version", "mvm --cpus x"] {
            let args: Vec<_> = line.split(' ').map(OsString::from).collect();
            assert!(Vm::read(&args).is_none(), "{line}");
        }
    }

    #[test]
    fn options_and_commands_do_not_mix() {
        assert_eq!(
            refused("--cpus 2 doctor"),
            "'doctor' is for itself; leave out the options of a VM"
        );
        let line = refused("doctor --cpus 2");
        assert!(line.contains("--cpus"), "{line}");
    }

    #[test]
    fn the_help_lists_every_option_and_status() {
        let Err(Refusal::Text(help)) = CommandLine::read(["mvm", "--help"].map(OsString::from))
        else {
            panic!("--help is text");
        };
        let help = help.to_string();
        for command in CommandLine::command().get_arguments() {
            let option = match command.get_long() {
                Some(long) => format!("--{long}"),
                None => "[-- COMMAND [ARG]...]".to_owned(),
            };
            assert!(help.contains(&option), "{option}");
        }
        for status in ["122", "123", "124", "125", "128+N", "Ctrl-A x"] {
            assert!(help.contains(status), "{status}");
        }
    }
}

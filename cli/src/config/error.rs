//! What can be wrong with settings, each in one line with its remedy.

use thiserror::Error;
use vmm::config::ConfigError;
use vmm::console::ConsoleConfig;

use super::FileError;
use crate::script::ScriptError;

/// Why the settings are not a VM.
#[derive(Debug, Error)]
pub enum SettingsError {
    /// The configuration file.
    #[error(transparent)]
    File(#[from] FileError),
    /// Neither the flags nor the file name a kernel.
    #[error("no kernel given; name one with --kernel PATH, see 'mvm --help'")]
    NoKernel,
    /// A setting for a command, and no command.
    #[error("--{0} is for a command in the guest; name one after '--'")]
    NoCommand(&'static str),
    /// A variable to pass on that is not set.
    #[error("--env {0}: mvm has no such variable to pass on; write {0}=VALUE")]
    NoVariable(String),
    /// Two users of the same streams.
    #[error(
        "--console stdio: the command has standard input and output; use --console file=PATH, or leave it out"
    )]
    ConsoleTaken,
    /// The script.
    #[error(transparent)]
    Script(#[from] ScriptError),
    /// A script, and a console that others type into.
    #[error(
        "--script types into the console, which cannot be {0} then; use --console stdio, file=PATH or none"
    )]
    ScriptConsole(ConsoleConfig),
    /// A disk that stops the VM, and nobody who could have it go on.
    #[error(
        "disk {0}: on-error=stop pauses the VM, and only --api PATH can resume it; add that, or leave on-error=stop out"
    )]
    NoApi(String),
    /// What they describe cannot be a VM.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

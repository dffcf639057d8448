//! A command to run in the guest.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A command that the guest runs instead of its own init, and that the VM ends with.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CommandConfig {
    /// The program, looked for in the guest's `PATH` where it has no slash, and its arguments.
    pub words: Vec<String>,
    /// Its environment, `NAME=VALUE` each; `PATH` and `HOME` have defaults.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// The directory it starts in; by default the guest's root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<PathBuf>,
    /// Gives it a terminal of this size: it then has one stream of output, not two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<TerminalSize>,
    /// A directory of kernel modules (`/lib/modules/RELEASE`) from which the drivers of the VM's devices
    /// are brought along, for a kernel that has them neither built in nor in the initramfs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modules: Option<PathBuf>,
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// What words and environment may have together, a NUL at the end of each (execve(2), "Limits on size of arguments
/// and environment").
const MAX_LEN: usize = 6 << 20;

/// Why a command cannot be one.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CommandError {
    /// No program.
    #[error("there is no command after '--'; name a program of the guest's")]
    Empty,
    /// A NUL in a word.
    #[error("the command's words, environment and working directory cannot contain a NUL")]
    Nul,
    /// More than any process can be given.
    #[error(
        "the command's words and environment have {0} bytes, and Linux gives a process at most {mib}M; put them into a file that the command reads",
        mib = MAX_LEN >> 20
    )]
    TooLong(usize),
    /// An environment variable without a name or a value.
    #[error("--env {0}: write NAME=VALUE, or NAME to pass on a variable that is set")]
    Variable(String),
    /// A working directory that depends on where init happens to be.
    #[error("--workdir {}: not absolute; begin it with a slash", .0.display())]
    Relative(PathBuf),
}

impl CommandConfig {
    /// The command `words`, with nothing else said.
    pub fn new<T: Into<String>>(words: impl IntoIterator<Item = T>) -> Self {
        Self {
            words: words.into_iter().map(Into::into).collect(),
            ..Self::default()
        }
    }

    /// Checks what can be known outside the guest.
    ///
    /// # Errors
    /// No program, or values that no process could be given.
    pub fn validate(&self) -> Result<(), CommandError> {
        if self.words.first().is_none_or(String::is_empty) {
            return Err(CommandError::Empty);
        }
        let workdir = self.workdir.as_ref().map(|path| path.to_string_lossy());
        let texts = self.words.iter().chain(&self.env).map(String::as_str);
        if texts
            .chain(workdir.as_deref())
            .any(|text| text.contains('\0'))
        {
            return Err(CommandError::Nul);
        }
        let texts = self.words.iter().chain(&self.env);
        let len = texts.map(|text| text.len() + 1).sum();
        if len > MAX_LEN {
            return Err(CommandError::TooLong(len));
        }
        let named = |variable: &&String| variable.find('=').is_some_and(|at| at > 0);
        if let Some(variable) = self.env.iter().find(|variable| !named(variable)) {
            return Err(CommandError::Variable(variable.clone()));
        }
        match &self.workdir {
            Some(path) if !path.is_absolute() => Err(CommandError::Relative(path.clone())),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_process_could_be_given_is_refused() {
        let refused = |change: fn(&mut CommandConfig)| {
            let mut command = CommandConfig::new(["make", "check"]);
            command.env = vec!["A=".to_owned(), "B=c=d".to_owned()];
            command.workdir = Some("/src".into());
            command.validate().unwrap();
            change(&mut command);
            command.validate().unwrap_err()
        };
        assert_eq!(refused(|c| c.words.clear()), CommandError::Empty);
        assert_eq!(refused(|c| c.words[0].clear()), CommandError::Empty);
        assert_eq!(refused(|c| c.words[1].push('\0')), CommandError::Nul);
        assert_eq!(refused(|c| c.env[0].push('\0')), CommandError::Nul);
        let long = |c: &mut CommandConfig| c.words[1] = "x".repeat(MAX_LEN);
        assert!(matches!(refused(long), CommandError::TooLong(len) if len > MAX_LEN));
        for bad in ["A", "=b", ""] {
            let mut command = CommandConfig::new(["make"]);
            command.env.push(bad.to_owned());
            let error = CommandError::Variable(bad.to_owned());
            assert_eq!(command.validate(), Err(error));
        }
        assert_eq!(
            refused(|c| c.workdir = Some("src".into())).to_string(),
            "--workdir src: not absolute; begin it with a slash"
        );
    }
}

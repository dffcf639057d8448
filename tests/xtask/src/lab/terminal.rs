//! The caller's terminal, for a command that is used from it.

use std::io::IsTerminal;

use anyhow::Result;
use rustix::stdio::stdin;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use super::wire::WindowSize;

/// The terminal in raw mode; dropped, it is as it was.
#[derive(Debug)]
pub struct Raw {
    before: Termios,
}

impl Raw {
    /// Sets raw mode.
    pub fn enter() -> Result<Self> {
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.before);
    }
}

/// Whether somebody sits at both ends of a command that is run now.
pub fn interactive() -> bool {
    std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
}

/// The terminal's size, or a usual one.
pub fn size() -> WindowSize {
    tcgetwinsize(stdin()).map_or(
        WindowSize {
            rows: 24,
            columns: 80,
        },
        |size| WindowSize {
            rows: size.ws_row,
            columns: size.ws_col,
        },
    )
}

//! Host I/O errors in the log: each kind of trouble is told, a storm of it is not.

use std::fmt;
use std::io;

/// Counts what goes wrong with one device and tells the 1st, 2nd, 4th, 8th … error: one line for one
/// error, a few dozen for a disk that fails for days, and no clock.
#[derive(Debug, Default)]
pub(super) struct ErrorLog {
    count: u64,
}

impl ErrorLog {
    /// `what` failed on `device`, which is the name of a disk or a network card.
    pub(super) fn note(&mut self, device: impl fmt::Display, what: &str, error: &io::Error) {
        if self.is_news() {
            match self.count {
                1 => log::warn!("{device}: {what} failed: {error}"),
                n => log::warn!("{device}: {what} failed: {error} ({n} errors so far)"),
            }
        }
    }

    /// Counts an error; whether it is worth a line.
    fn is_news(&mut self) -> bool {
        self.count = self.count.saturating_add(1);
        self.count.is_power_of_two()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_is_a_handful_of_lines() {
        let mut log = ErrorLog::default();
        let lines = (0..1_000_000).filter(|_| log.is_news()).count();
        assert_eq!(lines, 20);
        let mut last = ErrorLog { count: u64::MAX };
        assert!(!last.is_news(), "the count stays at its end");
    }
}

//! The end of what a console has shown, for those who are asked about it only when something went wrong.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes that are kept.
const LIMIT: usize = 64 * 1024;

/// Keeps the last 64 KiB of what is written to it. Its clones are the same: one goes to
/// [`Console::from_parts`](super::Console::from_parts), the other is asked when the VM is over.
#[derive(Debug, Clone, Default)]
pub struct Tail(Arc<Mutex<VecDeque<u8>>>);

impl Tail {
    /// Shared by the console's thread, which writes, and the one who reads it at the end.
    fn lock(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is kept.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.lock().make_contiguous()).into_owned()
    }
}

impl Write for Tail {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = self.lock();
        kept.extend(bytes);
        let over = kept.len().saturating_sub(LIMIT);
        kept.drain(..over);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_long_console_is_kept() {
        let mut tail = Tail::default();
        for _ in 0..LIMIT {
            tail.write_all(b"xy").unwrap();
        }
        tail.clone().write_all(b"last").unwrap();
        let text = tail.text();
        assert_eq!(text.len(), LIMIT);
        assert!(text.ends_with("xylast"));
    }
}

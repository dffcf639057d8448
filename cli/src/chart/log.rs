//! The kernel's log on the host's clock.
//!
//! The kernel's own time stamps cannot be set beside the host's: its clock starts late and jumps when it
//! becomes stable. A line that comes when it is printed tells its time by its coming. Those from before
//! the console was there come all at once, when it is registered; their stamps tell how long before that
//! they were.

use std::time::{Duration, Instant};

use crate::watch::printk;

/// More lines than a boot has; what follows is not of it.
const MAX_LINES: usize = 4000;

/// Lines as they come.
#[derive(Debug, Default)]
pub struct KernelLog(Vec<Line>);

#[derive(Debug)]
struct Line {
    came: Instant,
    stamp: Duration,
    text: String,
}

/// A line and its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When the kernel said it.
    pub at: Instant,
    /// What it said.
    pub text: String,
}

impl KernelLog {
    /// A line of the console has come.
    pub fn on_line(&mut self, came: Instant, line: &str) {
        if self.0.len() == MAX_LINES {
            return;
        }
        if let Some(kernel) = printk::parse(line) {
            self.0.push(Line {
                came,
                stamp: kernel.time,
                text: kernel.text.to_owned(),
            });
        }
    }

    /// The lines at their times, none before `start`. With them, when the console was registered and had
    /// caught up, if that is known.
    pub fn entries(&self, start: Instant) -> (Vec<Entry>, Option<(Instant, Instant)>) {
        // kernel/printk/printk.c, `register_console`; "legacy" since 6.11.
        let enables = |line: &Line| {
            line.text.starts_with("printk: ") && line.text.ends_with("console [ttyS0] enabled")
        };
        let late = self.0.iter().position(enables).unwrap_or_default();
        let registered = self.0.first().zip(self.0.get(late));
        let early = |line: &Line| {
            let (first, enabling) = registered?;
            let before = enabling.stamp.saturating_sub(line.stamp);
            Some(first.came.checked_sub(before)?.max(start))
        };
        let entries = self.0.iter().enumerate().map(|(number, line)| Entry {
            at: match number < late {
                true => early(line).unwrap_or(line.came),
                false => line.came,
            },
            text: line.text.clone(),
        });
        let mut entries: Vec<_> = entries.collect();
        if let (Some(entry), Some((first, _))) = (entries.get_mut(late), registered) {
            // It is said before anything is printed.
            entry.at = first.came;
        }
        let caught_up = registered.filter(|_| late > 0);
        let caught_up = caught_up.map(|(first, enabling)| (first.came, enabling.came));
        (entries, caught_up)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// A log of lines that come so many milliseconds after the start.
    fn log(start: Instant, lines: &[(u64, &str)]) -> KernelLog {
        let mut log = KernelLog::default();
        for (came, line) in lines {
            log.on_line(start + ms(*came), line);
        }
        log
    }

    #[test]
    fn early_lines_are_counted_back_from_the_console() {
        let start = Instant::now();
        let log = log(
            start,
            &[
                (500, "[    0.000000] Linux version 6.12"),
                (520, "[    0.100000] Memory: much"),
                (540, "[    0.300000] printk: legacy console [ttyS0] enabled"),
                (600, "not the kernel"),
                (700, "[    0.310000] live"),
            ],
        );
        let (entries, caught_up) = log.entries(start);
        let times: Vec<_> = entries.iter().map(|entry| entry.at - start).collect();
        assert_eq!(times, [ms(200), ms(300), ms(500), ms(700)]);
        assert_eq!(caught_up, Some((start + ms(500), start + ms(540))));
    }

    #[test]
    fn without_that_line_a_line_is_when_it_comes() {
        let start = Instant::now();
        let lines = [(10, "[    0.000000] Linux"), (90, "[    5.000000] x")];
        let (entries, caught_up) = log(start, &lines).entries(start);
        let times: Vec<_> = entries.iter().map(|entry| entry.at - start).collect();
        assert_eq!(times, [ms(10), ms(90)]);
        assert_eq!(caught_up, None);
        assert_eq!(KernelLog::default().entries(start), (vec![], None));
    }

    #[test]
    fn nothing_is_before_the_start() {
        let start = Instant::now();
        let lines = [
            (10, "[    0.000000] Linux"),
            (20, "[    9.000000] printk: console [ttyS0] enabled"),
        ];
        let (entries, _) = log(start, &lines).entries(start);
        assert_eq!(entries[0].at, start);
    }

    #[test]
    fn a_kernel_that_never_stops_is_cut() {
        let start = Instant::now();
        let lines: Vec<_> = (0..5000).map(|_| (1, "[    1.000000] x")).collect();
        assert_eq!(log(start, &lines).entries(start).0.len(), MAX_LINES);
    }
}

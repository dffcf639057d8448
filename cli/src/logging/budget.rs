//! How many lines one source may log: a token bucket.

use std::time::{Duration, Instant};

/// Lines at once, enough for everything that set-up or one failure says.
const BURST: u32 = 50;
/// One line more each, so five a second.
const REFILL: Duration = Duration::from_millis(200);

/// What one source has left.
#[derive(Debug)]
pub struct Budget {
    lines: u32,
    /// Up to when lines have been refilled.
    refilled: Instant,
    suppressed: u64,
}

/// What becomes of a line.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is written, after an account of those that were not.
    Write {
        /// How many those are.
        suppressed: u64,
    },
    /// It is only counted.
    Suppress,
}

impl Budget {
    /// A full budget.
    pub fn new(now: Instant) -> Self {
        Self {
            lines: BURST,
            refilled: now,
            suppressed: 0,
        }
    }

    /// Spends one line, if there is one.
    pub fn spend(&mut self, now: Instant) -> Verdict {
        self.refill(now);
        match self.lines.checked_sub(1) {
            Some(left) => {
                self.lines = left;
                Verdict::Write {
                    suppressed: self.take_suppressed(),
                }
            }
            None => {
                self.suppressed += 1;
                Verdict::Suppress
            }
        }
    }

    /// How many lines were suppressed and not accounted for yet.
    pub fn take_suppressed(&mut self) -> u64 {
        std::mem::take(&mut self.suppressed)
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.refilled);
        let earned = u32::try_from(elapsed.as_millis() / REFILL.as_millis()).unwrap_or(u32::MAX);
        if self.lines.saturating_add(earned) >= BURST {
            self.lines = BURST;
            self.refilled = now;
        } else {
            self.lines += earned;
            self.refilled += REFILL * earned;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: Verdict = Verdict::Write { suppressed: 0 };

    #[test]
    fn a_burst_then_five_a_second() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        for _ in 0..BURST {
            assert_eq!(budget.spend(start), WRITE);
        }
        for _ in 0..7 {
            assert_eq!(budget.spend(start + REFILL / 2), Verdict::Suppress);
        }
        assert_eq!(
            budget.spend(start + REFILL),
            Verdict::Write { suppressed: 7 }
        );
        assert_eq!(budget.spend(start + REFILL), Verdict::Suppress);
        let written = (0..1000)
            .map(|i| start + Duration::from_secs(1) + Duration::from_millis(10) * i)
            .filter(|now| matches!(budget.spend(*now), Verdict::Write { .. }))
            .count();
        assert!((49..=55).contains(&written), "{written} in ten seconds");
    }

    #[test]
    fn rest_fills_it_up_to_the_burst_and_no_further() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        while budget.spend(start) == WRITE {}
        let later = start + Duration::from_secs(86_400);
        assert_eq!(budget.spend(later), Verdict::Write { suppressed: 1 });
        for _ in 1..BURST {
            assert_eq!(budget.spend(later), WRITE);
        }
        assert_eq!(budget.spend(later), Verdict::Suppress);
    }

    #[test]
    fn slow_lines_are_never_suppressed() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        for i in 0..1000 {
            assert_eq!(budget.spend(start + REFILL * i), WRITE);
        }
    }
}

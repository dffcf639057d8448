//! The token bucket: time in, tokens out. Pure; nothing here knows what time it is.
//!
//! The level is counted in billionths of a token. Nanoseconds times tokens a second come out in just
//! these, so nothing is ever rounded and no rate drifts.

use std::time::{Duration, Instant};

use super::{Limits, Rate};

/// Billionths in a token, nanoseconds in a second.
const UNIT: i128 = 1_000_000_000;

/// Tokens of one kind.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    rate: Rate,
    /// Below zero after a request that was larger than what was left.
    level: i128,
    /// When the level was right.
    filled: Instant,
}

impl Bucket {
    /// A full bucket.
    pub(super) fn new(rate: Rate, now: Instant) -> Self {
        Self {
            rate,
            level: full(rate),
            filled: now,
        }
    }

    /// The same with another rate. What was saved up is kept, as far as it fits; a debt is forgiven, since
    /// at a much lower rate it would never be paid.
    fn with_rate(mut self, rate: Rate, now: Instant) -> Self {
        self.fill(now);
        Self {
            rate,
            level: self.level.clamp(0, full(rate)),
            filled: self.filled,
        }
    }

    /// Adds what has come in until `now`. Time that goes backwards adds nothing.
    pub(super) fn fill(&mut self, now: Instant) {
        let Some(elapsed) = now.checked_duration_since(self.filled) else {
            return;
        };
        let rate = u128::from(self.rate.per_second.get());
        let gained = i128::try_from(elapsed.as_nanos().saturating_mul(rate)).unwrap_or(i128::MAX);
        self.level = self.level.saturating_add(gained).min(full(self.rate));
        self.filled = now;
    }

    /// How long until there is a token, or part of one; zero if there is.
    pub(super) fn wait(&self) -> Duration {
        if self.level > 0 {
            return Duration::ZERO;
        }
        let missing = self.level.unsigned_abs().saturating_add(1);
        let rate = u128::from(self.rate.per_second.get());
        let nanos = missing.div_ceil(rate);
        let unit = UNIT.unsigned_abs();
        let seconds = u64::try_from(nanos / unit).unwrap_or(u64::MAX);
        // A remainder of division by 10⁹ fits.
        Duration::new(seconds, u32::try_from(nanos % unit).unwrap_or(0))
    }

    /// Takes `tokens` out, whether they are there or not.
    pub(super) fn take(&mut self, tokens: u64) {
        self.level = self.level.saturating_sub(i128::from(tokens) * UNIT);
    }
}

/// The level of a full bucket.
fn full(rate: Rate) -> i128 {
    i128::from(rate.burst.get()) * UNIT
}

/// The two buckets of a limit.
#[derive(Debug, Default)]
pub(super) struct Buckets {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
}

impl Buckets {
    /// Changes the limits. A limit that is new begins with a full
    /// bucket.
    pub(super) fn change(&mut self, limits: Limits, now: Instant) {
        let change = |bucket: &mut Option<Bucket>, rate: Option<Rate>| {
            *bucket = rate.map(|rate| match bucket.take() {
                Some(old) => old.with_rate(rate, now),
                None => Bucket::new(rate, now),
            });
        };
        change(&mut self.bytes, limits.bytes);
        change(&mut self.operations, limits.operations);
    }

    /// How long until a request may pass; zero if one may now.
    pub(super) fn wait(&mut self, now: Instant) -> Duration {
        let buckets = self.bytes.iter_mut().chain(&mut self.operations);
        let waits = buckets.map(|bucket| {
            bucket.fill(now);
            bucket.wait()
        });
        waits.max().unwrap_or_default()
    }

    /// One operation of `bytes` passed.
    pub(super) fn charge(&mut self, bytes: u64) {
        self.bytes.iter_mut().for_each(|bucket| bucket.take(bytes));
        self.operations.iter_mut().for_each(|bucket| bucket.take(1));
    }
}

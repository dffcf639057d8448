//! A clock that stands still until a test moves it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::limiter::Clock;
use super::{Limiter, Limits, Rate};

/// All clones show the same time.
#[derive(Debug, Clone)]
pub(crate) struct FakeClock {
    start: Instant,
    nanos: Arc<AtomicU64>,
}

impl FakeClock {
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
            nanos: Arc::default(),
        }
    }

    /// A limiter that lives by this clock.
    pub(crate) fn limiter(&self, limits: Limits) -> Arc<Limiter> {
        let limiter = Limiter::with_clock(self.clone());
        limiter.set(limits);
        limiter
    }

    pub(crate) fn advance(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap();
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Instant {
        self.start + Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
    }
}

pub(crate) fn rate(per_second: u64, burst: u64) -> Rate {
    Rate {
        per_second: per_second.try_into().unwrap(),
        burst: burst.try_into().unwrap(),
    }
}

/// A limit on bytes alone.
pub(crate) fn bytes(per_second: u64, burst: u64) -> Limits {
    Limits {
        bytes: Some(rate(per_second, burst)),
        operations: None,
    }
}

/// A limit on operations alone.
pub(crate) fn operations(per_second: u64, burst: u64) -> Limits {
    Limits {
        bytes: None,
        operations: Some(rate(per_second, burst)),
    }
}

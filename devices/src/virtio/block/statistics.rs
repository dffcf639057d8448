//! What a disk has done, counted where it is done: by each lane for itself, and added up by whoever asks.
//!
//! A count has one writer, the lane's thread, so counting is a load and a store without a lock prefix; and
//! the clock is read once for all that is taken from a queue, and all that ends, at a time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets of a histogram of latencies. The first holds those below a microsecond, each further one those
/// below twice as much, and the last all the rest, from half a minute on.
pub const BUCKETS: usize = 27;

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Disk to guest.
    Read,
    /// Guest to disk.
    Write,
    /// Makes writes durable.
    Flush,
    /// Forgets ranges.
    Discard,
    /// Clears ranges.
    WriteZeroes,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Read,
        Self::Write,
        Self::Flush,
        Self::Discard,
        Self::WriteZeroes,
    ];

    /// What it is called, in messages and in the API.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::WriteZeroes => "write-zeroes",
        }
    }
}

/// A number that one thread counts up and any may read.
#[derive(Debug, Default)]
struct Count(AtomicU64);

impl Count {
    fn add(&self, more: u64) {
        let now = self.0.load(Ordering::Relaxed);
        self.0.store(now.wrapping_add(more), Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
struct OperationTally {
    requests: Count,
    bytes: Count,
    errors: Count,
    nanoseconds: Count,
    latencies: [Count; BUCKETS],
}

/// What one lane has done.
#[derive(Debug, Default)]
pub(super) struct Tally([OperationTally; Operation::ALL.len()]);

impl Tally {
    /// A request has ended, `took` after it was taken.
    pub(super) fn count(&self, operation: Operation, bytes: u64, took: Duration, ok: bool) {
        let tally = &self.0[operation as usize];
        tally.requests.add(1);
        if ok {
            tally.bytes.add(bytes);
        } else {
            tally.errors.add(1);
        }
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        tally.nanoseconds.add(nanoseconds);
        tally.latencies[bucket(took)].add(1);
    }

    pub(super) fn add_to(&self, all: &mut DiskStatistics) {
        for (tally, sum) in self.0.iter().zip(&mut all.0) {
            sum.requests += tally.requests.get();
            sum.bytes += tally.bytes.get();
            sum.errors += tally.errors.get();
            sum.time += Duration::from_nanos(tally.nanoseconds.get());
            for (count, bucket) in tally.latencies.iter().zip(&mut sum.latencies) {
                *bucket += count.get();
            }
        }
    }
}

/// The bucket of a latency.
fn bucket(took: Duration) -> usize {
    let microseconds = took.as_micros();
    let bits = u128::BITS - microseconds.leading_zeros();
    usize::try_from(bits).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

/// What has become of the requests of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OperationStatistics {
    /// How many have ended.
    pub requests: u64,
    /// What those moved, or cleared, that ended well.
    pub bytes: u64,
    /// How many of them failed. A request that is kept until the VM goes on fails each time it is tried.
    pub errors: u64,
    /// How long all of them took, from when each was taken from its queue.
    pub time: Duration,
    /// How many took how long; see [`BUCKETS`].
    pub latencies: [u64; BUCKETS],
}

impl OperationStatistics {
    /// What the latencies of a bucket are below; none for the last.
    #[must_use]
    pub fn limit(bucket: usize) -> Option<Duration> {
        let power = u32::try_from(bucket).ok()?;
        (bucket + 1 < BUCKETS).then(|| Duration::from_micros(1 << power))
    }

    /// What so many hundredths of the requests took less than, as far as the buckets tell.
    #[must_use]
    pub fn percentile(&self, hundredths: u64) -> Option<Duration> {
        let wanted = (self.requests * hundredths).div_ceil(100).max(1);
        let mut sum = 0;
        let found = self.latencies.iter().position(|count| {
            sum += count;
            sum >= wanted
        });
        Self::limit(found?)
    }
}

/// What a disk has done since it was made, over all resets and images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskStatistics([OperationStatistics; Operation::ALL.len()]);

impl DiskStatistics {
    /// Of one kind of requests.
    #[must_use]
    pub fn of(&self, operation: Operation) -> &OperationStatistics {
        &self.0[operation as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_latency_has_its_bucket() {
        let limit = |bucket| OperationStatistics::limit(bucket).unwrap();
        for nanoseconds in [0, 999, 1000, 1999, 2000, 3_999_999, 33_000_000_000] {
            let took = Duration::from_nanos(nanoseconds);
            let at = bucket(took);
            assert!(took < limit(at), "{took:?}");
            assert!(at == 0 || took >= limit(at - 1), "{took:?}");
        }
        assert_eq!(bucket(Duration::from_secs(34)), BUCKETS - 1);
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
        assert_eq!(OperationStatistics::limit(BUCKETS - 1), None);
    }

    #[test]
    fn lanes_add_up() {
        let (one, other) = (Tally::default(), Tally::default());
        let ms = Duration::from_millis;
        for _ in 0..98 {
            one.count(Operation::Read, 512, ms(1), true);
        }
        other.count(Operation::Read, 512, ms(40), true);
        other.count(Operation::Read, 512, ms(500), false);
        other.count(Operation::Flush, 0, ms(3), true);
        let mut all = DiskStatistics::default();
        [one, other].iter().for_each(|tally| tally.add_to(&mut all));
        let read = all.of(Operation::Read);
        assert_eq!((read.requests, read.errors), (100, 1));
        assert_eq!(read.bytes, 99 * 512);
        assert_eq!(read.time, ms(98 + 40 + 500));
        assert_eq!(read.latencies.iter().sum::<u64>(), 100);
        let below = |hundredths| read.percentile(hundredths).unwrap().as_micros();
        assert_eq!((below(50), below(99), below(100)), (1024, 65536, 1 << 19));
        assert_eq!(all.of(Operation::Flush).requests, 1);
        assert_eq!(all.of(Operation::Write).percentile(50), None);
    }
}

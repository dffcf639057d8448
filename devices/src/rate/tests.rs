//! The buckets by exact accounts, and the throttle by a clock that stands still.

use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;

use super::bucket::{Bucket, Buckets};
use super::testing::{FakeClock, bytes, operations, rate};
use super::{Limits, RateControl, Throttle};
use crate::virtio::{QueueIndex, Wake};

/// Full buckets.
fn full(limits: Limits, now: Instant) -> Buckets {
    let mut buckets = Buckets::default();
    buckets.change(limits, now);
    buckets
}

const SECOND: Duration = Duration::from_secs(1);
const QUEUE: QueueIndex = QueueIndex(0);
const UNIT: i128 = 1_000_000_000;

/// A number of any magnitude.
fn magnitude() -> impl Strategy<Value = u64> {
    (0..64u32, any::<u64>()).prop_map(|(shift, bits)| (bits >> shift).max(1))
}

/// What a bucket let pass: when, by nanoseconds from the start, and how much.
fn passed(bucket: &mut Bucket, start: Instant, steps: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut at = 0;
    let mut passed = Vec::new();
    for (nanos, cost) in steps {
        at += nanos;
        bucket.fill(start + Duration::from_nanos(at));
        if bucket.wait().is_zero() {
            bucket.take(*cost);
            passed.push((at, *cost));
        }
    }
    passed
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    /// In no span of time, wherever it begins, does more pass than the burst and what came in meanwhile,
    /// but for the last request, of which any part may be a debt.
    #[test]
    fn never_more_than_the_burst_and_what_came_in(
        per_second in magnitude(),
        burst in magnitude(),
        steps in vec((0..3_000_000_000u64, magnitude()), 1..60),
    ) {
        let start = Instant::now();
        let mut bucket = Bucket::new(rate(per_second, burst), start);
        let passed = passed(&mut bucket, start, &steps);
        for first in 0..passed.len() {
            let mut before = 0i128;
            for (at, cost) in &passed[first..] {
                let span = i128::from(at - passed[first].0);
                let most = i128::from(burst) * UNIT + i128::from(per_second) * span;
                prop_assert!(before * UNIT < most, "{before} in {span} ns");
                before += i128::from(*cost);
            }
        }
    }

    /// Whoever always has something to send and comes when told to loses no token, whatever the sizes and
    /// for however long: what has passed is the burst and what came in, to the billionth.
    #[test]
    fn nothing_is_lost_and_nothing_drifts(
        per_second in 1..u64::from(u32::MAX),
        more in magnitude(),
        costs in vec(1..u64::from(u32::MAX), 1..300),
    ) {
        let start = Instant::now();
        // A bucket that the last nanosecond of a wait fills is too small to tell.
        let burst = (per_second / 1_000_000_000 + 1).saturating_add(more);
        let mut bucket = Bucket::new(rate(per_second, burst), start);
        let (mut now, mut total) = (start, 0);
        for cost in costs {
            let wait = bucket.wait();
            now += wait;
            bucket.fill(now);
            prop_assert!(bucket.wait().is_zero(), "it said {wait:?} and then no");
            // What came in during the last nanosecond of the wait.
            let came = i128::from(per_second) * i128::try_from((now - start).as_nanos()).unwrap();
            let left = i128::from(burst) * UNIT + came - total * UNIT;
            prop_assert!(wait.is_zero() || left <= i128::from(per_second), "{left} were lost");
            prop_assert!(left > 0);
            bucket.take(cost);
            total += i128::from(cost);
        }
    }

    /// However full, empty or in debt it is, it never holds more than its burst, and a wait ends.
    #[test]
    fn a_pause_saves_up_the_burst_and_no_more(
        per_second in magnitude(),
        burst in magnitude(),
        debt in magnitude(),
        pause in magnitude(),
    ) {
        let start = Instant::now();
        let mut bucket = Bucket::new(rate(per_second, burst), start);
        bucket.take(debt);
        bucket.fill(start + Duration::from_nanos(pause));
        bucket.take(burst);
        prop_assert!(!bucket.wait().is_zero(), "more than the burst was in it");
        let wait = bucket.wait();
        let then = start.checked_add(Duration::from_nanos(pause)).and_then(|now| now.checked_add(wait));
        if let Some(then) = then {
            bucket.fill(then);
            prop_assert_eq!(bucket.wait(), Duration::ZERO);
        }
    }
}

#[test]
fn a_full_bucket_empties_and_fills_exactly() {
    let start = Instant::now();
    let mut bucket = Bucket::new(rate(1000, 10), start);
    for _ in 0..10 {
        assert_eq!(bucket.wait(), Duration::ZERO);
        bucket.take(1);
    }
    // Empty to the last billionth: the next nanosecond brings some.
    assert_eq!(bucket.wait(), Duration::from_nanos(1));
    bucket.take(5);
    assert_eq!(
        bucket.wait(),
        Duration::from_micros(5000) + Duration::from_nanos(1)
    );
    bucket.fill(start + Duration::from_millis(5));
    assert_eq!(bucket.wait(), Duration::from_nanos(1));
    bucket.fill(start + Duration::from_millis(5) + Duration::from_nanos(1));
    assert_eq!(bucket.wait(), Duration::ZERO);
}

#[test]
fn a_request_larger_than_the_bucket_passes_and_is_paid_back() {
    let start = Instant::now();
    let mut bucket = Bucket::new(rate(100, 1), start);
    bucket.take(1001);
    assert_eq!(bucket.wait(), 10 * SECOND + Duration::from_nanos(1));
    bucket.fill(start + 11 * SECOND);
    assert_eq!(bucket.wait(), Duration::ZERO);
}

#[test]
fn time_may_stand_still_or_go_backwards() {
    let start = Instant::now() + SECOND;
    let mut bucket = Bucket::new(rate(10, 10), start);
    bucket.take(20);
    bucket.fill(start + SECOND / 2);
    bucket.fill(start);
    bucket.fill(start - SECOND);
    bucket.fill(start + SECOND / 2);
    assert_eq!(bucket.wait(), SECOND / 2 + Duration::from_nanos(1));
}

#[test]
fn the_ends_of_64_bits_are_numbers_like_others() {
    let start = Instant::now();
    let age = Duration::from_secs(1 << 61);
    for (per_second, burst) in [(u64::MAX, u64::MAX), (u64::MAX, 1), (1, u64::MAX), (1, 1)] {
        let mut bucket = Bucket::new(rate(per_second, burst), start);
        for _ in 0..100 {
            bucket.take(u64::MAX);
        }
        assert!(bucket.wait() > Duration::ZERO);
        bucket.fill(start + age);
        bucket.fill(start + age + SECOND);
        for _ in 0..100 {
            bucket.take(u64::MAX);
        }
        assert!(bucket.wait() > Duration::ZERO);
    }
}

#[test]
fn both_limits_hold() {
    let start = Instant::now();
    let limits = Limits {
        bytes: Some(rate(1000, 1000)),
        operations: Some(rate(10, 2)),
    };
    let mut buckets = full(limits, start);
    for _ in 0..2 {
        assert_eq!(buckets.wait(start), Duration::ZERO);
        buckets.charge(10);
    }
    assert_eq!(buckets.wait(start), Duration::from_nanos(1), "operations");
    buckets.charge(2000);
    assert!(buckets.wait(start) > SECOND, "the longer wait of both");
    assert!(buckets.wait(start + SECOND) > Duration::ZERO);
    assert_eq!(buckets.wait(start + 2 * SECOND), Duration::ZERO);
}

#[test]
fn a_change_keeps_what_was_saved_and_forgives_debts() {
    let start = Instant::now();
    let mut buckets = full(bytes(1000, 1000), start);
    buckets.charge(400);
    buckets.change(bytes(10, 2000), start);
    buckets.charge(600);
    assert_eq!(
        buckets.wait(start),
        Duration::from_nanos(1),
        "600 were left"
    );

    buckets.charge(1_000_000);
    buckets.change(bytes(1, 100), start);
    assert_eq!(
        buckets.wait(start),
        Duration::from_nanos(1),
        "no days to wait"
    );

    let mut buckets = full(bytes(1000, 1000), start);
    buckets.change(bytes(1000, 10), start);
    buckets.charge(10);
    assert_eq!(
        buckets.wait(start),
        Duration::from_nanos(1),
        "only 10 fitted"
    );

    buckets.change(operations(10, 3), start);
    (0..3).for_each(|_| buckets.charge(1 << 40));
    assert_eq!(
        buckets.wait(start),
        Duration::from_nanos(1),
        "a new limit is full"
    );
    buckets.change(Limits::default(), start);
    buckets.charge(u64::MAX);
    assert_eq!(buckets.wait(start), Duration::ZERO, "no limit");
}

#[test]
fn all_lanes_draw_from_one_bucket() {
    let clock = FakeClock::new();
    let limiter = clock.limiter(operations(100, 10));
    let mut lanes = [0; 4].map(|_| Throttle::new(&limiter).unwrap());
    let mut round = || {
        let mut passed = 0;
        for lane in (0..4).cycle().take(1000) {
            let lane = &mut lanes[lane];
            if lane.admits(QUEUE).unwrap() {
                lane.charge(1);
                passed += 1;
            }
        }
        passed
    };
    assert_eq!(round(), 10);
    clock.advance(SECOND / 20);
    assert_eq!(round(), 5);
    clock.advance(SECOND);
    assert_eq!(round(), 10, "the burst and no more");
}

#[test]
fn queues_of_a_lane_take_turns() {
    let clock = FakeClock::new();
    let mut throttle = Throttle::new(&clock.limiter(operations(1, 1))).unwrap();
    let queues = [0, 1, 2].map(QueueIndex);
    throttle.charge(1);
    for queue in queues.into_iter().chain(queues) {
        assert!(!throttle.admits(queue).unwrap());
    }
    let mut passed = Vec::new();
    for _ in 0..6 {
        clock.advance(SECOND);
        for queue in throttle.resume() {
            while throttle.admits(queue).unwrap() {
                throttle.charge(1);
                passed.push(queue.0);
            }
        }
    }
    assert_eq!(passed, [1, 2, 0, 1, 2, 0]);
}

#[test]
fn without_a_limit_everything_passes() {
    let clock = FakeClock::new();
    let limiter = clock.limiter(Limits::default());
    let mut throttle = Throttle::new(&limiter).unwrap();
    for _ in 0..1000 {
        assert!(throttle.admits(QUEUE).unwrap());
        throttle.charge(u64::MAX);
    }
    let control = RateControl::new([limiter]);
    assert_eq!(control.get(), Limits::default());
    control.set(operations(1, 1));
    assert_eq!(control.get(), operations(1, 1));
    assert!(
        throttle.admits(QUEUE).unwrap(),
        "what passed before does not count"
    );
    throttle.charge(1);
    assert!(!throttle.admits(QUEUE).unwrap());
    control.set(Limits::default());
    assert!(throttle.admits(QUEUE).unwrap());
}

#[test]
fn a_control_may_outlive_the_device() {
    let clock = FakeClock::new();
    let (receive, send) = (clock.limiter(bytes(1, 1)), clock.limiter(bytes(1, 1)));
    let mut throttles = [&receive, &send].map(|flow| Throttle::new(flow).unwrap());
    let control = RateControl::new([receive, send]);
    for throttle in &mut throttles {
        throttle.charge(1);
        assert!(!throttle.admits(QUEUE).unwrap());
        assert_eq!(throttle.source(7).wake, Wake::Change);
    }
    control.set(bytes(1 << 30, 1 << 20));
    clock.advance(SECOND);
    for throttle in &mut throttles {
        assert!(throttle.resume() == [QUEUE] && throttle.admits(QUEUE).unwrap());
        assert!(throttle.resume().is_empty(), "nothing was left");
    }
    drop(throttles);
    control.set(Limits::default());
}

//! Whether a worker that has served all there was looks again at once, in place of waiting for a kick.
//!
//! A driver that makes a request when it has the answer to the last one is back within microseconds. A kick takes
//! longer than that: the guest exits, and a thread that sleeps is woken. So the worker of such a driver stays
//! up a little, [coming again](super::QueueIo::come_again) for the queue, which lets the other tasks of its thread have
//! their turn each time. It does so only where the driver was back in that time before, and where that was to no
//! avail, not before it has been back a number of times: a driver that takes its time, or cannot run while somebody
//! looks, costs next to nothing.
//!
//! ```text
//!           back soon, often enough                  nothing for a window: more is asked for the next time
//! waiting ◄──────────────────────────► lingering ──────────────────────────────────────────────────────────► waiting
//! ```

use std::time::{Duration, Instant};

/// How long a worker looks, and how soon a driver that is worth it is back: what QEMU's I/O threads take
/// (`poll-max-ns`).
const WINDOW: Duration = Duration::from_micros(32);

/// The most times that a driver has to be back soon before a worker lingers for it.
const MOST_ASKED: u32 = 256;

/// What is known of a worker's driver.
#[derive(Debug)]
pub struct Linger {
    /// When all had been served.
    since: Option<Instant>,
    /// How often in a row the driver was back soon.
    soon: u32,
    /// How often it has to be.
    asked: u32,
    lingering: bool,
}

impl Default for Linger {
    fn default() -> Self {
        Self {
            since: None,
            soon: 0,
            asked: 1,
            lingering: false,
        }
    }
}

impl Linger {
    /// The worker has been called at `began` and has found requests.
    pub fn came(&mut self, began: Instant) {
        let Some(since) = self.since.take() else {
            return;
        };
        if began.saturating_duration_since(since) > WINDOW {
            self.soon = 0;
            return;
        }
        self.soon = self.soon.saturating_add(1);
        if self.lingering {
            self.asked = 1;
        }
    }

    /// All there was has been served, by `now`; whether the worker should look again at once.
    pub fn stays(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let in_time = now.saturating_duration_since(since) <= WINDOW;
        if self.lingering && !in_time {
            self.soon = 0;
            self.asked = (2 * self.asked).min(MOST_ASKED);
        }
        self.lingering = in_time && self.soon >= self.asked;
        self.lingering
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_micros(20);
    const LATE: Duration = Duration::from_micros(33);

    /// A worker that takes no time, and what it does while a driver is back after `pause`: whether it lingers
    /// when the driver has all answers, and whether it still does when the driver is back.
    fn round(linger: &mut Linger, now: &mut Instant, pause: Duration) -> (bool, bool) {
        linger.came(*now);
        let at_first = linger.stays(*now);
        *now += pause;
        let to_the_end = at_first && linger.stays(*now);
        (at_first, to_the_end)
    }

    #[test]
    fn a_driver_that_is_back_soon_is_waited_for() {
        let (mut linger, mut now) = (Linger::default(), Instant::now());
        assert_eq!(
            round(&mut linger, &mut now, SOON),
            (false, false),
            "unknown"
        );
        for _ in 0..100 {
            assert_eq!(round(&mut linger, &mut now, SOON), (true, true));
        }
    }

    #[test]
    fn one_that_takes_its_time_is_not() {
        let (mut linger, mut now) = (Linger::default(), Instant::now());
        for _ in 0..100 {
            assert_eq!(round(&mut linger, &mut now, LATE), (false, false));
        }
    }

    #[test]
    fn nobody_lingers_for_longer_than_a_window() {
        let (mut linger, mut now) = (Linger::default(), Instant::now());
        round(&mut linger, &mut now, SOON);
        assert_eq!(round(&mut linger, &mut now, LATE), (true, false));
        assert_eq!(
            round(&mut linger, &mut now, SOON),
            (false, false),
            "it was late"
        );
    }

    #[test]
    fn what_was_to_no_avail_is_done_ever_more_seldom() {
        // A driver that cannot run while somebody looks: one processor for both.
        let (mut linger, mut now) = (Linger::default(), Instant::now());
        let mut lingered = 0;
        for _ in 0..10_000 {
            linger.came(now);
            if linger.stays(now) {
                lingered += 1;
                now += LATE;
                assert!(!linger.stays(now));
            }
            now += SOON;
        }
        assert!((8..=50).contains(&lingered), "{lingered} of 10000");
    }

    #[test]
    fn a_driver_that_is_worth_it_again_is_soon_trusted() {
        let (mut linger, mut now) = (Linger::default(), Instant::now());
        for _ in 0..20 {
            while !round(&mut linger, &mut now, SOON).0 {}
            now += LATE;
            assert!(!linger.stays(now), "to no avail");
        }
        let asked = (0..)
            .take_while(|_| !round(&mut linger, &mut now, SOON).0)
            .count();
        assert_eq!(asked, 256);
        // Once it was to some avail, all is as in the beginning.
        assert_eq!(round(&mut linger, &mut now, LATE), (true, false));
        round(&mut linger, &mut now, SOON);
        round(&mut linger, &mut now, SOON);
        assert_eq!(round(&mut linger, &mut now, SOON), (true, true));
    }
}

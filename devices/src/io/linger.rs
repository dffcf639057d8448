//! Whether a session that has served all there was looks again at once, in place of waiting for a kick.
//!
//! A driver that makes a request when it has the answer to the last one is back within microseconds. A kick takes
//! longer than that: the guest exits, and a thread that sleeps is woken. So the session of such a driver stays up a
//! little, coming again for the queue, which lets the other tasks of its thread have their turn each time. It does so
//! only where the driver was back in that time before, and where that was to no avail, not before it has been back a
//! number of times: a driver that takes its time, or cannot run while somebody looks, costs next to nothing. What a
//! driver is back for may have come in another queue than the one it fills then, as an answer to what it sent: each queue
//! has a pace of its own.
//!
//! ```text
//!           back soon, often enough                  nothing for a window: more is asked for the next time
//! waiting ◄──────────────────────────► lingering ──────────────────────────────────────────────────────────► waiting
//! ```

use std::time::{Duration, Instant};

use super::queue_io::{QueueIo, Use};
use crate::virtio::QueueIndex;

/// How long a worker looks, and how soon a driver that is worth it is back: what QEMU's I/O threads take
/// (`poll-max-ns`).
const WINDOW: Duration = Duration::from_micros(32);

/// The most times that a driver has to be back soon before a worker lingers for it.
const MOST_ASKED: u32 = 256;

/// What is known of a session's driver.
#[derive(Debug)]
pub(super) struct Linger {
    /// By queue: how soon the driver is back when it has chains of that back. One that sends a request and waits for
    /// what comes in another queue is back soon after the latter only.
    paces: Vec<Pace>,
    /// The queue that it got chains of back last.
    answered: QueueIndex,
    /// By queue: chains that the worker has.
    held: Vec<i32>,
    /// The queue that was served to its end last.
    latest: QueueIndex,
    /// Whether the driver has all it gave to that, and nobody else keeps the worker from taking more.
    rests: bool,
}

impl Linger {
    /// For a session with so many queues.
    pub(super) fn new(queues: usize) -> Self {
        Self {
            paces: (0..queues).map(|_| Pace::default()).collect(),
            answered: QueueIndex(0),
            held: vec![0; queues],
            latest: QueueIndex(0),
            rests: false,
        }
    }

    /// After the event `io`, which began at `began`: the queue that the session should look at again at once, if there
    /// is one.
    pub(super) fn after(
        &mut self,
        io: &QueueIo<'_>,
        began: Instant,
        now: impl FnOnce() -> Instant,
    ) -> Option<QueueIndex> {
        for (queue, Use { taken, given }) in io.uses() {
            if let Some(held) = self.held.get_mut(usize::from(queue.0)) {
                *held += taken - given;
            }
            if taken > 0 && io.empty().contains(queue) {
                self.latest = queue;
                self.pace()?.came(began);
            }
        }
        let answered = io.uses().filter(|(_, done)| done.given > 0).last();
        if let Some((queue, _)) = answered {
            if queue != self.answered {
                self.pace()?.overtaken();
            }
            self.answered = queue;
            self.pace()?.since = None;
        }
        let latest = io.uses().find(|(queue, _)| *queue == self.latest);
        if let Some((queue, done)) = latest {
            // Found empty, or not looked at because what was asked of it before came to its end only now.
            let served = io.empty().contains(queue) || done.given > 0 && done.taken <= 0;
            self.rests = served && self.held.get(usize::from(queue.0)) == Some(&0);
        }
        // An event that did nothing for the driver is no reason to wait for it.
        latest.or(answered)?;
        (self.rests && self.pace()?.stays(now())).then_some(self.latest)
    }

    /// A queue that the driver is likely to fill before an event is over that gives it what it waits for.
    pub(super) fn expected(&self) -> Option<QueueIndex> {
        let soon = self.paces.iter().any(Pace::is_soon);
        (self.rests && soon).then_some(self.latest)
    }

    /// How soon the driver is back after what it got last.
    fn pace(&mut self) -> Option<&mut Pace> {
        self.paces.get_mut(usize::from(self.answered.0))
    }
}

/// How soon a driver is back, and whether it was worth waiting for it.
#[derive(Debug)]
struct Pace {
    /// When all had been served.
    since: Option<Instant>,
    /// How often in a row the driver was back soon.
    soon: u32,
    /// How often it has to be.
    asked: u32,
    lingering: bool,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            since: None,
            soon: 0,
            asked: 1,
            lingering: false,
        }
    }
}

impl Pace {
    /// The worker has been called at `began` and has found requests.
    fn came(&mut self, began: Instant) {
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

    /// The driver got something else before it was back: this is not what it goes on from.
    fn overtaken(&mut self) {
        if self.since.take().is_some() {
            self.soon = 0;
        }
    }

    /// All there was has been served, by `now`; whether the worker should look again at once.
    fn stays(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let in_time = now.saturating_duration_since(since) <= WINDOW;
        if self.lingering && !in_time {
            self.soon = 0;
            self.asked = (2 * self.asked).min(MOST_ASKED);
        }
        self.lingering = in_time && self.is_soon();
        self.lingering
    }

    /// Whether it is worth waiting for the driver.
    fn is_soon(&self) -> bool {
        self.soon >= self.asked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::mem::GuestMemory;
    use crate::virtio::Features;
    use crate::virtio::testing::{Descriptor, Driver, memory};

    const SOON: Duration = Duration::from_micros(20);
    const LATE: Duration = Duration::from_micros(33);

    /// A worker that takes no time, and what it does while a driver is back after `pause`: whether it lingers
    /// when the driver has all answers, and whether it still does when the driver is back.
    fn round(linger: &mut Pace, now: &mut Instant, pause: Duration) -> (bool, bool) {
        linger.came(*now);
        let at_first = linger.stays(*now);
        *now += pause;
        let to_the_end = at_first && linger.stays(*now);
        (at_first, to_the_end)
    }

    #[test]
    fn a_driver_that_is_back_soon_is_waited_for() {
        let (mut linger, mut now) = (Pace::default(), Instant::now());
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
        let (mut linger, mut now) = (Pace::default(), Instant::now());
        for _ in 0..100 {
            assert_eq!(round(&mut linger, &mut now, LATE), (false, false));
        }
    }

    #[test]
    fn nobody_lingers_for_longer_than_a_window() {
        let (mut linger, mut now) = (Pace::default(), Instant::now());
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
        let (mut linger, mut now) = (Pace::default(), Instant::now());
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
        let (mut linger, mut now) = (Pace::default(), Instant::now());
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

    const QUEUE: QueueIndex = QueueIndex(0);
    const OTHER: QueueIndex = QueueIndex(1);

    /// A session of two queues, which a driver fills with a chain at a time.
    struct Bench {
        memory: GuestMemory,
        driver: Driver,
        other: Driver,
        queues: [virtio_queue::Queue; 2],
        linger: Linger,
        now: Instant,
    }

    impl Bench {
        fn new() -> Self {
            let memory = memory();
            let driver = Driver::new(&memory, 0x1000, 16);
            let other = Driver::new(&memory, 0x4000, 16);
            for head in 0..16 {
                driver.set_descriptor(head, Descriptor::readable(0x8000, 1));
                other.set_descriptor(head, Descriptor::readable(0x8000, 1));
            }
            let queues = [driver.queue(), other.queue()];
            let mut linger = Linger::new(2);
            // It was back soon before.
            linger.paces[0].soon = 1;
            Self {
                memory,
                driver,
                other,
                queues,
                linger,
                now: Instant::now(),
            }
        }

        /// An event in which `work` is done, and which takes no time; whether the session lingers after it.
        fn event(&mut self, work: impl FnOnce(&mut QueueIo<'_>)) -> bool {
            let mut io = QueueIo::new(&self.memory, &mut self.queues, Features::VERSION_1);
            work(&mut io);
            let queue = self.linger.after(&io, self.now, || self.now);
            io.finish().unwrap();
            assert!(queue.is_none_or(|queue| queue == QUEUE));
            queue.is_some()
        }
    }

    fn pop(io: &mut QueueIo<'_>) -> Option<u16> {
        io.pop(QUEUE).unwrap().map(|chain| chain.head)
    }

    fn give(io: &mut QueueIo<'_>, head: u16) {
        io.complete(QUEUE, head, 0).unwrap();
    }

    #[test]
    fn it_is_the_served_driver_that_is_waited_for() {
        let mut bench = Bench::new();
        bench.driver.publish(0);
        let lingers = bench.event(|io| {
            let head = pop(io).unwrap();
            give(io, head);
            assert_eq!(pop(io), None);
        });
        assert!(lingers, "it has all it gave");
        assert!(bench.event(|io| assert_eq!(pop(io), None)), "nothing yet");

        bench.driver.publish(1);
        bench.driver.publish(2);
        let lingers = bench.event(|io| {
            let head = pop(io).unwrap();
            give(io, head);
        });
        assert!(!lingers, "the worker could not go on");
        let lingers = bench.event(|io| {
            assert_eq!(pop(io), Some(2));
            assert_eq!(pop(io), None);
        });
        assert!(!lingers, "the driver waits for one");
        assert!(!bench.event(|_| ()), "it still does");
        assert!(bench.event(|io| give(io, 2)), "and now it has it");
    }

    /// As a stream's driver that sends a byte and waits for one to come: there are buffers for that.
    #[test]
    fn a_driver_is_waited_for_after_what_it_goes_on_from() {
        let mut bench = Bench::new();
        let give_other = |io: &mut QueueIo<'_>| {
            let head = io.pop(OTHER).unwrap().unwrap().head;
            io.complete(OTHER, head, 0).unwrap();
        };
        for round in 0..10 {
            bench.driver.publish(round);
            let lingers = bench.event(|io| {
                let head = pop(io).unwrap();
                give(io, head);
                assert_eq!(pop(io), None);
            });
            assert_eq!(lingers, round == 0, "it waits for something else");
            bench.now += SOON / 2;
            assert_eq!(bench.linger.expected(), Some(QUEUE), "once it has that");
            bench.other.publish(round);
            assert_eq!(bench.event(give_other), round > 0, "it has that");
            bench.now += SOON / 2;
        }
    }

    #[test]
    fn what_was_put_back_is_not_held() {
        let mut bench = Bench::new();
        bench.driver.publish(0);
        let lingers = bench.event(|io| {
            assert_eq!(pop(io), Some(0));
            io.unpop(QUEUE).unwrap();
        });
        assert!(!lingers, "the worker could not go on");
        let lingers = bench.event(|io| {
            let head = pop(io).unwrap();
            give(io, head);
            assert_eq!(pop(io), None);
        });
        assert!(lingers);
    }
}

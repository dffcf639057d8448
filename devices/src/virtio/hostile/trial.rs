//! Cases on fresh devices, with a neighbour on the same I/O thread, and what must hold afterwards.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use event_manager::{EventOps, Events, MutEventSubscriber};

use super::attack::Engine;
use super::{Attack, Case, Expect, Scope, Subject, block};
use crate::io::IoThread;
use crate::virtio::testing::{Tape, reg};

/// What is a hang: longer than any case takes on the slowest machine by far.
const LIMIT: Duration = Duration::from_secs(180);

/// The trials of one device.
pub(super) struct Trials {
    subject: Subject,
    /// Used from one case to the next, as long as all goes well.
    surroundings: Option<Surroundings>,
}

/// I/O threads, and another device on the first of them.
struct Surroundings {
    neighbour: Attack,
    died: Arc<OnceLock<String>>,
    threads: [IoThread; 2],
}

impl Surroundings {
    fn new() -> Self {
        let died = Arc::new(OnceLock::new());
        let spawn = |name| {
            let told = Arc::clone(&died);
            let thread = IoThread::spawn(name, move |error| {
                let _ = told.set(error.to_string());
            });
            thread.expect("cannot start an I/O thread")
        };
        let threads = [spawn("io-0"), spawn("io-1")];
        let engine = Engine::Threads([threads[0].handle()].into(), Arc::clone(&died));
        let mut neighbour = Attack::new(&block::subject(), engine, 0, Tape::default());
        neighbour.start();
        Self {
            neighbour,
            died,
            threads,
        }
    }

    fn try_case(&mut self, subject: &Subject, case: &Case, queue: u16) {
        let handles = self.threads.iter().map(IoThread::handle).collect();
        let engine = Engine::Threads(handles, Arc::clone(&self.died));
        let mut attack = Attack::new(subject, engine, queue, Tape::default());
        (case.act)(&mut attack);
        attack.provoke();
        self.neighbour_serves();
        self.go_round();
        self.expect(case.expect, &mut attack);

        reset(&attack);
        attack.assert_recovers();
        self.neighbour_serves();
        reset(&attack);
        assert_eq!(self.died.get(), None, "the I/O thread");
    }

    /// Returns when each thread has dealt with all that was kicked before.
    fn go_round(&self) {
        for thread in &self.threads {
            let task = thread
                .handle()
                .add(Box::new(Idle))
                .expect("the loop is gone");
            thread.handle().remove(task).expect("the loop is gone");
        }
    }

    fn neighbour_serves(&mut self) {
        (self.neighbour.subject.serves)(&mut self.neighbour);
    }

    fn expect(&mut self, expect: Expect, attack: &mut Attack) {
        let taken = attack.queues[usize::from(attack.queue)].taken;
        match expect {
            Expect::Reset if taken => {
                attack.wait_for("NEEDS_RESET", |attack| attack.machine.faulted());
                // And it stays quiet.
                attack.kick_all();
                self.neighbour_serves();
            }
            Expect::Fine => assert!(!attack.machine.faulted(), "it needs a reset"),
            Expect::Reset | Expect::Either => {}
        }
    }
}

/// A task that does nothing.
struct Idle;

impl MutEventSubscriber for Idle {
    fn init(&mut self, _ops: &mut EventOps<'_>) {}
    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {}
}

/// Resets the device, after which nothing of it touches memory.
fn reset(attack: &Attack) {
    attack.machine.set(reg::STATUS, 0);
    assert_eq!(attack.machine.get(reg::STATUS), 0, "a reset ends at once");
    assert_eq!(attack.ram.trespasses(), None, "written but not given");
}

impl Trials {
    pub(super) fn new(subject: Subject) -> Self {
        Self {
            subject,
            surroundings: None,
        }
    }

    /// Tries `case` on all that it is aimed at; a line for each failure.
    pub(super) fn failures(&mut self, case: &Arc<Case>) -> Vec<String> {
        let queues = match case.scope {
            Scope::Device => 1,
            Scope::Queue => {
                let stage = (self.subject.stage)();
                u16::try_from(stage.queues.len()).expect("too many queues")
            }
        };
        let name = self.subject.name;
        let fails = |queue| {
            let error = self.within_limit(Arc::clone(case), queue)?;
            Some(format!("{name}, queue {queue}: {}: {error}", case.name))
        };
        (0..queues).filter_map(fails).collect()
    }

    /// Tries it on a thread of its own, so that a hang of either side is seen.
    fn within_limit(&mut self, case: Arc<Case>, queue: u16) -> Option<String> {
        let (sender, ended) = channel();
        let surroundings = self.surroundings.take();
        let subject = self.subject;
        let body = move || {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                let mut surroundings = surroundings.unwrap_or_else(Surroundings::new);
                surroundings.try_case(&subject, &case, queue);
                surroundings
            }));
            let _ = sender.send(outcome.map_err(|panic| {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
                text.unwrap_or_else(|| "a panic without words".to_owned())
            }));
        };
        let guest = thread::Builder::new().name("guest".to_owned());
        guest.spawn(body).expect("cannot start a thread");
        match ended.recv_timeout(LIMIT) {
            Ok(Ok(surroundings)) => {
                self.surroundings = Some(surroundings);
                None
            }
            Ok(Err(error)) => Some(error),
            // The thread is left behind.
            Err(RecvTimeoutError::Timeout) => Some("hangs".to_owned()),
            Err(RecvTimeoutError::Disconnected) => Some("ended without a word".to_owned()),
        }
    }
}

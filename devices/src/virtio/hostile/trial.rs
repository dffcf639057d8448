//! One case on one device, with a neighbour on the same I/O thread, and what must hold afterwards.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use super::attack::Engine;
use super::{Attack, Case, Expect, Scope, Subject, block};
use crate::io::IoThread;
use crate::virtio::testing::{Tape, reg};

/// What is a hang: longer than any case takes on the slowest machine by far.
const LIMIT: Duration = Duration::from_secs(180);

/// Tries `case` on all that it is aimed at; a line for each failure.
pub(super) fn failures(subject: Subject, case: &Arc<Case>) -> Vec<String> {
    let queues = match case.scope {
        Scope::Device => 1,
        Scope::Queue => {
            let stage = (subject.stage)();
            u16::try_from(stage.queues.len()).expect("too many queues")
        }
    };
    let fails = |queue| {
        let error = within_limit(subject, Arc::clone(case), queue)?;
        Some(format!(
            "{}, queue {queue}: {}: {error}",
            subject.name, case.name
        ))
    };
    (0..queues).filter_map(fails).collect()
}

/// Tries it on a thread of its own, so that a hang of either side is seen.
fn within_limit(subject: Subject, case: Arc<Case>, queue: u16) -> Option<String> {
    let (sender, ended) = channel();
    let body = move || {
        let outcome = catch_unwind(AssertUnwindSafe(|| try_case(&subject, &case, queue)));
        let _ = sender.send(outcome.err().map(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            text.unwrap_or_else(|| "a panic without words".to_owned())
        }));
    };
    let guest = thread::Builder::new().name("guest".to_owned());
    let guest = guest.spawn(body).expect("cannot start a thread");
    match ended.recv_timeout(LIMIT) {
        Ok(outcome) => {
            let _ = guest.join();
            outcome
        }
        // The thread is left behind.
        Err(RecvTimeoutError::Timeout) => Some("hangs".to_owned()),
        Err(RecvTimeoutError::Disconnected) => Some("ended without a word".to_owned()),
    }
}

fn try_case(subject: &Subject, case: &Case, queue: u16) {
    let died = Arc::new(OnceLock::new());
    let told = Arc::clone(&died);
    let io = IoThread::spawn("io", move |error| {
        let _ = told.set(error.to_string());
    });
    let io = io.expect("cannot start an I/O thread");
    let engine = Engine::Thread(io.handle(), Arc::clone(&died));

    let mut neighbour = Attack::new(&block::subject(), engine.clone(), 0, Tape::default());
    neighbour.start();
    let mut attack = Attack::new(subject, engine, queue, Tape::default());
    (case.act)(&mut attack);
    attack.provoke();
    // An answer of the neighbour's means that the thread has been round, with all that was kicked before.
    (neighbour.subject.serves)(&mut neighbour);
    expect(case.expect, &mut attack, &mut neighbour);

    attack.machine.set(reg::STATUS, 0);
    assert_eq!(attack.machine.get(reg::STATUS), 0, "a reset ends at once");
    assert_eq!(attack.ram.trespasses(), None, "written but not given");
    attack.assert_recovers();
    (neighbour.subject.serves)(&mut neighbour);
    drop(io);
    assert_eq!(died.get(), None, "the I/O thread");
    assert_eq!(attack.ram.trespasses(), None, "written but not given");
    assert_eq!(neighbour.ram.trespasses(), None, "the neighbour's");
}

fn expect(expect: Expect, attack: &mut Attack, neighbour: &mut Attack) {
    let taken = attack.queues[usize::from(attack.queue)].taken;
    match expect {
        Expect::Reset if taken => {
            attack.wait_for("NEEDS_RESET", |attack| attack.machine.faulted());
            // And it stays quiet.
            attack.kick_all();
            (neighbour.subject.serves)(neighbour);
        }
        Expect::Fine => assert!(!attack.machine.faulted(), "it needs a reset"),
        Expect::Reset | Expect::Either => {}
    }
}

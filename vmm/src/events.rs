//! What happens to a VM, as it happens, for programs that follow it: its start, its console line by
//! line, its end.
//!
//! ```text
//!                        ┌─► ring ─► writer thread ─► file, terminal, client
//! vCPU threads ─► port ──┤
//!                        └─► ring ─► tap thread ─► lines ─┐
//! lifecycle: started, ended ──────────────────────────────┴─► queue ─► Events
//! ```
//!
//! [`channel`] makes the two ends: the sender goes to [`crate::VmBuilder::events`], and whoever keeps
//! [`Events`] takes what comes. The queue is bounded. A guest that prints faster than its events are
//! taken is made to wait, as it is for its console; one whose events nobody takes goes on after a while,
//! and its oldest output is then missing from them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::flag::Flag;
use crate::lifecycle::ExitReason;

/// Most events that wait to be taken.
const CAPACITY: usize = 1024;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: Instant,
    /// What.
    pub kind: EventKind,
}

/// What can happen.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// The first vCPU is about to enter the guest.
    Started,
    /// The guest has printed a line: its text, without its end, control characters and escape sequences.
    Line(String),
    /// The guest has printed a line's beginning and made a pause, as after a prompt. The same line may
    /// come again, longer or whole; nothing else is printed in between.
    Unfinished(String),
    /// The guest's command runs.
    CommandStarted,
    /// The guest's command is over, and what it said has been passed on.
    CommandEnded,
    /// The VM has been paused: by somebody, or by a disk that the host has failed, which says so.
    Paused(Option<String>),
    /// It goes on.
    Resumed,
    /// The VM is over: how, unless KVM or the host failed it. What it had printed by then may still
    /// follow.
    Ended(Option<ExitReason>),
}

#[derive(Debug)]
struct State {
    events: VecDeque<Event>,
    /// The tap was turned away and waits for room.
    wants_room: bool,
    /// Nobody is made to wait for room any more.
    unbounded: bool,
    /// Nothing more will come.
    closed: bool,
    /// Nobody takes events any more.
    abandoned: bool,
}

#[derive(Debug)]
struct Queue {
    /// Shared by those to whom something happens and the one who takes it.
    state: Mutex<State>,
    /// For those who wait without `poll`.
    change: Condvar,
    /// Raised while there is an event to take, or none will come.
    ready: Flag,
    /// Raised when the tap need wait no longer.
    room: Flag,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, event: Event) {
        let mut state = self.lock();
        if state.closed || state.abandoned {
            return;
        }
        // A line that has grown takes the place of its beginning.
        let is_text = matches!(event.kind, EventKind::Line(_) | EventKind::Unfinished(_));
        if is_text
            && let Some(last) = state.events.back_mut()
            && matches!(last.kind, EventKind::Unfinished(_))
        {
            *last = event;
            return;
        }
        state.events.push_back(event);
        if state.events.len() == 1 {
            self.signal();
        }
    }

    fn pop(&self, state: &mut State) -> Option<Event> {
        let event = state.events.pop_front()?;
        if state.events.is_empty() && !state.closed {
            self.ready.lower();
        }
        // Half of it, so that the tap is woken for a batch.
        if state.wants_room && state.events.len() <= CAPACITY / 2 {
            state.wants_room = false;
            self.room.raise();
        }
        Some(event)
    }

    fn signal(&self) {
        self.ready.raise();
        self.change.notify_all();
    }

    fn close(&self) {
        self.lock().closed = true;
        self.signal();
    }
}

/// Makes a channel for the events of one VM.
///
/// # Errors
/// The host has no event descriptor left.
pub fn channel() -> io::Result<(EventSender, Events)> {
    let queue = Arc::new(Queue {
        state: Mutex::new(State {
            events: VecDeque::new(),
            wants_room: false,
            unbounded: false,
            closed: false,
            abandoned: false,
        }),
        change: Condvar::new(),
        ready: Flag::new()?,
        room: Flag::new()?,
    });
    Ok((EventSender(Arc::clone(&queue)), Events(queue)))
}

/// The end that a VM is given. Once it is gone, nothing more will come.
#[derive(Debug)]
pub struct EventSender(Arc<Queue>);

impl EventSender {
    /// A second way into the queue, which does not keep it open.
    pub(crate) fn notes(&self) -> EventNotes {
        EventNotes(Arc::clone(&self.0))
    }

    /// Whether a line may be sent; where not, [`Self::room`] tells when.
    pub(crate) fn has_room(&self) -> bool {
        let mut state = self.0.lock();
        let room = state.events.len() < CAPACITY || state.unbounded || state.abandoned;
        state.wants_room = !room;
        if state.wants_room {
            self.0.room.lower();
        }
        room
    }

    pub(crate) fn room(&self) -> BorrowedFd<'_> {
        self.0.room.as_fd()
    }

    pub(crate) fn send(&self, at: Instant, kind: EventKind) {
        self.0.push(Event { at, kind });
    }
}

impl Drop for EventSender {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// For what happens seldom and must never wait.
#[derive(Debug)]
pub(crate) struct EventNotes(Arc<Queue>);

impl EventNotes {
    pub(crate) fn send(&self, kind: EventKind) {
        let at = Instant::now();
        self.0.push(Event { at, kind });
    }

    /// Takes what is still on its way without a limit: who takes the events may be the one who waits for
    /// the VM's end. It is no more than fits into the tap's ring.
    pub(crate) fn unbound(&self) {
        self.0.lock().unbounded = true;
        self.0.room.raise();
    }
}

/// The end at which events are taken.
///
/// As an iterator it waits for each event, and ends when the VM is over and all has been said. Where a
/// thread waits for other things too, it polls this for input and calls [`Self::try_next`] until that
/// gives none.
#[derive(Debug)]
pub struct Events(Arc<Queue>);

impl Events {
    /// The next event, if there is one now.
    pub fn try_next(&mut self) -> Option<Event> {
        self.0.pop(&mut self.0.lock())
    }

    /// Whether all has been taken and nothing more will come.
    #[must_use]
    pub fn is_over(&self) -> bool {
        let state = self.0.lock();
        state.closed && state.events.is_empty()
    }
}

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        let queue = &self.0;
        let mut state = queue
            .change
            .wait_while(queue.lock(), |state| {
                state.events.is_empty() && !state.closed
            })
            .unwrap_or_else(PoisonError::into_inner);
        queue.pop(&mut state)
    }
}

impl AsFd for Events {
    /// Readable while there is an event to take, or none will come. Only to be polled.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.ready.as_fd()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.abandoned = true;
        state.events = VecDeque::new();
        drop(state);
        self.0.room.raise();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::thread;

    fn is_ready(fd: impl AsFd) -> bool {
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
    }

    fn line(text: &str) -> EventKind {
        EventKind::Line(text.to_owned())
    }

    fn kinds(events: Events) -> Vec<EventKind> {
        events.map(|event| event.kind).collect()
    }

    #[test]
    fn events_come_in_order_and_the_end_is_seen() {
        let (sender, mut events) = channel().unwrap();
        assert!(!is_ready(&events));
        assert_eq!(events.try_next(), None);
        let notes = sender.notes();
        notes.send(EventKind::Started);
        sender.send(Instant::now(), line("one"));
        assert!(is_ready(&events));
        assert_eq!(events.try_next().unwrap().kind, EventKind::Started);
        assert!(is_ready(&events));
        assert_eq!(events.try_next().unwrap().kind, line("one"));
        assert!(!is_ready(&events) && !events.is_over());
        notes.send(EventKind::Ended(None));
        drop(sender);
        notes.send(EventKind::Started);
        assert!(!events.is_over());
        assert_eq!(events.try_next().unwrap().kind, EventKind::Ended(None));
        assert!(is_ready(&events) && events.is_over());
        assert_eq!(kinds(events), []);
    }

    #[test]
    fn a_line_that_grows_is_told_once_to_one_who_comes_late() {
        let (sender, mut events) = channel().unwrap();
        for text in ["l", "login:", "login: "] {
            sender.send(Instant::now(), EventKind::Unfinished(text.to_owned()));
        }
        let first = events.try_next().unwrap().kind;
        assert_eq!(first, EventKind::Unfinished("login: ".to_owned()));
        assert!(!is_ready(&events));
        sender.send(Instant::now(), EventKind::Unfinished("login: r".to_owned()));
        sender.notes().send(EventKind::Ended(None));
        sender.send(Instant::now(), line("login: root"));
        drop(sender);
        let rest = kinds(events);
        assert_eq!(
            rest.len(),
            3,
            "a note in between is kept in its place: {rest:?}"
        );
        assert_eq!(rest[2], line("login: root"));
    }

    #[test]
    fn whoever_iterates_waits() {
        let (sender, events) = channel().unwrap();
        let taker = thread::spawn(move || kinds(events));
        for _ in 0..10 {
            sender.send(Instant::now(), line("x"));
            thread::yield_now();
        }
        drop(sender);
        assert_eq!(taker.join().unwrap().len(), 10);
    }

    #[test]
    fn a_full_queue_has_no_room_until_half_of_it_is_taken() {
        let (sender, mut events) = channel().unwrap();
        for _ in 0..CAPACITY {
            assert!(sender.has_room());
            sender.send(Instant::now(), line("x"));
        }
        assert!(!sender.has_room());
        for _ in 0..CAPACITY / 2 - 1 {
            events.try_next().unwrap();
        }
        assert!(!is_ready(sender.room()));
        events.try_next().unwrap();
        assert!(is_ready(sender.room()) && sender.has_room());
    }

    #[test]
    fn nobody_waits_at_the_end_or_for_one_who_has_left() {
        for leave in [false, true] {
            let (sender, events) = channel().unwrap();
            for _ in 0..CAPACITY {
                sender.send(Instant::now(), line("x"));
            }
            assert!(!sender.has_room());
            if leave {
                drop(events);
            } else {
                sender.notes().unbound();
            }
            assert!(is_ready(sender.room()) && sender.has_room());
        }
    }
}

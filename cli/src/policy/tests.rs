//! Every order of signals, keys, clocks, console lines and ends.

use super::*;
use crate::watch::Wanted;
use std::time::Instant;
use vmm::events::EventKind;

const TERM: Number = Number(15);
const INT: Number = Number(2);
const HUP: Number = Number(1);

fn status_of(policy: &Policy, reason: ExitReason) -> u8 {
    policy.outcome(reason, None).status
}

fn after(events: &[Event]) -> (Policy, Step) {
    let mut policy = Policy::new(true);
    let mut step = Step::Nothing;
    for event in events {
        step = policy.on(*event);
    }
    (policy, step)
}

#[test]
fn the_first_signal_asks_the_second_ends_the_third_leaves() {
    let (policy, step) = after(&[Event::Ask(TERM)]);
    assert_eq!(step, Step::AskGuest);
    assert_eq!(status_of(&policy, ExitReason::PoweredOff), 0);
    let (policy, step) = after(&[Event::Ask(TERM), Event::Ask(INT)]);
    assert_eq!(step, Step::Stop);
    assert_eq!(status_of(&policy, ExitReason::Stopped), 130);
    let (_, step) = after(&[Event::Ask(TERM), Event::Ask(TERM), Event::Ask(TERM)]);
    assert_eq!(step, Step::Abandon);
}

#[test]
fn a_command_that_ended_has_the_last_word_unless_the_console_settled_it() {
    let with = |end: CommandEnd, cause: &[Event]| {
        let (mut policy, _) = after(cause);
        policy.command_ended(end);
        policy
    };
    let exited = |status| CommandEnd::Exited(status);
    for reason in [ExitReason::PoweredOff, ExitReason::Stopped] {
        for (end, status) in [(exited(0), 0), (exited(3), 3), (CommandEnd::Killed(9), 137)] {
            let policy = with(end, &[Event::Deadline]);
            assert_eq!(policy.outcome(reason, None).status, status);
        }
    }
    let missing = CommandEnd::NotStarted {
        status: 127,
        reason: "make: not found".to_owned(),
    };
    let outcome = with(missing, &[]).outcome(ExitReason::PoweredOff, None);
    let expected = Outcome::new(Ending::CommandNotStarted, 127, "make: not found");
    assert_eq!(outcome, expected);
    assert_eq!(status_of(&with(exited(0), &[]), ExitReason::Panicked), 123);

    let (_, seen) = watch("good", "bad", &[]);
    let outcome = |end| with(end, &[]).outcome(ExitReason::PoweredOff, Some(&seen));
    assert_eq!(
        outcome(exited(0)).status,
        122,
        "what was expected did not come"
    );
    assert_eq!(outcome(exited(5)).status, 5);
}

#[test]
fn a_guest_that_ends_before_its_command_has_failed() {
    let lost = |started: bool, reason: ExitReason, cause: &[Event]| {
        let (mut policy, _) = after(cause);
        policy.command_ended(CommandEnd::Lost { started });
        policy.outcome(reason, None)
    };
    for (started, reason, message) in [
        (
            false,
            ExitReason::PoweredOff,
            "the guest powered off before its command was started",
        ),
        (
            true,
            ExitReason::Rebooted,
            "the guest rebooted before its command ended",
        ),
        (
            true,
            ExitReason::Deserted,
            "the guest was lost before its command ended",
        ),
    ] {
        let outcome = lost(started, reason, &[]);
        assert_eq!(outcome, Outcome::new(Ending::CommandLost, 125, message));
        assert!(outcome.ended.is_trouble());
    }
    for (cause, ended, status, is_trouble) in [
        (&[Event::Deadline][..], Ending::TimedOut, 124, true),
        (
            &[Event::Ask(TERM), Event::Ask(INT)],
            Ending::Signal,
            130,
            false,
        ),
        (&[Event::Key], Ending::Key, 137, false),
        (&[], Ending::Stopped, 137, false),
    ] {
        let outcome = lost(true, ExitReason::Stopped, cause);
        assert_eq!((outcome.ended, outcome.status), (ended, status));
        assert_eq!(ended.is_trouble(), is_trouble);
    }
}

#[test]
fn without_a_power_button_the_first_signal_ends() {
    let mut policy = Policy::new(false);
    assert_eq!(policy.on(Event::Ask(TERM)), Step::Stop);
    assert_eq!(status_of(&policy, ExitReason::Stopped), 143);
}

#[test]
fn a_hangup_a_key_and_the_clock_do_not_ask() {
    for (event, status) in [
        (Event::End(HUP), 129),
        (Event::Key, 0),
        (Event::Deadline, 124),
    ] {
        let (policy, step) = after(&[event]);
        assert_eq!(step, Step::Stop);
        assert_eq!(status_of(&policy, ExitReason::Stopped), status);
        let (policy, step) = after(&[Event::Ask(TERM), event]);
        assert_eq!(step, Step::Stop, "also after the guest was asked");
        assert_eq!(status_of(&policy, ExitReason::Stopped), status);
    }
}

#[test]
fn what_came_first_is_the_cause() {
    let (policy, step) = after(&[Event::Key, Event::Deadline]);
    assert_eq!(step, Step::Nothing);
    assert_eq!(status_of(&policy, ExitReason::Stopped), 0);
}

/// A watch that has seen these lines.
fn watch(expect: &str, fail_on: &str, lines: &[&str]) -> (Policy, Watch) {
    let mut policy = Policy::new(true);
    let mut watch = Watch::new(Wanted {
        expect: vec![expect.parse().unwrap()],
        fail_on: vec![fail_on.parse().unwrap()],
        ..Wanted::default()
    });
    for line in lines {
        let kind = EventKind::Line((*line).to_owned());
        let at = Instant::now();
        if let Some(verdict) = watch.on_event(&vmm::events::Event { at, kind }) {
            policy.on(Event::Verdict(verdict));
        }
    }
    (policy, watch)
}

#[test]
fn what_the_console_settled_counts_however_the_guest_ended() {
    use ExitReason::{Halted, Panicked, PoweredOff, Rebooted, Stopped, TripleFault};
    for reason in [PoweredOff, Rebooted, Halted, Panicked, TripleFault, Stopped] {
        let (policy, seen) = watch("good", "bad", &["good", "bad"]);
        let outcome = policy.outcome(reason, Some(&seen));
        assert_eq!(outcome, Outcome::plain(Ending::ExpectationsMet));
        let (policy, seen) = watch("good", "bad", &["bad", "good"]);
        let outcome = policy.outcome(reason, Some(&seen));
        assert_eq!(
            outcome,
            Outcome::new(
                Ending::ExpectationFailed,
                122,
                "--fail-on 'bad' matched: bad"
            ),
            "{reason:?}"
        );
    }
}

#[test]
fn what_is_expected_and_does_not_come_fails_a_guest_that_ends_well() {
    for (reason, ended, status, message) in [
        (
            ExitReason::PoweredOff,
            Ending::PoweredOff,
            122,
            "the guest powered off, and no line matched --expect 'good'",
        ),
        (
            ExitReason::Panicked,
            Ending::Panicked,
            123,
            "the guest's kernel panicked",
        ),
    ] {
        let (policy, seen) = watch("good", "bad", &["x"]);
        let outcome = policy.outcome(reason, Some(&seen));
        assert_eq!(outcome, Outcome::new(ended, status, message));
    }
    for (event, status) in [
        (Event::Deadline, 124),
        (Event::Key, 122),
        (Event::End(HUP), 129),
    ] {
        let (mut policy, seen) = watch("good", "bad", &["x"]);
        policy.on(event);
        let outcome = policy.outcome(ExitReason::Stopped, Some(&seen));
        assert_eq!(outcome.status, status, "{outcome:?}");
    }
}

#[test]
fn a_guest_that_ended_by_itself_is_judged_by_that() {
    let (policy, _) = after(&[Event::Deadline]);
    let outcome = policy.outcome(ExitReason::PoweredOff, None);
    assert_eq!(outcome, Outcome::plain(Ending::PoweredOff));
    for reason in [ExitReason::Panicked, ExitReason::TripleFault] {
        assert_eq!(status_of(&policy, reason), 123);
    }
    assert_eq!(status_of(&policy, ExitReason::Rebooted), 0);
    assert_eq!(status_of(&policy, ExitReason::Halted), 0);
}

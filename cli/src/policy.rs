//! How a VM comes to its end: what each event asks for, and the exit status of how it went.
//!
//! Pure, so that every order of signals, keys and clocks can be tested; [`crate::run`] does what it says.

use vmm::ExitReason;

use crate::signals::Number;
use crate::status;

/// Something that bears on the VM's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A signal that asks the guest first.
    Ask(Number),
    /// A signal that does not.
    End(Number),
    /// Ctrl-A x.
    Key,
    /// `--timeout` ran out.
    Deadline,
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Press the power button, and say that a second signal ends the VM.
    PressPowerButton,
    /// Stop the VM.
    Stop,
    /// The VM was told to stop and has not: leave it.
    Abandon,
    /// It is on its way already.
    Nothing,
}

/// What has been asked so far.
#[derive(Debug)]
pub struct Policy {
    has_power_button: bool,
    asked: bool,
    /// What stopped the VM, if not the guest.
    cause: Option<Event>,
}

impl Policy {
    /// Nothing has been asked. Without a power button the first signal ends the VM.
    pub fn new(has_power_button: bool) -> Self {
        Self {
            has_power_button,
            asked: false,
            cause: None,
        }
    }

    /// Decides on an event.
    pub fn on(&mut self, event: Event) -> Step {
        match (self.cause, event) {
            (Some(_), Event::Ask(_) | Event::End(_)) => Step::Abandon,
            (Some(_), Event::Key | Event::Deadline) => Step::Nothing,
            (None, Event::Ask(_)) if self.has_power_button && !self.asked => {
                self.asked = true;
                Step::PressPowerButton
            }
            (None, _) => {
                self.cause = Some(event);
                Step::Stop
            }
        }
    }

    /// The exit status, and what to say where it is not plain.
    pub fn outcome(&self, reason: ExitReason) -> (u8, Option<String>) {
        match reason {
            ExitReason::PoweredOff | ExitReason::Rebooted | ExitReason::Halted => (0, None),
            ExitReason::Panicked => {
                let message = "the guest's kernel panicked";
                (status::GUEST_CRASHED, Some(message.to_owned()))
            }
            ExitReason::TripleFault => {
                let message = "the guest triple-faulted: a CPU met a fault while handling a fault";
                (status::GUEST_CRASHED, Some(message.to_owned()))
            }
            ExitReason::Stopped => self.stopped(),
        }
    }

    fn stopped(&self) -> (u8, Option<String>) {
        match self.cause {
            Some(Event::Ask(signal) | Event::End(signal)) => {
                let message = format!("the VM was ended by {}", signal.name());
                (signal.status(), Some(message))
            }
            Some(Event::Deadline) => {
                let message = "the VM was ended: --timeout ran out";
                (status::TIMED_OUT, Some(message.to_owned()))
            }
            Some(Event::Key) | None => (0, Some("the VM was ended".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERM: Number = Number(15);
    const INT: Number = Number(2);
    const HUP: Number = Number(1);

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
        assert_eq!(step, Step::PressPowerButton);
        assert_eq!(policy.outcome(ExitReason::PoweredOff), (0, None));
        let (policy, step) = after(&[Event::Ask(TERM), Event::Ask(INT)]);
        assert_eq!(step, Step::Stop);
        assert_eq!(policy.outcome(ExitReason::Stopped).0, 130);
        let (_, step) = after(&[Event::Ask(TERM), Event::Ask(TERM), Event::Ask(TERM)]);
        assert_eq!(step, Step::Abandon);
    }

    #[test]
    fn without_a_power_button_the_first_signal_ends() {
        let mut policy = Policy::new(false);
        assert_eq!(policy.on(Event::Ask(TERM)), Step::Stop);
        assert_eq!(policy.outcome(ExitReason::Stopped).0, 143);
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
            assert_eq!(policy.outcome(ExitReason::Stopped).0, status);
            let (policy, step) = after(&[Event::Ask(TERM), event]);
            assert_eq!(step, Step::Stop, "also after the guest was asked");
            assert_eq!(policy.outcome(ExitReason::Stopped).0, status);
        }
    }

    #[test]
    fn what_came_first_is_the_cause() {
        let (policy, step) = after(&[Event::Key, Event::Deadline]);
        assert_eq!(step, Step::Nothing);
        assert_eq!(policy.outcome(ExitReason::Stopped).0, 0);
    }

    #[test]
    fn a_guest_that_ended_by_itself_is_judged_by_that() {
        let (policy, _) = after(&[Event::Deadline]);
        assert_eq!(policy.outcome(ExitReason::PoweredOff), (0, None));
        for reason in [ExitReason::Panicked, ExitReason::TripleFault] {
            assert_eq!(policy.outcome(reason).0, 123);
        }
        assert_eq!(policy.outcome(ExitReason::Rebooted).0, 0);
        assert_eq!(policy.outcome(ExitReason::Halted).0, 0);
    }
}

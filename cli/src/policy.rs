//! How a VM comes to its end: what each event asks for, and the exit status of how it went.
//!
//! Pure, so that every order of signals, keys, clocks and console lines can be tested; [`crate::run`]
//! does what it says.
//!
//! What counts, in this order: what the console settled, by its first line that did; a crash of the
//! guest; how the guest's command ended; what stopped the VM from outside; and for a guest that ended by
//! itself, whether everything expected had come by then. What the guest had printed when it ended is read
//! to the end first, so the status does not depend on who was faster.

use serde::Serialize;
use vmm::{CommandEnd, ExitReason};

use crate::signals::Number;
use crate::status;
use crate::watch::{Verdict, Watch};

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
    /// The console settled the matter.
    Verdict(Verdict),
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Ask the guest to end: pass the signal on to its command, or press the power button and say that a second signal ends the VM.
    AskGuest,
    /// Stop the VM.
    Stop,
    /// The VM was told to stop and has not: leave it.
    Abandon,
    /// It is on its way already.
    Nothing,
}

/// How the VM ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// The guest did it.
    PoweredOff,
    /// The guest did it.
    Rebooted,
    /// The guest did it.
    Halted,
    /// The guest's kernel gave up.
    Panicked,
    /// The guest crashed.
    TripleFaulted,
    /// Everything expected had come.
    ExpectationsMet,
    /// Something came that must not.
    ExpectationFailed,
    /// `--timeout` ran out.
    TimedOut,
    /// A signal to mvm.
    Signal,
    /// Ctrl-A x.
    Key,
    /// A client of `--api`.
    Stopped,
    /// The guest's command ended by itself.
    CommandExited,
    /// A signal ended the guest's command.
    CommandKilled,
    /// The guest's command could not be started.
    CommandNotStarted,
    /// The guest ended before its command did.
    CommandLost,
}

impl Ending {
    /// Whether something went wrong in the guest, of which its console may tell more.
    pub fn is_trouble(self) -> bool {
        matches!(
            self,
            Self::Panicked
                | Self::TripleFaulted
                | Self::ExpectationFailed
                | Self::TimedOut
                | Self::CommandLost
        )
    }
}

/// How it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// How the VM ended.
    pub ended: Ending,
    /// The exit status.
    pub status: u8,
    /// What to say where that is not plain.
    pub message: Option<String>,
}

impl Outcome {
    fn plain(ended: Ending) -> Self {
        Self {
            ended,
            status: 0,
            message: None,
        }
    }

    fn new(ended: Ending, status: u8, message: impl Into<String>) -> Self {
        Self {
            ended,
            status,
            message: Some(message.into()),
        }
    }
}

/// What has been asked so far.
#[derive(Debug)]
pub struct Policy {
    can_ask: bool,
    asked: bool,
    /// What stopped the VM, if not the guest.
    cause: Option<Event>,
    /// How the guest's command ended, if it had one.
    command: Option<CommandEnd>,
}

impl Policy {
    /// Nothing has been asked. Where the guest cannot be asked to end, for want of a power button or a
    /// command, the first signal ends the VM.
    pub fn new(can_ask: bool) -> Self {
        Self {
            can_ask,
            asked: false,
            cause: None,
            command: None,
        }
    }

    /// How the guest's command ended.
    pub fn command_ended(&mut self, end: CommandEnd) {
        self.command = Some(end);
    }

    /// Decides on an event.
    pub fn on(&mut self, event: Event) -> Step {
        match (self.cause, event) {
            (Some(_), Event::Ask(_) | Event::End(_)) => Step::Abandon,
            (Some(_), Event::Key | Event::Deadline | Event::Verdict(_)) => Step::Nothing,
            (None, Event::Ask(_)) if self.can_ask && !self.asked => {
                self.asked = true;
                Step::AskGuest
            }
            (None, _) => {
                self.cause = Some(event);
                Step::Stop
            }
        }
    }

    /// As the command did; but one that succeeds does not make up for what did not come.
    fn by_command(&self, unmet: Option<String>) -> Option<Outcome> {
        let end = self.command.as_ref()?;
        let status = end.status()?;
        Some(match (end, unmet) {
            (CommandEnd::NotStarted { reason, .. }, _) => {
                Outcome::new(Ending::CommandNotStarted, status, reason)
            }
            (_, Some(unmet)) if status == 0 => Outcome::new(
                Ending::CommandExited,
                status::EXPECTATION_FAILED,
                format!("the command succeeded, and {unmet}"),
            ),
            (end, _) => Outcome {
                ended: match end {
                    CommandEnd::Killed(_) => Ending::CommandKilled,
                    _ => Ending::CommandExited,
                },
                status,
                message: None,
            },
        })
    }

    /// How it went, by the way the VM ended and what its console showed.
    pub fn outcome(&self, reason: ExitReason, watch: Option<&Watch>) -> Outcome {
        let failure = watch.and_then(Watch::failure).unwrap_or_default();
        let unmet = watch.and_then(Watch::unmet);
        match (self.cause, reason) {
            (Some(Event::Verdict(Verdict::Failed)), _) => Outcome::new(
                Ending::ExpectationFailed,
                status::EXPECTATION_FAILED,
                failure,
            ),
            (Some(Event::Verdict(Verdict::Met)), _) => Outcome::plain(Ending::ExpectationsMet),
            (Some(Event::Verdict(Verdict::Crashed)), _) => {
                Outcome::new(Ending::Panicked, status::GUEST_CRASHED, failure)
            }
            (_, ExitReason::Panicked) => Outcome::new(
                Ending::Panicked,
                status::GUEST_CRASHED,
                "the guest's kernel panicked",
            ),
            (_, ExitReason::TripleFault) => Outcome::new(
                Ending::TripleFaulted,
                status::GUEST_CRASHED,
                "the guest triple-faulted: a CPU met a fault while handling a fault",
            ),
            // A command that has ended has a status, whatever became of its guest since.
            (cause, reason) => self
                .by_command(unmet.clone())
                .unwrap_or_else(|| self.without_status(cause, reason, unmet)),
        }
    }

    /// The VM ended in good order, and no command has a status.
    fn without_status(
        &self,
        cause: Option<Event>,
        reason: ExitReason,
        unmet: Option<String>,
    ) -> Outcome {
        let how = match reason {
            ExitReason::PoweredOff => (Ending::PoweredOff, "powered off"),
            ExitReason::Rebooted => (Ending::Rebooted, "rebooted"),
            ExitReason::Halted => (Ending::Halted, "halted"),
            ExitReason::Deserted => (Ending::CommandLost, "was lost"),
            _ => return stopped(cause, self.command.is_some(), unmet),
        };
        match (&self.command, how) {
            (Some(CommandEnd::Lost { started }), (_, how)) => {
                let what = if *started { "ended" } else { "was started" };
                let message = format!("the guest {how} before its command {what}");
                Outcome::new(Ending::CommandLost, status::MVM_FAILED, message)
            }
            (_, (ended, how)) => by_itself(ended, how, unmet),
        }
    }
}

/// The VM was stopped from outside, and its command with it.
fn stopped(cause: Option<Event>, has_command: bool, unmet: Option<String>) -> Outcome {
    let but = |unmet: Option<String>| unmet.map_or_else(String::new, |it| format!("; {it}"));
    match cause {
        Some(Event::Ask(signal) | Event::End(signal)) => Outcome::new(
            Ending::Signal,
            signal.status(),
            format!("the VM was ended by {}", signal.name()),
        ),
        Some(Event::Deadline) => Outcome::new(
            Ending::TimedOut,
            status::TIMED_OUT,
            format!("the VM was ended: --timeout ran out{}", but(unmet)),
        ),
        other => Outcome::new(
            match other {
                Some(_) => Ending::Key,
                None => Ending::Stopped,
            },
            match &unmet {
                // As if somebody had killed it, which is so.
                _ if has_command => status::KILLED,
                Some(_) => status::EXPECTATION_FAILED,
                None => 0,
            },
            format!("the VM was ended{}", but(unmet)),
        ),
    }
}

/// The guest ended by itself.
fn by_itself(ended: Ending, how: &str, unmet: Option<String>) -> Outcome {
    match unmet {
        None => Outcome::plain(ended),
        Some(unmet) => {
            let message = format!("the guest {how}, and {unmet}");
            Outcome::new(ended, status::EXPECTATION_FAILED, message)
        }
    }
}

#[cfg(test)]
mod tests;

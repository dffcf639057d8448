//! The main thread while a VM runs: one loop over signals, keys, the clock, the console's lines and the
//! VM's end.

use std::process;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use vmm::flag::Flag;
use vmm::{Running, VmHandle, VmState};

use super::RunError;
use super::follower::Follower;
use crate::policy::{Event, Policy, Step};
use crate::signals::{Request, Signals};
use crate::terminal::{self, RawTerminal};

/// The main thread while a VM runs.
#[derive(Debug)]
pub struct Supervisor<'a> {
    pub signals: Signals,
    /// Raised by Ctrl-A x.
    pub end_key: Arc<Flag>,
    pub terminal: Option<RawTerminal>,
    pub deadline: Option<Instant>,
    pub follower: Option<Follower<'a>>,
    pub policy: Policy,
}

impl Supervisor<'_> {
    /// Returns when the VM has ended.
    pub fn watch(&mut self, running: &Running) -> Result<(), RunError> {
        let handle = running.handle();
        if self.terminal.is_some() {
            resize(&handle);
        }
        while !self.wait(running)? {
            let requests: Vec<Request> = self.signals.pending().collect();
            for request in requests {
                match request {
                    Request::PowerOff(signal) => self.obey(Event::Ask(signal), &handle),
                    Request::End(signal) => self.obey(Event::End(signal), &handle),
                    Request::Suspend => self.terminal.iter().for_each(RawTerminal::stop_process),
                    Request::Resume => {
                        self.terminal.iter().for_each(RawTerminal::resume);
                        resize(&handle);
                    }
                    Request::Resize => resize(&handle),
                }
            }
            if self.end_key.lower() > 0 {
                self.obey(Event::Key, &handle);
            }
            if let Some(verdict) = self.follower.as_mut().and_then(Follower::look) {
                self.obey(Event::Verdict(verdict), &handle);
            }
            if self
                .deadline
                .take_if(|deadline| *deadline <= Instant::now())
                .is_some()
            {
                self.obey(Event::Deadline, &handle);
            }
        }
        Ok(())
    }

    /// Looks at what the guest had printed when it ended, and gives the terminal back.
    pub fn finish(mut self) -> Policy {
        if let Some(verdict) = self.follower.and_then(Follower::finish) {
            self.policy.on(Event::Verdict(verdict));
        }
        self.policy
    }

    /// Sleeps until something happens; whether that was the VM's end.
    fn wait(&self, running: &Running) -> Result<bool, RunError> {
        let mut events = vec![
            PollFd::new(running, PollFlags::IN),
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(&*self.end_key, PollFlags::IN),
        ];
        let follower = self.follower.as_ref();
        // Its end, which would be reported over and over, comes after the VM's.
        events.extend(follower.map(|it| PollFd::new(it, PollFlags::IN)));
        let room = follower.and_then(Follower::waits);
        events.extend(room.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::OUT)));
        let wake = follower.and_then(|it| it.wakes_at());
        let timeout = self.deadline.into_iter().chain(wake).min().map(|wake| {
            let left = wake.saturating_duration_since(Instant::now());
            // What no clock counts is no limit, and was refused where it was read.
            Timespec::try_from(left).unwrap_or_default()
        });
        match poll(&mut events, timeout.as_ref()) {
            Ok(_) => Ok(!events[0].revents().is_empty()),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(RunError::Wait(error.into())),
        }
    }

    fn obey(&mut self, event: Event, handle: &VmHandle) {
        match (self.policy.on(event), event) {
            (Step::AskGuest, Event::Ask(signal)) => {
                let paused = handle.state() == VmState::Paused;
                let what = match handle.command() {
                    Some(command) => {
                        command.signal(signal.0);
                        if !paused {
                            return;
                        }
                        "passed on to the command"
                    }
                    None => {
                        handle.press_power_button();
                        "pressed the guest's power button"
                    }
                };
                let but = match paused {
                    true => ", which it sees when it is resumed: it is paused",
                    false => "",
                };
                terminal::say(&format!(
                    "{}: {what}{but}; a second signal ends the VM",
                    signal.name()
                ));
            }
            (Step::Stop, _) => handle.stop(),
            (Step::Abandon, Event::Ask(signal) | Event::End(signal)) => {
                terminal::restore_now();
                terminal::say("the VM does not stop; it is left as it is");
                process::exit(i32::from(signal.status()));
            }
            _ => {}
        }
    }
}

/// Gives the guest's console and its command the terminal's size.
fn resize(handle: &VmHandle) {
    let Some(size) = terminal::size() else {
        return;
    };
    handle.resize_console(size.columns, size.rows);
    if let Some(command) = handle.command() {
        command.resize(size.columns, size.rows);
    }
}

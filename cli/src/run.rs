//! Boots a VM and sees it through: the main thread's one loop over signals, keys, the clock, the console's
//! lines and the VM's end.

use std::io::{self, IsTerminal};
use std::os::fd::OwnedFd;
use std::process;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use thiserror::Error;
use vmm::console::{Console, ConsoleConfig, ConsoleError, InputFilter};
use vmm::events::{self, Events};
use vmm::{BuildError, Running, VmBuilder, VmError, VmHandle};

use crate::api::{self, ApiError};
use crate::config::Run;
use crate::emulation;
use crate::keys::{self, Key, KeyFilter};
use crate::logging::{self, LogError};
use crate::policy::{Event, Outcome, Policy, Step};
use crate::signals::{Request, Signals};
use crate::terminal::{self, RawTerminal};
use crate::watch::{Verdict, Wanted, Watch};

/// Why a VM could not be run to its end.
#[derive(Debug, Error)]
pub enum RunError {
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Where the serial console goes.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// The socket to control it.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The VM could not be assembled.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// It could not be run.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// KVM gave up on an instruction; explained.
    #[error("{0}")]
    Emulation(String),
    /// The terminal refused to be raw.
    #[error("the terminal cannot be made raw: {0}")]
    Terminal(#[source] io::Error),
    /// Signals could not be watched, or the loop could not wait.
    #[error("signals and the VM's end cannot be waited for: {0}")]
    Wait(#[source] io::Error),
}

/// Boots, waits for the end, and gives the exit status.
pub fn run(run: Run) -> Result<u8, RunError> {
    logging::start(run.log_level, run.log_file.as_deref())?;
    let result = boot(run);
    log::logger().flush();
    result
}

fn boot(run: Run) -> Result<u8, RunError> {
    let at_terminal = run.console == ConsoleConfig::Stdio && io::stdin().is_terminal();
    let end_key = Arc::new(EndKey::new().map_err(RunError::Wait)?);
    let console = open_console(&run.console, at_terminal.then_some(&end_key))?;
    let api = run.api.as_deref();
    let api = api
        .map(|path| api::Socket::open(path, &run.vm))
        .transpose()?;
    let policy = Policy::new(run.vm.acpi);
    let mut builder = VmBuilder::new(run.vm).console(console);
    let mut follower = None;
    if !run.wanted.is_nothing() {
        let (sender, events) = events::channel().map_err(RunError::Wait)?;
        builder = builder.events(sender);
        follower = Some(Follower::new(events, run.wanted));
    }
    let vm = builder.build()?;

    // Every ending from here on passes through the supervisor, so the terminal may be changed.
    let signals = Signals::watch(at_terminal).map_err(RunError::Wait)?;
    let terminal = match at_terminal {
        true => RawTerminal::enter().map_err(RunError::Terminal)?,
        false => None,
    };
    let mut supervisor = Supervisor {
        signals,
        end_key,
        terminal,
        deadline: run
            .timeout
            .and_then(|limit| Instant::now().checked_add(limit.duration())),
        follower,
        policy,
    };
    let running = vm.run()?;
    let server = api.map(|socket| socket.serve(running.handle()));
    let server = server.transpose()?;
    supervisor.watch(&running)?;
    let ended = running.wait();
    drop(server);
    let Supervisor {
        terminal,
        mut policy,
        mut follower,
        ..
    } = supervisor;
    drop(terminal);
    let exit = ended.map_err(|error| match error {
        VmError::Emulation(failure) => {
            RunError::Emulation(emulation::explain(failure.rip, &failure.bytes))
        }
        other => RunError::Vm(other),
    })?;
    if let Some(verdict) = follower.as_mut().and_then(Follower::finish) {
        policy.on(Event::Verdict(verdict));
    }
    let watch = follower.as_ref().map(|follower| &follower.watch);
    let outcome = policy.outcome(exit.reason, watch);
    tell(&outcome, watch);
    Ok(outcome.status)
}

/// Says what is not plain.
fn tell(outcome: &Outcome, watch: Option<&Watch>) {
    let trouble = watch.and_then(Watch::kernel_trouble);
    let trouble = trouble.map(|trouble| trouble.to_string());
    // Guests write these.
    for message in trouble.iter().chain(&outcome.message) {
        terminal::say(&logging::one_line(message));
    }
}

/// Who follows the VM's events.
#[derive(Debug)]
struct Follower {
    events: Events,
    watch: Watch,
}

impl Follower {
    fn new(events: Events, wanted: Wanted) -> Self {
        Self {
            events,
            watch: Watch::new(wanted),
        }
    }

    /// Looks at what has happened, and at the clock.
    fn look(&mut self) -> Option<Verdict> {
        let mut verdict = None;
        while let Some(event) = self.events.try_next() {
            verdict = verdict.or(self.watch.on_event(&event));
        }
        verdict.or(self.watch.on_time(Instant::now()))
    }

    /// Looks at what is left when the VM has ended.
    fn finish(&mut self) -> Option<Verdict> {
        let mut verdict = None;
        for event in &mut self.events {
            verdict = verdict.or(self.watch.on_event(&event));
        }
        verdict.or(self.watch.on_end())
    }
}

/// Opens the console, with mvm's keys where somebody types them.
fn open_console(
    config: &ConsoleConfig,
    end_key: Option<&Arc<EndKey>>,
) -> Result<Console, ConsoleError> {
    let console = Console::open(config)?;
    if let (ConsoleConfig::Pty, Some(path)) = (config, console.path()) {
        terminal::say(&format!("the console is {}", path.display()));
    }
    Ok(match end_key {
        Some(end_key) => console.with_filter(key_filter(Arc::clone(end_key))),
        None => console,
    })
}

/// Carries Ctrl-A x from the console's input thread to the main loop.
#[derive(Debug)]
struct EndKey(OwnedFd);

impl EndKey {
    fn new() -> io::Result<Self> {
        Ok(Self(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?))
    }

    fn press(&self) {
        // It fails only when it has been pressed more often than 64 bits count.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Takes the press, if there was one.
    fn take(&self) -> bool {
        rustix::io::read(&self.0, &mut [0; 8]).is_ok()
    }
}

/// What takes mvm's keys out of the console's input.
fn key_filter(end_key: Arc<EndKey>) -> InputFilter {
    let mut filter = KeyFilter::default();
    Box::new(move |typed, guest| {
        filter.filter(typed, guest, |key| match key {
            Key::End => end_key.press(),
            Key::Help => terminal::show(keys::HELP),
        });
    })
}

/// The main thread while a VM runs.
#[derive(Debug)]
struct Supervisor {
    signals: Signals,
    end_key: Arc<EndKey>,
    terminal: Option<RawTerminal>,
    deadline: Option<Instant>,
    follower: Option<Follower>,
    policy: Policy,
}

impl Supervisor {
    /// Returns when the VM has ended.
    fn watch(&mut self, running: &Running) -> Result<(), RunError> {
        let handle = running.handle();
        while !self.wait(running)? {
            let requests: Vec<Request> = self.signals.pending().collect();
            for request in requests {
                match request {
                    Request::PowerOff(signal) => self.obey(Event::Ask(signal), &handle),
                    Request::End(signal) => self.obey(Event::End(signal), &handle),
                    Request::Suspend => self.terminal.iter().for_each(RawTerminal::stop_process),
                    Request::Resume => self.terminal.iter().for_each(RawTerminal::resume),
                }
            }
            if self.end_key.take() {
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

    /// Sleeps until something happens; whether that was the VM's end.
    fn wait(&self, running: &Running) -> Result<bool, RunError> {
        let mut events = vec![
            PollFd::new(running, PollFlags::IN),
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(&self.end_key.0, PollFlags::IN),
        ];
        let follower = self.follower.as_ref();
        // Its end, which would be reported over and over, comes after the VM's.
        events.extend(follower.map(|it| PollFd::new(&it.events, PollFlags::IN)));
        let wake = follower.and_then(|it| it.watch.wakes_at());
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
            (Step::PressPowerButton, Event::Ask(signal)) => {
                handle.press_power_button();
                terminal::say(&format!(
                    "{}: pressed the guest's power button; a second signal ends the VM",
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

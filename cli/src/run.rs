//! Boots a VM, sees it through to its end, and says how it went.

mod follower;
mod supervisor;
mod typist;

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::time::Instant;

use thiserror::Error;
use vmm::config::VmConfig;
use vmm::console::{Console, ConsoleConfig, ConsoleEnd, ConsoleError, InputFilter, Tail};
use vmm::flag::Flag;
use vmm::{BuildError, VmBuilder, VmError, events};

use crate::api::{self, ApiError};
use crate::chart::log::KernelLog;
use crate::chart::{self, ChartPath};
use crate::config::Run;
use crate::descriptors;
use crate::emulation;
use crate::keys::{self, Key, KeyFilter};
use crate::logging::{self, LogError};
use crate::policy::{Outcome, Policy};
use crate::record::{Record, Start};
use crate::report::{self, Output, ReportError, ReportFiles};
use crate::signals::Signals;
use crate::software_kvm::{self, Unfit};
use crate::streams;
use crate::terminal::{self, RawTerminal};
use crate::usage::Usage;
use crate::watch::{self, Watch};
use follower::Follower;
use supervisor::Supervisor;
use typist::Typist;

/// Why a VM could not be run to its end.
#[derive(Debug, Error)]
pub enum RunError {
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A report.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// Where the serial console goes.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// The socket to control it.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The kernel cannot run here.
    #[error(transparent)]
    Unfit(#[from] Unfit),
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
    /// Standard input, output or error cannot be the command's.
    #[error("standard input, output and error cannot be the command's: {0}")]
    Streams(#[source] io::Error),
    /// Signals could not be watched, or the loop could not wait.
    #[error("signals and the VM's end cannot be waited for: {0}")]
    Wait(#[source] io::Error),
}

/// Boots, waits for the end, reports, and gives the exit status.
pub fn run(run: Run, start: Start) -> Result<u8, RunError> {
    logging::start(run.log_level, run.log_file.as_deref())?;
    let reports = ReportFiles::open(&run.reports)?;
    let chart = run.boot_chart.as_ref().map(ChartPath::path);
    let chart = chart
        .map(|path| Output::open("boot chart", path))
        .transpose()?;
    let followed = !reports.is_empty() || chart.is_some() || !run.wanted.is_nothing();
    let mut record = followed.then(|| Record {
        log: chart.as_ref().map(|_| KernelLog::default()),
        ..Record::new(start, run.vm.clone(), run.wanted.clone())
    });
    let result = boot(run, record.as_mut());
    log::logger().flush();
    if let Some(mut record) = record {
        record.usage = Usage::now().unwrap_or_default();
        reports.write(|format| report::compose(&record, result.as_ref(), format))?;
        if let Some(chart) = chart {
            chart.write(chart::compose(&record, result.as_ref()))?;
        }
    }
    result.map(|outcome| outcome.status)
}

/// Boots and waits for the end. A run that is followed is written down, however it ends.
fn boot(mut run: Run, mut record: Option<&mut Record>) -> Result<Outcome, RunError> {
    if !run.software_kvm {
        software_kvm::check(&run.vm.kernel)?;
    }
    let end_key = Arc::new(Flag::new().map_err(RunError::Wait)?);
    // What a script types into is no terminal of anybody's.
    let has_script = run.wanted.script.is_some();
    let console_at_terminal =
        run.console.end == ConsoleEnd::Stdio && !has_script && io::stdin().is_terminal();
    let mut console = open_console(&run.console, console_at_terminal.then_some(&end_key))?;
    let mut unseen = None;
    if run.console.end == ConsoleEnd::None && run.vm.command.is_some() {
        let kept = Tail::default();
        console = Console::from_parts(None, Box::new(kept.clone())).with_port(run.console.port);
        unseen = Some(kept);
    }
    let mut typist = None;
    if has_script {
        let (types, input) = Typist::new().map_err(RunError::Wait)?;
        console = console.with_input(input);
        typist = Some(types);
    }
    let mut command_streams = None;
    if run.console.end == ConsoleEnd::None && record.is_none() {
        speak_low(&mut run.vm);
    }
    if let Some(command) = &mut run.vm.command {
        command.terminal = terminal::size();
        let keys = command.terminal.map(|_| key_filter(Arc::clone(&end_key)));
        command_streams = Some(streams::inherit(keys).map_err(RunError::Streams)?);
    }
    let command = run.vm.command.as_ref();
    let at_terminal = console_at_terminal || command.is_some_and(|it| it.terminal.is_some());
    let api = run.api.as_deref();
    let api = api
        .map(|path| api::Socket::open(path, &run.vm))
        .transpose()?;
    let policy = Policy::new(run.vm.acpi || command.is_some());
    if !run.vm.shares.is_empty() {
        descriptors::raise_limit();
    }
    let mut builder = VmBuilder::new(run.vm).console(console);
    if let Some(streams) = command_streams {
        builder = builder.command_io(streams);
    }
    let mut events = None;
    if record.is_some() {
        let (sender, receiver) = events::channel().map_err(RunError::Wait)?;
        builder = builder.events(sender);
        events = Some(receiver);
    }
    let vm = builder.build()?;
    if let Some(record) = &mut record {
        record.stages.created(Instant::now());
    }

    // Every ending from here on passes through the supervisor, so the terminal may be changed.
    let signals = Signals::watch(at_terminal).map_err(RunError::Wait)?;
    let terminal = match at_terminal {
        true => RawTerminal::enter().map_err(RunError::Terminal)?,
        false => None,
    };
    let follower = events.zip(record.as_deref_mut());
    let mut supervisor = Supervisor {
        signals,
        end_key,
        terminal,
        deadline: run
            .timeout
            .and_then(|limit| Instant::now().checked_add(limit.duration())),
        follower: follower.map(|(events, record)| Follower::new(events, record, typist)),
        policy,
    };
    let running = vm.run()?;
    let server = api.map(|socket| socket.serve(running.handle()));
    let server = server.transpose()?;
    supervisor.watch(&running)?;
    let handle = running.handle();
    let ended = running.wait();
    drop(server);
    let mut policy = supervisor.finish();
    if let Some(record) = &mut record {
        record.exits = handle.exits();
    }
    let exit = ended.map_err(|error| match error {
        VmError::Emulation(failure) => {
            RunError::Emulation(emulation::explain(failure.rip, &failure.bytes))
        }
        other => RunError::Vm(other),
    })?;
    if let Some(end) = exit.command {
        policy.command_ended(end);
    }
    let watch = record.map(|record| &record.watch);
    let outcome = policy.outcome(exit.reason, watch);
    tell(&outcome, watch);
    if let Some(console) = unseen.filter(|_| outcome.ended.is_trouble()) {
        show_end(&console);
    }
    Ok(outcome)
}

/// Keeps the kernel from printing what nobody reads: each character is an exit. Errors are still printed.
fn speak_low(vm: &mut VmConfig) {
    if vm.command.is_some() && vm.cmdline.is_none() {
        let more = vm.append.take().unwrap_or_default();
        vm.append = Some(format!("quiet {more}").trim_end().to_owned());
    }
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

/// Shows the last lines of a console that nobody has seen: they tell what became of the guest.
fn show_end(console: &Tail) {
    let text = console.text();
    let lines: Vec<_> = text.lines().map(str::trim_end).collect();
    let from = lines.len().saturating_sub(watch::TAIL);
    let mut said = match lines.is_empty() {
        true => "the guest's console has shown nothing".to_owned(),
        false => "the last lines of the guest's console:".to_owned(),
    };
    for line in &lines[from..] {
        said.push('\n');
        said.push_str(&logging::one_line(line));
    }
    terminal::say(&said);
}

/// Opens the console, with mvm's keys where somebody types them.
fn open_console(
    config: &ConsoleConfig,
    end_key: Option<&Arc<Flag>>,
) -> Result<Console, ConsoleError> {
    let console = Console::open(config)?;
    if let (ConsoleEnd::Pty, Some(path)) = (&config.end, console.path()) {
        terminal::say(&format!("the console is {}", path.display()));
    }
    Ok(match end_key {
        Some(end_key) => console.with_filter(key_filter(Arc::clone(end_key))),
        None => console,
    })
}

/// What takes mvm's keys out of the console's input.
fn key_filter(end_key: Arc<Flag>) -> InputFilter {
    let mut filter = KeyFilter::default();
    Box::new(move |typed, guest| {
        filter.filter(typed, guest, |key| match key {
            Key::End => end_key.raise(),
            Key::Help => terminal::show(keys::HELP),
        });
    })
}

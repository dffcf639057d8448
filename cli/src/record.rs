//! What is written down of a run while it goes on: when its stages came, what its console showed, and
//! what it cost.

use std::time::{Duration, Instant, SystemTime};

use vmm::ExitCounts;
use vmm::config::VmConfig;
use vmm::events::{Event, EventKind};

use crate::chart::log::KernelLog;
use crate::usage::Usage;
use crate::watch::{Verdict, Wanted, Watch, printk};

/// A run so far.
#[derive(Debug)]
pub struct Record {
    /// What the VM is; of its command's environment the names.
    pub vm: VmConfig,
    /// When what happened.
    pub stages: Stages,
    /// What the console has shown.
    pub watch: Watch,
    /// How often the guest was left.
    pub exits: ExitCounts,
    /// What this process has used.
    pub usage: Usage,
    /// The kernel's log, where there is to be a chart of it.
    pub log: Option<KernelLog>,
}

impl Record {
    /// Nothing has happened.
    pub fn new(start: Start, mut vm: VmConfig, wanted: Wanted) -> Self {
        // What is reported is read by others, and the values may be secrets.
        for variable in vm.command.iter_mut().flat_map(|it| &mut it.env) {
            variable.truncate(variable.find('=').unwrap_or(variable.len()));
        }
        Self {
            vm,
            stages: Stages::new(start),
            watch: Watch::new(wanted),
            exits: ExitCounts::default(),
            usage: Usage::default(),
            log: None,
        }
    }

    /// Writes down an event; the verdict, when it falls.
    pub fn on_event(&mut self, event: &Event) -> Option<Verdict> {
        self.stages.on_event(event);
        if let (Some(log), EventKind::Line(line)) = (&mut self.log, &event.kind) {
            log.on_line(event.at, line);
        }
        self.watch.on_event(event)
    }
}

/// When mvm was started, by both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Start {
    /// For measuring.
    pub at: Instant,
    /// For telling.
    pub date: SystemTime,
}

impl Start {
    /// To be called first of all.
    pub fn now() -> Self {
        Self {
            at: Instant::now(),
            date: SystemTime::now(),
        }
    }
}

/// When the stages of a run came.
#[derive(Debug)]
pub struct Stages {
    /// The beginning, from which all others are measured.
    pub start: Start,
    /// The VM is assembled.
    created: Option<Instant>,
    /// The first vCPU enters the guest.
    entered: Option<Instant>,
    /// The kernel hands over to the first program.
    init: Option<Instant>,
    /// The guest's command runs.
    command_started: Option<Instant>,
    /// The guest's command is over.
    command_ended: Option<Instant>,
    /// The VM is over.
    ended: Option<Instant>,
}

/// One stage that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage {
    /// Its name, which stays.
    pub name: &'static str,
    /// When, since the start.
    pub at: Duration,
    /// How that is known.
    pub by: &'static str,
}

impl Stages {
    fn new(start: Start) -> Self {
        Self {
            start,
            created: None,
            entered: None,
            init: None,
            command_started: None,
            command_ended: None,
            ended: None,
        }
    }

    /// The VM has been assembled.
    pub fn created(&mut self, at: Instant) {
        self.created = Some(at);
    }

    fn on_event(&mut self, event: &Event) {
        match &event.kind {
            EventKind::Started => self.entered = Some(event.at),
            EventKind::Line(line) if self.init.is_none() && hands_over(line) => {
                self.init = Some(event.at);
            }
            EventKind::CommandStarted => self.command_started = Some(event.at),
            EventKind::CommandEnded => self.command_ended = Some(event.at),
            EventKind::Ended(_) => self.ended = Some(event.at),
            _ => {}
        }
    }

    /// Those that came, in order.
    pub fn list(&self) -> Vec<Stage> {
        let stage = |name, at: Option<Instant>, by| {
            let at = at?.saturating_duration_since(self.start.at);
            Some(Stage { name, at, by })
        };
        [
            stage("start", Some(self.start.at), "mvm's main function began"),
            stage(
                "vm-created",
                self.created,
                "guest memory, devices and vCPUs were ready",
            ),
            stage(
                "first-instruction",
                self.entered,
                "the first vCPU was about to enter the guest",
            ),
            stage(
                "init",
                self.init,
                "the console's line 'Run … as init process' arrived",
            ),
            stage(
                "command-start",
                self.command_started,
                "the guest's init said that the command runs",
            ),
            stage(
                "command-end",
                self.command_ended,
                "the command was over, and what it had said was passed on",
            ),
            stage("end", self.ended, "the VM was over"),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// How long the run took; until now where the VM has not ended, or never began.
    pub fn total(&self) -> Duration {
        let end = self.ended.unwrap_or_else(Instant::now);
        end.saturating_duration_since(self.start.at)
    }
}

/// Whether Linux says that it starts the first program (init/main.c, `run_init_process`).
fn hands_over(line: &str) -> bool {
    let text = printk::parse(line).map_or(line, |kernel| kernel.text);
    text.starts_with("Run /") && text.ends_with(" as init process")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_measured_from_the_start() {
        let start = Start::now();
        let mut stages = Stages::new(start);
        assert_eq!(stages.list().len(), 1);
        let mut at = start.at;
        let mut happens = |kind| {
            at += Duration::from_millis(10);
            stages.on_event(&Event { at, kind });
        };
        happens(EventKind::Started);
        for line in [
            "Run the init process",
            "[    0.500000] Run /init as init process",
            "[    0.600000] Run /sbin/init as init process",
        ] {
            happens(EventKind::Line(line.to_owned()));
        }
        happens(EventKind::CommandStarted);
        happens(EventKind::CommandEnded);
        happens(EventKind::Ended(None));
        let list = stages.list();
        let list: Vec<_> = list.iter().map(|it| (it.name, it.at.as_millis())).collect();
        assert_eq!(
            list,
            [
                ("start", 0),
                ("first-instruction", 10),
                ("init", 30),
                ("command-start", 50),
                ("command-end", 60),
                ("end", 70)
            ]
        );
        assert_eq!(stages.total(), Duration::from_millis(70));
    }
}

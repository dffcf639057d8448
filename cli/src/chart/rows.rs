//! What a chart shows: where the time of a boot went, as rows of bars on one axis.

use std::time::{Duration, Instant};

use super::log::Entry;
use crate::record::Record;

/// Whose time it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Before the guest runs.
    Mvm,
    /// The guest's kernel.
    Kernel,
    /// The programs of the guest.
    Guest,
}

/// A stage and when it was, since the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Whose.
    pub group: Group,
    /// What was done.
    pub name: &'static str,
    /// When it began.
    pub from: Duration,
    /// When it was over.
    pub to: Duration,
    /// It went on beside others.
    pub beside: bool,
}

/// A while in which the kernel said nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silence {
    /// When it began.
    pub from: Duration,
    /// When it was over.
    pub to: Duration,
    /// What the kernel had said before it.
    pub after: String,
}

/// A boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// Its stages, in order.
    pub rows: Vec<Row>,
    /// When the kernel said something.
    pub lines: Vec<Duration>,
    /// The longest times in which it did not, the longest first.
    pub silences: Vec<Silence>,
    /// When the kernel handed over to init, if that was seen.
    pub init: Option<Duration>,
    /// When it was over.
    pub end: Duration,
}

/// Most silences that are told.
const SILENCES: usize = 6;
/// A silence is one from this part of the kernel's time on.
const SILENCE_MIN: u32 = 100;

/// Lines by which the kernel's stages are told apart: how they begin, and what begins with them. Where
/// one does not come, the stage before goes on. (init/main.c, kernel/smp.c, drivers/base/devtmpfs.c,
/// kernel/time/clocksource.c)
const STAGES: [(&str, &str); 5] = [
    ("Linux version ", "early set-up"),
    ("smp: Bringing up secondary CPUs", "start the CPUs"),
    ("devtmpfs: initialized", "subsystems: ACPI, buses, memory"),
    (
        "clocksource: Switched to clocksource",
        "network, file systems, drivers",
    ),
    ("Freeing unused kernel image (initmem)", "hand over to init"),
];
/// The unpacking of an initramfs goes on beside that (init/initramfs.c).
const UNPACKING: [&str; 2] = ["Trying to unpack rootfs image", "Unpacking initramfs"];
const UNPACKED: &str = "Freeing initrd memory";

impl Boot {
    /// What is known of a boot that is over.
    pub fn of(record: &Record) -> Self {
        let stages = &record.stages;
        let start = stages.start.at;
        let times = stages.list();
        let stage = |name| {
            let stage = times.iter().find(|stage| stage.name == name);
            stage.map(|stage| stage.at)
        };
        let since = |at: Instant| at.saturating_duration_since(start);
        let end = stages.total();
        let (entries, caught_up) = match &record.log {
            Some(log) => log.entries(start + stage("first-instruction").unwrap_or_default()),
            None => (Vec::new(), None),
        };
        let init = stage("init");
        let boot: Vec<(Duration, &Entry)> = entries
            .iter()
            .map(|entry| (since(entry.at), entry))
            .take_while(|(at, _)| init.is_none_or(|init| *at <= init))
            .collect();

        let mut rows = Rows::default();
        let created = stage("vm-created");
        let entered = stage("first-instruction");
        rows.add(
            Group::Mvm,
            "assemble the VM",
            Some(Duration::ZERO),
            created.or(Some(end)),
        );
        rows.add(Group::Mvm, "start its vCPUs", created, entered);
        let (printing, printed) = caught_up.unzip();
        let printing = printing.map(since);
        let first = boot.first().map(|(at, _)| *at);
        let in_kernel = init.unwrap_or(end);
        match first {
            Some(first) => {
                rows.add(
                    Group::Kernel,
                    "unpack and enter the kernel",
                    entered,
                    Some(first),
                );
                kernel_rows(&mut rows, &boot, in_kernel);
                rows.add_beside("print the early log", printing, printed.map(since));
                let (unpacking, unpacked) = unpacking(&boot).unzip();
                rows.add_beside("unpack the initramfs", unpacking, unpacked);
            }
            None if init.is_some() => rows.add(Group::Kernel, "kernel", entered, init),
            None => rows.add(Group::Guest, "guest", entered, Some(end)),
        }
        let (command, command_end) = (stage("command-start"), stage("command-end"));
        rows.add(
            Group::Guest,
            "init",
            init,
            command.or(command_end).or(Some(end)),
        );
        rows.add(Group::Guest, "command", command, command_end.or(Some(end)));
        rows.add(Group::Guest, "power off", command_end, Some(end));
        Self {
            rows: rows.0,
            silences: silences(&boot, in_kernel, printing),
            lines: boot.iter().map(|(at, _)| *at).collect(),
            init,
            end,
        }
    }
}

#[derive(Debug, Default)]
struct Rows(Vec<Row>);

impl Rows {
    /// A row, if both its ends are known.
    fn add(
        &mut self,
        group: Group,
        name: &'static str,
        from: Option<Duration>,
        to: Option<Duration>,
    ) {
        if let (Some(from), Some(to)) = (from, to)
            && from <= to
        {
            self.0.push(Row {
                group,
                name,
                from,
                to,
                beside: false,
            });
        }
    }

    /// A row of the kernel's that overlaps the others.
    fn add_beside(&mut self, name: &'static str, from: Option<Duration>, to: Option<Duration>) {
        let before = self.0.len();
        self.add(Group::Kernel, name, from, to);
        self.0[before..]
            .iter_mut()
            .for_each(|row| row.beside = true);
    }
}

/// The stages of the kernel between its first line and `end`.
fn kernel_rows(rows: &mut Rows, log: &[(Duration, &Entry)], end: Duration) {
    let mut begun: Vec<(&'static str, Duration)> = Vec::new();
    for (word, name) in STAGES {
        // One that seems to come before its predecessor is somebody else's line.
        if let Some(at) = find(log, word)
            && begun.last().is_none_or(|(_, before)| *before <= at)
        {
            begun.push((name, at));
        }
    }
    if begun.is_empty() {
        begun.extend(log.first().map(|(at, _)| ("kernel", *at)));
    }
    let ends = begun.iter().skip(1).map(|(_, at)| *at).chain([end]);
    for ((name, from), to) in begun.iter().zip(ends) {
        rows.add(Group::Kernel, name, Some(*from), Some(to));
    }
}

/// When the initramfs was unpacked: from, to.
fn unpacking(log: &[(Duration, &Entry)]) -> Option<(Duration, Duration)> {
    Some((
        UNPACKING.iter().find_map(|word| find(log, word))?,
        find(log, UNPACKED)?,
    ))
}

/// When the kernel said what begins like this.
fn find(log: &[(Duration, &Entry)], word: &str) -> Option<Duration> {
    let line = log.iter().find(|(_, entry)| entry.text.starts_with(word));
    line.map(|(at, _)| *at)
}

/// The longest silences, but not the one in which the kernel is busy with printing what it had said.
fn silences(log: &[(Duration, &Entry)], end: Duration, printing: Option<Duration>) -> Vec<Silence> {
    let Some((first, _)) = log.first() else {
        return Vec::new();
    };
    let least = end.saturating_sub(*first) / SILENCE_MIN;
    let ends = log.iter().skip(1).map(|(at, _)| *at).chain([end]);
    let mut silences: Vec<_> = log
        .iter()
        .zip(ends)
        .map(|((from, entry), to)| Silence {
            from: *from,
            to: to.max(*from),
            after: entry.text.clone(),
        })
        .filter(|silence| silence.to - silence.from > least && Some(silence.from) != printing)
        .collect();
    silences.sort_by_key(|silence| std::cmp::Reverse(silence.to - silence.from));
    silences.truncate(SILENCES);
    silences
}

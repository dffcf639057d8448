//! Trouble that a Linux kernel reports on its console, with the text of the report.
//!
//! A pure state machine over whole lines. Only the kernel's own lines count: as soon as one with a time
//! stamp has been seen, those without are programs' output.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::printk;

/// What is made of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KernelErrors {
    /// Any ends the VM
    Fatal,
    /// They are told at the end and in the report
    Report,
    /// They are not looked for
    Ignore,
}

/// Kinds of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trouble {
    /// The kernel has given up.
    Panic,
    /// An exception in kernel code.
    Oops,
    /// The kernel found itself in an impossible state, or a CPU stuck.
    Bug,
    /// A task has waited for minutes.
    HungTask,
    /// The address sanitizer found a bad access.
    Kasan,
    /// A CPU or task holds up RCU.
    RcuStall,
}

impl Trouble {
    /// What a kernel's line announces (kernel/panic.c, arch/*/kernel/dumpstack.c, arch/x86/mm/fault.c,
    /// lib/bug.c, kernel/hung_task.c, mm/kasan/report.c, kernel/rcu/tree_stall.h, kernel/watchdog.c).
    fn of(text: &str) -> Option<Self> {
        let starts = |words: &[&str]| words.iter().any(|word| text.starts_with(word));
        if starts(&["Kernel panic - not syncing"]) {
            Some(Self::Panic)
        } else if starts(&["BUG: KASAN:"]) {
            Some(Self::Kasan)
        } else if starts(&["INFO: task "]) && text.contains(" for more than ") {
            Some(Self::HungTask)
        } else if starts(&["rcu: INFO: ", "INFO: rcu_"]) && text.contains("stall") {
            Some(Self::RcuStall)
        } else if starts(&[
            "Oops: ",
            "BUG: unable to handle",
            "BUG: kernel NULL pointer dereference",
            "general protection fault",
            "Unable to handle kernel",
            "Internal error: ",
        ]) || text.contains(": 0000 [#")
        {
            Some(Self::Oops)
        } else if starts(&["BUG: ", "kernel BUG at ", "watchdog: BUG: "]) {
            Some(Self::Bug)
        } else {
            None
        }
    }
}

/// One report of trouble.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelError {
    /// Its kind.
    pub kind: Trouble,
    /// When its first line came.
    pub at: Instant,
    /// Its lines as they came, at most [`TEXT_LINES`].
    pub text: Vec<String>,
}

/// Most lines that are kept of one report.
const TEXT_LINES: usize = 64;
/// Most reports that are kept; a kernel in trouble can go on for ever.
const REPORTS: usize = 16;
/// A report is over when no line of the kernel has come for so long.
const SETTLE: Duration = Duration::from_secs(2);

/// Looks for trouble.
#[derive(Debug, Default)]
pub struct KernelWatch {
    errors: Vec<KernelError>,
    /// Reports beyond those that are kept.
    more: usize,
    /// When the last line of the report that has not ended came.
    open: Option<Instant>,
    stamped: bool,
}

impl KernelWatch {
    /// Looks at a line; whether it begins a report.
    pub fn on_line(&mut self, at: Instant, line: &str) -> Option<Trouble> {
        let text = match printk::parse(line) {
            Some(kernel) => {
                self.stamped = true;
                kernel.text
            }
            None if self.stamped => return None,
            None => line,
        };
        self.on_time(at);
        let trouble = Trouble::of(text);
        // Within a report only a panic is news: an oops, say, has several lines that would begin one.
        let begins = trouble.filter(|trouble| self.open.is_none() || *trouble == Trouble::Panic);
        if let Some(kind) = begins {
            self.begin(kind, at, line);
        } else if self.open.is_some() {
            self.go_on(at, line, text);
        }
        begins
    }

    fn begin(&mut self, kind: Trouble, at: Instant, line: &str) {
        self.open = Some(at);
        if self.errors.len() == REPORTS {
            self.more += 1;
            return;
        }
        self.errors.push(KernelError {
            kind,
            at,
            text: vec![line.to_owned()],
        });
    }

    fn go_on(&mut self, at: Instant, line: &str, text: &str) {
        self.open = Some(at);
        let Some(error) = self.errors.last_mut().filter(|_| self.more == 0) else {
            return;
        };
        error.text.push(line.to_owned());
        // `---[ end trace …` and `---[ end Kernel panic …`.
        if text.starts_with("---[ end ") || error.text.len() == TEXT_LINES {
            self.open = None;
        }
    }

    /// Ends a report that has gone quiet.
    pub fn on_time(&mut self, now: Instant) {
        if self.quiet_at().is_some_and(|quiet| quiet <= now) {
            self.open = None;
        }
    }

    /// When the report that is being made will have gone quiet; `None` while there is none.
    pub fn quiet_at(&self) -> Option<Instant> {
        self.open.map(|last| last + SETTLE)
    }

    /// What has been found.
    pub fn errors(&self) -> &[KernelError] {
        &self.errors
    }

    /// How often trouble was reported.
    pub fn count(&self) -> usize {
        self.errors.len() + self.more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_known_by_its_first_line() {
        use Trouble::{Bug, HungTask, Kasan, Oops, Panic, RcuStall};
        for (line, kind) in [
            (
                "Kernel panic - not syncing: VFS: Unable to mount root fs",
                Panic,
            ),
            (
                "BUG: kernel NULL pointer dereference, address: 0000000000000000",
                Oops,
            ),
            (
                "BUG: unable to handle page fault for address: ffffc90000002000",
                Oops,
            ),
            (
                "Oops: general protection fault, probably for non-canonical",
                Oops,
            ),
            (
                "general protection fault, probably for non-canonical address",
                Oops,
            ),
            ("divide error: 0000 [#1] PREEMPT SMP", Oops),
            (
                "Unable to handle kernel paging request at virtual address",
                Oops,
            ),
            ("kernel BUG at fs/ext4/inode.c:123!", Bug),
            ("BUG: Bad page state in process sh  pfn:12345", Bug),
            ("BUG: workqueue lockup - pool cpus=0", Bug),
            (
                "watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [sh:123]",
                Bug,
            ),
            (
                "INFO: task jbd2/vda-8:65 blocked for more than 120 seconds.",
                HungTask,
            ),
            ("BUG: KASAN: slab-use-after-free in foo+0x1/0x2", Kasan),
            (
                "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
                RcuStall,
            ),
            ("rcu: INFO: rcu_sched self-detected stall on CPU", RcuStall),
        ] {
            assert_eq!(Trouble::of(line), Some(kind), "{line}");
        }
        for line in [
            "Run /init as init process",
            "INFO: task manager started",
            "debugging: BUG: not at the beginning",
            "Oops",
            "Kernel panic on oops is off",
        ] {
            assert_eq!(Trouble::of(line), None, "{line}");
        }
    }

    fn watch(lines: &[&str]) -> KernelWatch {
        let (mut watch, at) = (KernelWatch::default(), Instant::now());
        for line in lines {
            watch.on_line(at, line);
        }
        watch
    }

    #[test]
    fn a_report_is_kept_up_to_its_end() {
        let found = watch(&[
            "[    1.000000] all is well",
            "[    2.000000] BUG: kernel NULL pointer dereference, address: 0",
            "[    2.000001] Oops: 0002 [#1] PREEMPT SMP",
            "a program says something",
            "[    2.000002]  <TASK>",
            "[    2.000003] ---[ end trace 0000000000000000 ]---",
            "[    2.000004] Kernel panic - not syncing: Fatal exception",
            "[    2.000005] Kernel Offset: disabled",
        ]);
        let kinds: Vec<_> = found.errors().iter().map(|error| error.kind).collect();
        assert_eq!(kinds, [Trouble::Oops, Trouble::Panic]);
        assert_eq!(found.errors()[0].text.len(), 4);
        assert!(found.errors()[1].text[1].ends_with("disabled"));
        assert!(found.quiet_at().is_some(), "the panic's report goes on");
    }

    #[test]
    fn programs_that_cry_wolf_are_told_from_the_kernel() {
        assert_eq!(watch(&["BUG: no stamps here"]).count(), 1);
        assert_eq!(watch(&["[    0.000000] Linux", "BUG: mine"]).count(), 0);
    }

    #[test]
    fn silence_ends_a_report() {
        let (mut watch, at) = (KernelWatch::default(), Instant::now());
        let stall = "[   21.0] rcu: INFO: x".replace(".0", ".000000");
        let stall = format!("{stall} detected stalls on CPUs/tasks:");
        assert_eq!(watch.on_line(at, &stall), Some(Trouble::RcuStall));
        assert_eq!(watch.on_line(at, &stall), None, "it is the same one");
        let later = at + SETTLE;
        watch.on_time(later);
        assert_eq!(watch.quiet_at(), None);
        assert_eq!(watch.on_line(later, &stall), Some(Trouble::RcuStall));
        assert_eq!(watch.count(), 2);
    }

    #[test]
    fn a_kernel_that_never_stops_complaining_is_bounded() {
        let mut lines = Vec::new();
        for _ in 0..1000 {
            lines.push("Kernel panic - not syncing: again".to_owned());
            lines.extend((0..100).map(|number| format!("line {number}")));
        }
        let lines: Vec<_> = lines.iter().map(String::as_str).collect();
        let found = watch(&lines);
        assert_eq!(found.count(), 1000);
        assert_eq!(found.errors().len(), REPORTS);
        assert!(
            found
                .errors()
                .iter()
                .all(|error| error.text.len() <= TEXT_LINES)
        );
    }
}

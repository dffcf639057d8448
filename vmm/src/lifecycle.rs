//! The life of a VM: built, running, over.
//!
//! ```text
//! VmBuilder::build ──► Vm ── run ──► Running ── guest, handle or failure ──► over ── wait ──► Exit
//!                      │ drop          │ ▲   │ drop = stop and wait
//!                      ▼         pause ▼ │   ▼
//!                                  paused    over
//! ```
//!
//! Whoever ends the VM first decides how it ended; everybody else finds it over. The vCPU threads are
//! then kicked out of the guest, and [`Running::wait`] joins them.

mod handle;
mod vm;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use devices::legacy::{MachineEvent, MachineEvents};
use devices::mem::GuestMemory;

use crate::command::CommandEnd;
use crate::error::VmError;
use crate::events::{EventKind, EventNotes};
use crate::flag::Flag;
use crate::halt::HaltWatch;
use crate::pause::{Gate, Position};
use crate::vcpu::after_reset;
use crate::vcpu::kick::kick;

pub use handle::{VmHandle, VmState};
pub(crate) use vm::{IdleIo, Machine};
pub use vm::{Running, Vm};

/// How a VM ended by itself, or was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitReason {
    /// The guest powered off.
    PoweredOff,
    /// The guest asked to be reset.
    Rebooted,
    /// Every vCPU halted with interrupts off.
    Halted,
    /// The guest's kernel panicked.
    Panicked,
    /// The guest crashed beyond what its kernel could report.
    TripleFault,
    /// [`VmHandle::stop`].
    Stopped,
    /// Its guest did not power off when its command was over, or nothing more could be heard of the
    /// command.
    Deserted,
}

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Why.
    pub reason: ExitReason,
    /// How its command ended, if it was to run one.
    pub command: Option<CommandEnd>,
}

/// The end of a VM, in good or bad.
pub(crate) type Outcome = Result<ExitReason, VmError>;

/// What all threads of a VM share: whether it runs, and how to stop and end it.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    gate: Gate,
    /// Whoever pauses and resumes the VM and its devices does one after the other.
    turn: Mutex<()>,
    /// Set once, by whoever was first; taken by `wait`.
    outcome: Mutex<Option<Outcome>>,
    /// Raised once the VM is over.
    ended: Flag,
    /// The vCPU threads, from `run` to `wait`; whoever ends the VM kicks them.
    vcpus: Mutex<Vec<JoinHandle<()>>>,
    memory: GuestMemory,
    watch: HaltWatch,
    /// Whoever follows the VM.
    notes: Option<EventNotes>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each value is replaced as a whole, so a panic elsewhere leaves none half-changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lifecycle {
    pub fn new(memory: GuestMemory, notes: Option<EventNotes>) -> std::io::Result<Self> {
        Ok(Self {
            gate: Gate::new(),
            turn: Mutex::default(),
            outcome: Mutex::new(None),
            ended: Flag::new()?,
            vcpus: Mutex::new(Vec::new()),
            memory,
            watch: HaltWatch::new()?,
            notes,
        })
    }

    /// Whether the VM has ended.
    pub fn is_over(&self) -> bool {
        self.gate.position() == Position::Over
    }

    /// Where vCPUs wait while the VM is paused.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Until this is dropped, nobody else pauses or resumes the VM from outside.
    pub fn turn(&self) -> MutexGuard<'_, ()> {
        lock(&self.turn)
    }

    /// Has the vCPUs stop, and does not wait for them. With the trouble that is to be seen to first, if
    /// there is one.
    pub fn pause(&self, trouble: Option<&str>) {
        if let Some(trouble) = trouble {
            log::error!("{trouble}; the VM is paused: see to it, and resume the VM");
        }
        if self.gate.shut() {
            log::info!("the VM is paused");
            self.note(EventKind::Paused(trouble.map(str::to_owned)));
            self.kick();
        }
    }

    /// Has the vCPUs go on.
    pub fn resume(&self) {
        if self.gate.open() {
            log::info!("the VM goes on");
            self.note(EventKind::Resumed);
            // As after an exit: a guest may halt for good right away.
            self.watch.note_exit();
        }
    }

    /// Ends the VM with `outcome`, unless it has ended already.
    pub fn end(&self, outcome: Outcome) {
        {
            let mut first = lock(&self.outcome);
            if self.is_over() {
                return;
            }
            self.note(EventKind::Ended(outcome.as_ref().ok().copied()));
            *first = Some(outcome);
            self.gate.end();
        }
        self.kick();
        self.ended.raise();
    }

    /// Tells whoever follows the VM.
    pub fn note(&self, kind: EventKind) {
        if let Some(notes) = &self.notes {
            notes.send(kind);
        }
    }

    /// Makes every vCPU leave the guest.
    pub fn kick(&self) {
        lock(&self.vcpus).iter().for_each(kick);
    }

    /// Readable once the VM is over.
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    /// The watch for machines that halt for good.
    pub fn watch(&self) -> &HaltWatch {
        &self.watch
    }
}

impl MachineEvents for Lifecycle {
    fn notify(&self, event: MachineEvent) {
        match event {
            MachineEvent::PowerOff => self.end(Ok(ExitReason::PoweredOff)),
            MachineEvent::Reset => self.end(Ok(after_reset(&self.memory))),
            MachineEvent::Panicked => self.end(Ok(ExitReason::Panicked)),
            // The guest goes on to its crash kernel, which is its way to deal with the panic.
            MachineEvent::CrashLoaded => log::info!("the guest panicked and runs its crash kernel"),
        }
    }
}

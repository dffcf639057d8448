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

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use devices::io::{IoError, IoThread, PreparedIo};
use devices::legacy::power::PowerButton;
use devices::legacy::{MachineEvent, MachineEvents};
use devices::mem::GuestMemory;
use devices::rate::RateControl;
use devices::virtio::balloon::BalloonControl;
use devices::virtio::net::NetControl;

use crate::catalog::Controls;
use crate::command::{CommandEnd, CommandHandle, CommandLine};
use crate::console::{ConsoleGuard, FLUSH_LIMIT};
use crate::disk::{DiskHandle, DiskState};
use crate::error::VmError;
use crate::events::{EventKind, EventNotes};
use crate::flag::Flag;
use crate::halt::HaltWatch;
use crate::kvm::vm::KvmVm;
use crate::pause::{Gate, PATIENCE, PauseError, Position};
use crate::threads::Threads;
use crate::vcpu::kick::kick;
use crate::vcpu::thread::VcpuThread;
use crate::vcpu::{ExitCounter, ExitCounts, after_reset};
use crate::vsock::Vsock;

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

/// Whether a VM runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmState {
    /// It is assembled, and its vCPUs have not been started.
    Ready,
    /// Its vCPUs run.
    Running,
    /// [`VmHandle::pause`].
    Paused,
    /// It has ended.
    Over,
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

/// A VM that is assembled and has not run yet.
#[derive(Debug)]
pub struct Vm {
    // The order of the fields is the order of the end: threads before the console they write to, and
    // both before the VM itself.
    pub(crate) vcpus: Vec<VcpuThread>,
    pub(crate) io: Vec<IdleIo>,
    pub(crate) machine: Machine,
}

/// An I/O loop that waits for its VM to run.
#[derive(Debug)]
pub(crate) struct IdleIo {
    /// What its thread will be called.
    pub name: String,
    /// What it will do.
    pub prepared: PreparedIo,
}

impl IdleIo {
    /// A loop of no tasks.
    pub fn new(name: String) -> Result<Self, IoError> {
        let prepared = PreparedIo::new()?;
        Ok(Self { name, prepared })
    }

    /// Starts its thread, whose failure ends the VM.
    fn start(self, lifecycle: &Arc<Lifecycle>, threads: &Threads) -> Result<IoThread, IoError> {
        let failed = Arc::downgrade(lifecycle);
        let failed = move |error| {
            if let Some(lifecycle) = failed.upgrade() {
                lifecycle.end(Err(VmError::Io(error)));
            }
        };
        self.prepared
            .start(&self.name, threads.prelude(&self.name), failed)
    }
}

/// All of a VM but its vCPUs.
#[derive(Debug)]
pub(crate) struct Machine {
    pub io: Vec<IoThread>,
    pub controls: Arc<Controls>,
    pub console: Option<ConsoleGuard>,
    pub command: Option<CommandLine>,
    pub threads: Threads,
    pub power_button: Arc<PowerButton>,
    pub exits: Arc<[Arc<ExitCounter>]>,
    pub lifecycle: Arc<Lifecycle>,
    pub _kvm: Arc<KvmVm>,
}

impl Machine {
    fn handle(&self) -> VmHandle {
        VmHandle {
            lifecycle: self.lifecycle.clone(),
            power_button: self.power_button.clone(),
            controls: self.controls.clone(),
            exits: self.exits.clone(),
            command: self.command.as_ref().map(CommandLine::handle),
        }
    }
}

impl Machine {
    /// Starts the threads that serve the guest. After its vCPUs: a guest takes longer to its first use of a
    /// device than these to their start. Where one does not start, its loop is gone before the vCPUs that
    /// may wait for it are joined.
    fn serve(&mut self, io: Vec<IdleIo>) -> Result<(), VmError> {
        if let Some(console) = &mut self.console {
            console.start().map_err(VmError::Spawn)?;
        }
        for idle in io {
            let thread = idle.start(&self.lifecycle, &self.threads);
            self.io.push(thread.map_err(VmError::Io)?);
        }
        Ok(())
    }
}

impl Vm {
    /// A handle to control the VM from anywhere, for what has to be there before it runs.
    #[must_use]
    pub fn handle(&self) -> VmHandle {
        self.machine.handle()
    }

    /// Starts the vCPUs, and what serves them.
    ///
    /// # Errors
    /// A thread could not be started; the VM is gone.
    pub fn run(self) -> Result<Running, VmError> {
        let Self { vcpus, io, machine } = self;
        let mut running = Running { machine };
        if let Some(command) = &mut running.machine.command {
            command
                .start(&running.machine.lifecycle, &running.machine.threads)
                .map_err(VmError::Spawn)?;
        }
        running.machine.lifecycle.gate.expect(vcpus.len());
        {
            // Held until all are there, so that whoever ends the VM early kicks them all.
            let mut threads = lock(&running.machine.lifecycle.vcpus);
            for (id, vcpu) in vcpus.into_iter().enumerate() {
                let lifecycle = vcpu.lifecycle.clone();
                let body = move || {
                    let guard = EndOnPanic(lifecycle);
                    // The others wait until it starts them.
                    if id == 0 {
                        guard.0.note(EventKind::Started);
                    }
                    vcpu.run();
                    drop(guard);
                };
                let thread = running.machine.threads.spawn(&format!("vcpu{id}"), body);
                match thread {
                    Ok(thread) => threads.push(thread),
                    Err(error) => {
                        drop(threads);
                        running.machine.lifecycle.end(Ok(ExitReason::Stopped));
                        return Err(VmError::Spawn(error));
                    }
                }
            }
        }
        running.machine.serve(io)?;
        Ok(running)
    }
}

/// A vCPU thread that unwinds must not leave the others waiting for it.
struct EndOnPanic(Arc<Lifecycle>);

impl Drop for EndOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.end(Err(VmError::Panicked));
        }
    }
}

/// A VM whose vCPUs run. Dropping it stops it and waits for its threads.
#[derive(Debug)]
pub struct Running {
    machine: Machine,
}

impl Running {
    /// A handle to control the VM from anywhere.
    #[must_use]
    pub fn handle(&self) -> VmHandle {
        self.machine.handle()
    }

    /// Waits for the VM's end, joins its threads and gives its console's reader time to take the rest.
    ///
    /// # Errors
    /// The VM did not end by itself: KVM or the host failed it.
    pub fn wait(mut self) -> Result<Exit, VmError> {
        let command = self.join();
        let outcome = lock(&self.machine.lifecycle.outcome).take();
        outcome
            .unwrap_or(Ok(ExitReason::Stopped))
            .map(|reason| Exit { reason, command })
    }

    /// Ends what goes on beside the guest, in the order in which it comes to rest; how the guest's
    /// command ended.
    fn join(&mut self) -> Option<CommandEnd> {
        let machine = &mut self.machine;
        let mut ended = [rustix::event::PollFd::new(
            &machine.lifecycle.ended,
            rustix::event::PollFlags::IN,
        )];
        while !machine.lifecycle.is_over() {
            // Interrupted or not: what counts is whether the VM is over.
            let _ = rustix::event::poll(&mut ended, None);
        }
        if let Some(console) = &machine.console {
            console.release_vcpus();
        }
        let threads = std::mem::take(&mut *lock(&machine.lifecycle.vcpus));
        for thread in threads {
            // A panic was reported as the VM's outcome.
            let _ = thread.join();
        }
        machine.io.clear();
        if let Some(notes) = &machine.lifecycle.notes {
            notes.unbound();
        }
        if let Some(console) = machine.console.take() {
            console.close(FLUSH_LIMIT);
        }
        let command = machine.command.take()?;
        Some(command.join())
    }
}

impl AsFd for Running {
    /// Becomes readable, and stays so, when the VM has ended. Only to be polled.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.machine.lifecycle.ended.as_fd()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.machine.lifecycle.end(Ok(ExitReason::Stopped));
        let _ = self.join();
    }
}

/// Controls a VM from any thread, for as long as anybody likes; once the VM is over it does nothing.
#[derive(Debug, Clone)]
pub struct VmHandle {
    lifecycle: Arc<Lifecycle>,
    power_button: Arc<PowerButton>,
    controls: Arc<Controls>,
    exits: Arc<[Arc<ExitCounter>]>,
    command: Option<CommandHandle>,
}

impl VmHandle {
    /// Asks the guest to shut down (ACPI power button). Whether it does is the guest's choice.
    pub fn press_power_button(&self) {
        if let Err(error) = self.power_button.press() {
            log::warn!("the power button could not be pressed: {error}");
        }
    }

    /// Whether the VM has ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.lifecycle.is_over()
    }

    /// Whether the VM runs.
    #[must_use]
    pub fn state(&self) -> VmState {
        match self.lifecycle.gate.position() {
            Position::Over => VmState::Over,
            Position::Shut => VmState::Paused,
            Position::Open if self.lifecycle.gate.is_expecting() => VmState::Running,
            Position::Open => VmState::Ready,
        }
    }

    /// Pauses the VM: when this returns, none of its vCPUs executes anything and its disks' images do not
    /// change, until [`Self::resume`]. A VM that has not been started stops before its first instruction.
    /// Does nothing where it is paused already.
    ///
    /// The guest does not notice: its clock stops (kvm-clock; one that goes by the TSC itself sees that time
    /// has passed), and its watchdogs are told. Disks end what they have begun, and what was not flushed may
    /// be in the host's memory; what arrives for the guest from elsewhere waits once the guest has left it
    /// no room. Time limits that others set for it go on. A paused VM can be ended; a power button that is
    /// pressed is seen when it goes on.
    ///
    /// # Errors
    /// It has ended, or a vCPU or a disk is held up, as by a console that
    /// nobody reads; the pause then stands, and takes effect as soon as it can.
    pub fn pause(&self) -> Result<(), PauseError> {
        let _turn = self.lifecycle.turn();
        self.lifecycle.pause(None);
        self.lifecycle.gate.wait_until_still(PATIENCE)?;
        let disks = &self.controls.disks;
        disks.iter().for_each(|disk| disk.pause_with_machine());
        let deadline = Instant::now() + PATIENCE;
        let left = || deadline.saturating_duration_since(Instant::now());
        match disks.iter().find(|disk| !disk.is_at_rest(left())) {
            None => Ok(()),
            Some(disk) => Err(PauseError::Disk(disk.id().to_owned())),
        }
    }

    /// Has a paused VM go on, whoever has paused it. Does nothing where it runs.
    pub fn resume(&self) {
        let _turn = self.lifecycle.turn();
        // The vCPUs first: a disk may have the same trouble again, which must find the VM running to pause it.
        self.lifecycle.resume();
        for disk in &self.controls.disks {
            disk.resume_with_machine();
        }
    }

    /// Why the VM is paused, if it is the host's doing: which disk it has failed (`on-error=stop`), and how.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.controls
            .disks
            .iter()
            .find_map(|disk| match disk.state() {
                DiskState::Stopped(trouble) => Some(trouble),
                _ => None,
            })
    }

    /// The disks: the root file system first, then the others in the order of the settings.
    #[must_use]
    pub fn disks(&self) -> &[DiskHandle] {
        &self.controls.disks
    }

    /// A disk by its place among them, `0` being the first, or by its serial number.
    #[must_use]
    pub fn disk(&self, name: &str) -> Option<&DiskHandle> {
        let disks = &self.controls.disks;
        let by_place = name.parse().ok().and_then(|at: usize| disks.get(at));
        by_place.or_else(|| disks.iter().find(|disk| disk.id() == name))
    }

    /// The memory balloon, unless the VM was built without.
    #[must_use]
    pub fn balloon(&self) -> Option<&BalloonControl> {
        self.controls.balloon.as_ref()
    }

    /// The network cards, in the order of the settings.
    #[must_use]
    pub fn nets(&self) -> &[NetControl] {
        &self.controls.nets
    }

    /// The limits on each disk: the root file system first, then the others in the order of the settings.
    #[must_use]
    pub fn disk_rates(&self) -> &[RateControl] {
        &self.controls.disk_rates
    }

    /// The limits on each network card, in the order of the settings.
    #[must_use]
    pub fn net_rates(&self) -> &[RateControl] {
        &self.controls.net_rates
    }

    /// The limits on the source of entropy, unless the VM was built without.
    #[must_use]
    pub fn rng_rate(&self) -> Option<&RateControl> {
        self.controls.rng_rate.as_ref()
    }

    /// The vsock, if the VM has one.
    #[must_use]
    pub fn vsock(&self) -> Option<&Vsock> {
        self.controls.vsock.as_ref()
    }

    /// How often the vCPUs have left the guest so far.
    #[must_use]
    pub fn exits(&self) -> ExitCounts {
        ExitCounts::sum(self.exits.iter().map(|counter| &**counter))
    }

    /// The command that the guest runs, if it was given one.
    #[must_use]
    pub fn command(&self) -> Option<&CommandHandle> {
        self.command.as_ref()
    }

    /// Gives the guest's console so many columns and rows of characters. A serial console has no size.
    pub fn resize_console(&self, cols: u16, rows: u16) {
        if let Some(console) = &self.controls.console {
            console.resize(cols, rows);
        }
    }

    /// Ends the VM now, whatever the guest does.
    pub fn stop(&self) {
        self.lifecycle.end(Ok(ExitReason::Stopped));
    }
}

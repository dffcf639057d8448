//! A VM that is assembled, and one that runs: its threads, and their end.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use devices::io::{IoError, IoThread, PreparedIo};
use devices::legacy::power::PowerButton;

use super::handle::VmHandle;
use super::{Exit, ExitReason, Lifecycle, lock};
use crate::catalog::Controls;
use crate::command::{CommandEnd, CommandLine};
use crate::console::{ConsoleGuard, FLUSH_LIMIT};
use crate::error::VmError;
use crate::events::EventKind;
use crate::kvm::vm::KvmVm;
use crate::threads::Threads;
use crate::vcpu::ExitCounter;
use crate::vcpu::thread::VcpuThread;

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

//! What may be done to a VM from any thread, whether it runs or not.

use std::sync::Arc;
use std::time::Instant;

use devices::legacy::power::PowerButton;
use devices::rate::RateControl;
use devices::virtio::balloon::BalloonControl;
use devices::virtio::net::NetControl;

use super::{ExitReason, Lifecycle};
use crate::catalog::Controls;
use crate::command::CommandHandle;
use crate::disk::{DiskHandle, DiskState};
use crate::pause::{PATIENCE, PauseError, Position};
use crate::vcpu::{ExitCounter, ExitCounts};
use crate::vsock::Vsock;

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

/// Controls a VM from any thread, for as long as anybody likes; once the VM is over it does nothing.
#[derive(Debug, Clone)]
pub struct VmHandle {
    pub(super) lifecycle: Arc<Lifecycle>,
    pub(super) power_button: Arc<PowerButton>,
    pub(super) controls: Arc<Controls>,
    pub(super) exits: Arc<[Arc<ExitCounter>]>,
    pub(super) command: Option<CommandHandle>,
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

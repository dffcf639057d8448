//! The thread of one vCPU: runs the guest, serves its exits, ends when the VM does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use devices::mem::GuestMemory;
use kvm_bindings::{KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_UNINITIALIZED};
use kvm_ioctls::VcpuFd;

use super::count::{ExitCounter, ExitKind};
use super::exit::{Buses, Next, internal_error, run_once};
use super::kick::Attached;
use crate::kvm::vm::KvmVm;
use crate::lifecycle::Lifecycle;
use crate::pause::Passage;

/// RFLAGS.IF, Intel SDM vol. 1 §3.4.3.
const INTERRUPT_FLAG: u64 = 1 << 9;

/// What a vCPU was doing when somebody looked. Shared by its thread and the halt watch.
#[derive(Debug, Default)]
pub(crate) struct Observed(AtomicU8);

/// States of a vCPU that tell a machine at rest from one that has stopped for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    /// Nobody looked.
    Unknown = 0,
    /// Asked to look; has not answered.
    Asked = 1,
    /// Executing code.
    Running = 2,
    /// Halted until the next interrupt.
    Idle = 3,
    /// Halted with interrupts off, or never started: nothing but a reset wakes it.
    Dead = 4,
}

impl Observed {
    /// Asks the vCPU to look at itself when it is next kicked.
    pub fn ask(&self) {
        self.0.store(State::Asked as u8, Ordering::Release);
    }

    /// What it saw.
    pub fn state(&self) -> State {
        match self.0.load(Ordering::Acquire) {
            1 => State::Asked,
            2 => State::Running,
            3 => State::Idle,
            4 => State::Dead,
            _ => State::Unknown,
        }
    }

    fn answer(&self, vcpu: &VcpuFd) {
        if self.state() == State::Asked {
            self.0.store(look(vcpu) as u8, Ordering::Release);
        }
    }
}

fn look(vcpu: &VcpuFd) -> State {
    match vcpu.get_mp_state().map(|state| state.mp_state) {
        Ok(KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED) => State::Dead,
        Ok(KVM_MP_STATE_HALTED) => match vcpu.get_regs() {
            Ok(regs) if regs.rflags & INTERRUPT_FLAG == 0 => State::Dead,
            _ => State::Idle,
        },
        _ => State::Running,
    }
}

/// All that a vCPU thread needs.
#[derive(Debug)]
pub(crate) struct VcpuThread {
    /// The vCPU.
    pub vcpu: VcpuFd,
    /// Where its exits go.
    pub buses: Arc<Buses>,
    /// Guest memory.
    pub memory: GuestMemory,
    /// Whose clock stops when it does.
    pub vm: Arc<KvmVm>,
    /// The VM's life, which it may end.
    pub lifecycle: Arc<Lifecycle>,
    /// What it shows the halt watch.
    pub observed: Arc<Observed>,
    /// What it tells of its exits.
    pub exits: Arc<ExitCounter>,
}

impl VcpuThread {
    /// Runs until the VM is over.
    pub fn run(mut self) {
        let _attached = Attached::new(&mut self.vcpu);
        while self.goes_on() {
            match run_once(&mut self.vcpu, &self.buses, &self.memory) {
                Next::Served(kind) => {
                    self.exits.count(kind);
                    self.lifecycle.watch().note_exit();
                }
                Next::Again => {
                    self.exits.count(ExitKind::Interrupted);
                    self.vcpu.set_kvm_immediate_exit(0);
                    self.observed.answer(&self.vcpu);
                }
                Next::End(outcome) => self.lifecycle.end(outcome),
                Next::InternalError => {
                    let error = internal_error(&mut self.vcpu, &self.memory);
                    self.lifecycle.end(Err(error));
                }
            }
        }
    }

    /// Whether the VM does. Waits while it is paused.
    fn goes_on(&self) -> bool {
        match self.lifecycle.gate().pass(self.vm.as_ref()) {
            Passage::Free => true,
            Passage::Waited => {
                // Told so, a guest's watchdogs do not take the pause for a CPU that hangs
                // (Documentation/virt/kvm/api.rst, KVM_KVMCLOCK_CTRL). One that has no kvm-clock cannot be.
                if let Err(error) = self.vcpu.kvmclock_ctrl() {
                    log::debug!("a vCPU is not told that it was paused: {error}");
                }
                true
            }
            Passage::Over => false,
        }
    }
}

//! What this host's KVM is: its capabilities, and whether it runs guest kernels on the CPU.
//!
//! `/dev/kvm` opening says little: KVM implementations without hardware virtualisation interpret guest
//! kernel code, a thousand times slower and without the instructions that their interpreter lacks, so
//! that stock kernels die on them. No name tells those apart for certain. [`Probe::run`] runs a guest of
//! a few instructions and looks. Runs in the caller's thread for some milliseconds; the VM it makes is
//! gone when it returns.

mod guest;

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;

use kvm_bindings::KVM_API_VERSION;
use kvm_ioctls::{Cap, Kvm};
use thiserror::Error;

/// The device that KVM is reached by.
pub const KVM_DEVICE: &str = "/dev/kvm";

/// What kind of host this is for a guest kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostKind {
    /// Guest kernel code runs on the CPU: stock kernels boot at full speed.
    Hardware,
    /// Guest kernel code is interpreted: stock kernels do not boot.
    Software,
    /// There is no KVM that this process may use.
    None,
}

impl fmt::Display for HostKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hardware => "hardware",
            Self::Software => "software",
            Self::None => "none",
        })
    }
}

/// Why the host could not be probed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// `/dev/kvm` does not open; the source's kind tells absence from lack of permission.
    #[error("{KVM_DEVICE} cannot be opened")]
    Open(#[source] io::Error),
    /// KVM refused a step of setting up or running the guest.
    #[error("KVM refused {step}")]
    Kvm {
        /// The ioctl's name.
        step: &'static str,
        /// What it said.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// No memory for the guest.
    #[error("64 KiB of guest memory could not be mapped")]
    Memory(#[source] vm_memory::mmap::FromRangesError),
    /// The guest memory's layout is fixed and fits; an access outside it is a fault of this program.
    #[error("the guest image does not fit its memory")]
    Image(#[source] vm_memory::GuestMemoryError),
}

/// One KVM capability that a VM needs or likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capability {
    /// The name in KVM's documentation, without `KVM_CAP_`.
    pub name: &'static str,
    /// Whether this KVM has it.
    pub present: bool,
    /// Whether no VM can be built without it.
    pub required: bool,
}

/// KVM's documentation §4 lists what each is. The first group is used by every VM.
const REQUIRED: &[(Cap, &str)] = &[
    (Cap::UserMemory, "USER_MEMORY"),
    (Cap::Irqchip, "IRQCHIP"),
    (Cap::IrqRouting, "IRQ_ROUTING"),
    (Cap::Ioeventfd, "IOEVENTFD"),
    (Cap::Irqfd, "IRQFD"),
    (Cap::SetTssAddr, "SET_TSS_ADDR"),
    (Cap::ExtCpuid, "EXT_CPUID"),
    (Cap::MpState, "MP_STATE"),
    (Cap::ImmediateExit, "IMMEDIATE_EXIT"),
];

/// Without these a VM runs, but slower or with less.
const LIKED: &[(Cap, &str)] = &[
    (Cap::AdjustClock, "ADJUST_CLOCK"),
    (Cap::TscDeadlineTimer, "TSC_DEADLINE_TIMER"),
    (Cap::X2ApicApi, "X2APIC_API"),
    (Cap::SplitIrqchip, "SPLIT_IRQCHIP"),
    (Cap::Pit2, "PIT2"),
    (Cap::Xsave2, "XSAVE2"),
    (Cap::GetTscKhz, "GET_TSC_KHZ"),
];

/// What became of one instruction in the guest kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It did what the manual says.
    Ran,
    /// This CPU does not have it, so no guest here may use it.
    NotOnThisCpu,
    /// KVM gave up on it: KVM_EXIT_INTERNAL_ERROR, KVM_INTERNAL_ERROR_EMULATION.
    EmulationFailed,
    /// It faulted or gave a wrong result.
    Misbehaved,
}

/// What the tiny guest showed.
#[derive(Debug, Clone, PartialEq)]
pub struct Evidence {
    /// Instructions that every stock kernel uses, and what became of each at CPL 0.
    pub instructions: Vec<(&'static str, Outcome)>,
    /// How many times longer a loop takes in the guest's kernel than in this process.
    pub slowdown: f64,
}

/// A CPU in hardware virtualisation is within a few times of itself even where its host is virtual; an
/// interpreter is slower by three orders of magnitude. The line is drawn between them.
const SLOWDOWN_OF_AN_INTERPRETER: f64 = 50.0;

impl Evidence {
    /// What kind of host does this.
    #[must_use]
    pub fn kind(&self) -> HostKind {
        let complete = self
            .instructions
            .iter()
            .all(|(_, outcome)| matches!(outcome, Outcome::Ran | Outcome::NotOnThisCpu));
        if complete && self.slowdown < SLOWDOWN_OF_AN_INTERPRETER {
            HostKind::Hardware
        } else {
            HostKind::Software
        }
    }

    /// The instructions that did not run.
    pub fn failed(&self) -> impl Iterator<Item = &'static str> {
        self.instructions
            .iter()
            .filter(|(_, outcome)| {
                matches!(outcome, Outcome::EmulationFailed | Outcome::Misbehaved)
            })
            .map(|(name, _)| *name)
    }
}

/// An opened KVM.
#[derive(Debug)]
pub struct Probe {
    kvm: Kvm,
}

impl Probe {
    /// Opens `/dev/kvm`.
    ///
    /// # Errors
    /// [`ProbeError::Open`].
    pub fn open() -> Result<Self, ProbeError> {
        Kvm::new()
            .map(|kvm| Self { kvm })
            .map_err(|errno| ProbeError::Open(io::Error::from_raw_os_error(errno.errno())))
    }

    /// The API version, and whether it is the one this monitor speaks (all kernels since 2.6.22).
    #[must_use]
    pub fn api_version(&self) -> (i32, bool) {
        let version = self.kvm.get_api_version();
        (version, u32::try_from(version) == Ok(KVM_API_VERSION))
    }

    /// What a VM needs and likes, and whether it is there.
    #[must_use]
    pub fn capabilities(&self) -> Vec<Capability> {
        let look = |list: &'static [(Cap, &'static str)], required| {
            list.iter().map(move |(cap, name)| Capability {
                name,
                present: self.kvm.check_extension(*cap),
                required,
            })
        };
        look(REQUIRED, true).chain(look(LIKED, false)).collect()
    }

    /// How many vCPUs one VM may have.
    #[must_use]
    pub fn max_vcpus(&self) -> usize {
        self.kvm.get_max_vcpus()
    }

    /// Runs the tiny guest.
    ///
    /// # Errors
    /// KVM refused to make it or to run it; what happens inside it is evidence, not an error.
    pub fn run(&self) -> Result<Evidence, ProbeError> {
        guest::run(&self.kvm)
    }
}

/// Whether this is a Linux kernel, which only a KVM of the kind [`HostKind::Hardware`] is sure to run.
/// Not a file that could not be booted anyway.
#[must_use]
pub fn is_linux(kernel: &Path) -> bool {
    File::open(kernel).is_ok_and(|mut kernel| arch::kernel::is_linux(&mut kernel))
}

/// What kind of host this is, by running a tiny guest: 10 to 100 ms where guest code is interpreted,
/// less where it is not.
///
/// # Errors
/// KVM opens, but no guest can be made; not where it does not open, that is [`HostKind::None`].
pub fn probe_host() -> Result<HostKind, ProbeError> {
    match Probe::open() {
        Ok(probe) => probe.run().map(|evidence| evidence.kind()),
        Err(_) => Ok(HostKind::None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(outcome: Outcome, slowdown: f64) -> Evidence {
        Evidence {
            instructions: vec![("int3", Outcome::Ran), ("popcnt", outcome)],
            slowdown,
        }
    }

    #[test]
    fn hardware_runs_everything_fast() {
        assert_eq!(evidence(Outcome::Ran, 1.0).kind(), HostKind::Hardware);
        assert_eq!(evidence(Outcome::Ran, 8.0).kind(), HostKind::Hardware);
        assert_eq!(
            evidence(Outcome::NotOnThisCpu, 1.0).kind(),
            HostKind::Hardware
        );
    }

    #[test]
    fn a_gap_or_a_crawl_is_an_interpreter() {
        assert_eq!(evidence(Outcome::Ran, 900.0).kind(), HostKind::Software);
        let gap = evidence(Outcome::EmulationFailed, 1.0);
        assert_eq!(gap.kind(), HostKind::Software);
        assert_eq!(gap.failed().collect::<Vec<_>>(), ["popcnt"]);
        assert_eq!(
            evidence(Outcome::Misbehaved, 1.0).kind(),
            HostKind::Software
        );
    }

    #[test]
    fn no_capability_is_listed_twice() {
        let mut names: Vec<_> = REQUIRED.iter().chain(LIKED).map(|(_, name)| name).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}

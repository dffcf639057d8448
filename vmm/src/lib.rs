//! A KVM micro-VM monitor as a library: the same VM that the `mvm` command boots, from Rust.
//!
//! ```no_run
//! use vmm::config::{DiskConfig, VmConfig};
//! use vmm::console::{Console, ConsoleConfig};
//!
//! let mut config = VmConfig::new("vmlinux");
//! config.rootfs = Some("img.ext4".parse::<DiskConfig>()?);
//! let vm = vmm::VmBuilder::new(config)
//!     .console(Console::open(&ConsoleConfig::default())?)
//!     .build()?;
//! let exit = vm.run()?.wait()?;
//! println!("{:?}", exit.reason);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Nothing here ends the process, prints, or keeps state outside a VM, but for one thing that is the
//! process's by nature: the handler of the first real-time signal, with which vCPU threads are
//! interrupted. Any number of VMs may live in one process.

mod builder;
mod catalog;
mod command;
pub mod config;
pub mod console;
pub mod disk;
mod error;
pub mod events;
pub mod flag;
mod halt;
mod kvm;
mod lifecycle;
mod net;
mod pause;
pub mod run;
pub mod socket;
mod threads;
mod vcpu;
pub mod vsock;
mod windows;

/// The device models, for an embedder's own device.
pub use devices;

pub use builder::VmBuilder;
pub use command::{CommandEnd, CommandHandle, CommandIo, ModulesError};
pub use devices::rate;
pub use devices::virtio::balloon;
pub use error::{BuildError, EmulationFailure, KvmError, VmError};
pub use kvm::probe;
pub use lifecycle::{Exit, ExitReason, Running, Vm, VmHandle, VmState};
pub use net::UserNetError;
pub use pause::PauseError;
pub use threads::ThreadHooks;
pub use vcpu::ExitCounts;

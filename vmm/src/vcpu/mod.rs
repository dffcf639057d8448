//! Virtual processors: set-up, the thread that runs each, what its exits mean, and how it is interrupted.

mod count;
mod exit;
pub(crate) mod kick;
mod setup;
pub(crate) mod thread;

pub(crate) use count::ExitCounter;
pub use count::ExitCounts;
pub use exit::EmulationFailure;
pub(crate) use exit::{Buses, after_reset};
pub(crate) use setup::{Cpus, processor};

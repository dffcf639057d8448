//! Hostile guests: every device against everything a driver can make up.
//!
//! A [`Subject`] is a device with what its driver and its host side can do; [`subjects`] lists them all. A
//! [`Case`] is one attack, made through the device's registers and in guest memory, as a guest makes it.
//! Most cases are [generic](generic): they hold for every device, many of them for each of its queues. The
//! test runs each case on a fresh device with a neighbour on the same I/O thread, and asks afterwards
//! (see [`trial`]): did nothing panic or hang, was nothing written that was not given, does the neighbour
//! go on, and does the device serve again after a reset? The fuzzer starts from the same cases.

pub mod attack;
mod balloon;
mod block;
pub mod case;
mod console;
mod fs;
pub mod generic;
mod net;
mod pmem;
mod rng;
mod stream;
pub mod subject;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod trial;
mod vsock;

pub use attack::Attack;
pub use case::{Case, Expect, Scope};
pub use subject::{Host, QueuePlan, Stage, Subject};

/// Every device of mvm's.
#[must_use]
pub fn subjects() -> Vec<Subject> {
    [
        Some(balloon::subject()),
        Some(block::subject()),
        block::uring(),
        Some(block::queues()),
        Some(net::subject()),
        Some(net::pairs()),
        Some(stream::subject()),
        Some(console::subject()),
        Some(fs::subject()),
        Some(pmem::subject()),
        Some(rng::subject()),
        Some(vsock::subject()),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What `subject` has to endure: the generic cases and its own.
#[must_use]
pub fn cases(subject: &Subject) -> Vec<Case> {
    let mut cases = generic::cases();
    cases.extend((subject.cases)());
    cases
}

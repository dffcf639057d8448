//! Limits on what a device moves: so many bytes and so many operations a second, with a burst.
//!
//! A limit is two token buckets ([`bucket`], pure arithmetic). They belong to the device: all lanes of
//! its data path draw from the same ones, through a [`Throttle`] each. A worker asks before it takes a
//! request and is charged when it knows the cost:
//!
//! ```text
//! while self.throttle.admits(QUEUE)? {
//!     let Some(chain) = io.pop(QUEUE)? else { break };
//!     …
//!     self.throttle.charge(bytes);
//! }
//! ```
//!
//! After a no, the throttle's timer, which is a source of the worker, brings it back here.
//!
//! A request passes as long as there is any token left, and may leave the bucket in debt, which later
//! ones wait for. So a request of any size passes in the end, and what passes in the long run is exactly
//! the rate. Requests that must wait stay in the virtqueue, in order, and cost nothing there.
//!
//! A [`RateControl`] changes the limits from any thread, and wakes the workers that wait.

mod bucket;
mod limiter;
#[cfg(test)]
mod live;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::num::NonZeroU64;

pub use limiter::{Limiter, RateControl, Throttle};

/// How fast a bucket fills, and how much it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Tokens a second.
    pub per_second: NonZeroU64,
    /// Tokens that may be saved up.
    pub burst: NonZeroU64,
}

/// What a device may move. Without limits it moves what it can.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of data.
    pub bytes: Option<Rate>,
    /// Requests, or packets, whatever their size.
    pub operations: Option<Rate>,
}

impl Limits {
    /// Whether there is no limit.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

//! What a device brings along to be attacked.

use std::fmt;

use super::{Attack, Case};
use crate::virtio::VirtioDevice;
use crate::virtio::testing::{Descriptor, Driver};

/// A device under attack.
#[derive(Debug, Clone, Copy)]
pub struct Subject {
    /// Its name.
    pub name: &'static str,
    /// Makes one, with its host side.
    pub stage: fn() -> Stage,
    /// Has the running device serve a request of each kind that matters, and asserts that it was served.
    pub serves: fn(&mut Attack),
    /// Features without which its queues are not what [`Stage::queues`] says.
    pub needs: u64,
    /// Attacks of its own.
    pub cases: fn() -> Vec<Case>,
}

/// A device and its surroundings.
pub struct Stage {
    /// The device.
    pub device: Box<dyn VirtioDevice>,
    /// Its queues, by index.
    pub queues: Vec<QueuePlan>,
    /// The world behind it.
    pub host: Box<dyn Host>,
}

/// What a queue is for.
#[derive(Debug, Clone, Copy)]
pub struct QueuePlan {
    /// A request that the device serves: its descriptors, in order.
    pub request: fn(&mut Driver) -> Vec<Descriptor>,
    /// The device takes requests from the queue when it is kicked, or when the host side does something;
    /// otherwise it may leave them there.
    pub taken: bool,
}

/// The world behind a device: the other end of a tap, a socket, a terminal.
pub trait Host: fmt::Debug + Send {
    /// Something happens that the device has to tell its driver of. `what` picks between several things.
    fn poke(&mut self, what: u8);
}

/// Nothing ever happens by itself.
#[derive(Debug)]
pub struct Quiet;

impl Host for Quiet {
    fn poke(&mut self, _what: u8) {}
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage")
            .field("device", &self.device)
            .field("queues", &self.queues)
            .field("host", &self.host)
            .finish()
    }
}

//! What mvm and its init in the guest have in common: what they say to each other while a command runs
//! there, and the reading of indices of kernel modules.
//!
//! One byte stream, a vsock connection or a serial port, carries everything: [`frame`]s, some of which
//! control the command and most of which carry its standard streams. Each stream has a window: its
//! receiver says how much more it can take, so that no stream can hold up another one or fill anybody's
//! memory. The [`mux`] that does this is the same on both ends, and the [`spec`] is what the guest is
//! told before there is a channel.
//!
//! The guest's end runs without the standard library, and trusts its host; the host's end does not trust
//! the guest: whatever it says is an error or a frame.

#![no_std]

extern crate alloc;

pub mod frame;
pub mod modules;
pub mod mux;
pub mod spec;

pub use frame::{Control, Malformed, Stream};
pub use mux::{Mux, MuxError};

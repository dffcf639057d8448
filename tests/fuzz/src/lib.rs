//! What is fuzzed, apart from what fuzzes: targets that take any bytes, and the seeds they begin with.
//!
//! A target is a function of bytes that must return whatever they are; a panic, a hang or a crash is a
//! finding. Each [device](targets::devices) is one, with the attacks of its hostile-guest table for seeds, and so
//! is each parser of files and options. `cargo xtask fuzz` runs them under libFuzzer; the tests of this crate
//! run every seed through its target, without it.

pub mod encoding;
pub mod target;
pub mod targets;

pub use target::{Target, all, find};

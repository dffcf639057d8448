//! What is fuzzed.

pub mod command;
pub mod config;
pub mod devices;
pub mod images;
pub mod kernel;
pub mod legacy;
pub mod options;
pub mod requests;

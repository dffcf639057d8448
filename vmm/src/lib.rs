//! A KVM micro-VM monitor as a library.

pub mod config;
pub mod console;
mod kvm;

pub use kvm::probe;

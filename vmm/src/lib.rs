//! A KVM micro-VM monitor as a library.

pub mod config;
mod kvm;

pub use kvm::probe;

//! KVM's system and VM file descriptors.

pub mod probe;
pub(crate) mod vm;

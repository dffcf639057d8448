//! Virtio transports: how a driver finds a device, sets it up, and is interrupted.

pub mod mmio;

#[cfg(test)]
mod tests;

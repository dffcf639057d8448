//! Virtio transports.

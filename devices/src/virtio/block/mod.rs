//! virtio-blk, Virtio 1.2 §5.2.

pub mod disk;

//! The descriptors of a chain that was taken from its ring before, Virtio 1.2 §2.7.5.
//!
//! `virtio_queue` walks a chain only when it comes out of the available ring; a request that is begun anew
//! after an error of the host's is no longer there. Its descriptors are still the device's, but a hostile
//! driver may have written over them: like the library's, this walk ends at anything it cannot follow.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes};

use crate::mem::{GuestAddress, GuestMemory};

/// Bytes of a descriptor.
const SIZE: u32 = 16;

/// Goes through the descriptors of a chain.
#[derive(Debug)]
pub(super) struct Walk<'m> {
    memory: &'m GuestMemory,
    table: GuestAddress,
    /// Descriptors in the table.
    entries: u32,
    next: Option<u16>,
    /// The table is one that a descriptor of the queue's own refers to (§2.7.5.3).
    indirect: bool,
    bytes: u32,
}

impl<'m> Walk<'m> {
    /// From descriptor `head` of a table of so many.
    pub(super) fn new(
        memory: &'m GuestMemory,
        table: GuestAddress,
        entries: u16,
        head: u16,
    ) -> Self {
        Self {
            memory,
            table,
            entries: entries.into(),
            next: Some(head),
            indirect: false,
            bytes: 0,
        }
    }

    fn read(&mut self) -> Option<Descriptor> {
        let index = u32::from(self.next.take()?);
        if index >= self.entries {
            return None;
        }
        let at = self.table.checked_add(u64::from(index * SIZE))?;
        self.memory.read_obj(at).ok()
    }
}

impl Iterator for Walk<'_> {
    type Item = Descriptor;

    fn next(&mut self) -> Option<Descriptor> {
        let mut descriptor = self.read()?;
        if descriptor.refers_to_indirect_table() {
            // One level, and nothing behind it in the queue's own table.
            let len = descriptor.len();
            if self.indirect || len == 0 || !len.is_multiple_of(SIZE) {
                return None;
            }
            self.table = descriptor.addr();
            self.entries = len / SIZE;
            self.indirect = true;
            self.next = Some(0);
            descriptor = self.read()?;
            if descriptor.refers_to_indirect_table() {
                return None;
            }
        }
        // §2.7.5.2: at most 4 GiB.
        self.bytes = self.bytes.checked_add(descriptor.len())?;
        self.next = descriptor.has_next().then(|| descriptor.next());
        Some(descriptor)
    }
}

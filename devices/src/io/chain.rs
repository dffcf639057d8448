//! Descriptor chains, Virtio 1.2 §2.7.5: from the index of the first descriptor to checked runs of guest memory.
//!
//! `virtio_queue` has an iterator for this, which looks up the memory region for each access; that was a third of what
//! a small request cost. Here each table and each buffer is looked up once.

use smallvec::SmallVec;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, GuestMemoryBackend};

use crate::mem::{GuestAddress, GuestMemory, GuestSlice, Stretch, slice};

/// Bytes of `struct virtq_desc`.
const DESCRIPTOR: usize = 16;

/// The buffers of one side of a chain. Most chains have one or two, which need no allocation.
pub type Buffers<'m> = SmallVec<[GuestSlice<'m>; 2]>;

/// One request of the driver: buffers to read from, then buffers to write to.
#[derive(Debug)]
pub struct Chain<'m> {
    /// Index of the first descriptor: the chain's name in the used ring.
    pub head: u16,
    /// Device-readable buffers, in order.
    pub readable: Buffers<'m>,
    /// Device-writable buffers, in order.
    pub writable: Buffers<'m>,
    /// Where the last device-writable byte is, for devices that put a status there: an address can wait
    /// for a completion that comes after the event, a slice cannot.
    pub last_writable: Option<GuestAddress>,
}

/// A table of descriptors: the queue's own, or an indirect one.
#[derive(Debug)]
pub(super) struct Table<'m> {
    bytes: Stretch<'m>,
    len: u16,
}

const UNFINISHED: &str = "a loop, a link that leads out of the table, or more than 4 GiB";

impl<'m> Table<'m> {
    /// The `len` descriptors at `start`.
    pub(super) fn new(memory: &'m GuestMemory, start: GuestAddress, len: u16) -> Self {
        Self {
            bytes: Stretch::new(memory, start, usize::from(len) * DESCRIPTOR),
            len,
        }
    }

    /// §2.7.5.3: whole descriptors, as many as links can name; alignment is not asked for.
    fn indirect(memory: &'m GuestMemory, by: Descriptor) -> Result<Self, &'static str> {
        let bytes = usize::try_from(by.len()).map_err(|_| UNFINISHED)?;
        if !bytes.is_multiple_of(DESCRIPTOR) {
            return Err("an indirect table that does not end with a descriptor");
        }
        let len = u16::try_from(bytes / DESCRIPTOR)
            .map_err(|_| "an indirect table longer than any chain")?;
        Ok(Self::new(memory, by.addr(), len))
    }

    fn get(&self, index: u16) -> Option<Descriptor> {
        if index >= self.len {
            return None;
        }
        self.bytes.get(usize::from(index) * DESCRIPTOR).ok()
    }
}

/// Puts a descriptor's buffer into `side`.
fn push<'m>(
    memory: &'m GuestMemory,
    descriptor: Descriptor,
    side: &mut Buffers<'m>,
) -> Result<(), &'static str> {
    let len = usize::try_from(descriptor.len()).map_err(|_| "a buffer is too long")?;
    if len == 0 {
        return Err("an empty buffer");
    }
    if let Some(slice) = slice(memory, descriptor.addr(), len) {
        side.push(slice);
        return Ok(());
    }
    // It may straddle two memory regions, and is then two slices.
    for slice in GuestMemoryBackend::get_slices(memory, descriptor.addr(), len) {
        side.push(slice.map_err(|_| "a buffer lies outside guest memory")?);
    }
    Ok(())
}

/// The chain that begins at `head` of `table`, and how many bytes it has.
///
/// # Errors
/// What is wrong with it: it is nothing that a driver may make.
pub(super) fn walk<'m>(
    memory: &'m GuestMemory,
    table: &Table<'m>,
    head: u16,
    longest: u16,
) -> Result<(Chain<'m>, u64), &'static str> {
    let mut chain = Chain {
        head,
        readable: Buffers::new(),
        writable: Buffers::new(),
        last_writable: None,
    };
    let mut indirect = None;
    let (mut index, mut in_table, mut count) = (head, 0u16, 0u16);
    let mut bytes = 0u64;
    loop {
        let table = indirect.as_ref().unwrap_or(table);
        // Whoever takes more steps than there are descriptors goes in circles.
        if in_table == table.len {
            return Err(UNFINISHED);
        }
        let descriptor = table.get(index).ok_or(UNFINISHED)?;
        if descriptor.refers_to_indirect_table() {
            if indirect.is_some() {
                return Err("an indirect table within an indirect table");
            }
            indirect = Some(Table::indirect(memory, descriptor)?);
            (index, in_table) = (0, 0);
            continue;
        }
        if count == longest {
            return Err("longer than its queue");
        }
        (count, in_table) = (count + 1, in_table + 1);
        bytes += u64::from(descriptor.len());
        // §2.7.5.2.
        if bytes > u64::from(u32::MAX) {
            return Err(UNFINISHED);
        }
        if descriptor.is_write_only() {
            push(memory, descriptor, &mut chain.writable)?;
            let last = u64::from(descriptor.len()) - 1;
            chain.last_writable = descriptor.addr().checked_add(last);
        } else if chain.writable.is_empty() {
            push(memory, descriptor, &mut chain.readable)?;
        } else {
            return Err("a device-readable buffer follows a device-writable one");
        }
        if !descriptor.has_next() {
            return Ok((chain, bytes));
        }
        index = descriptor.next();
    }
}

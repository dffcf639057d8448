//! A run of guest memory that is used field by field, such as a ring or a table of descriptors.

use std::sync::atomic::Ordering;

use vm_memory::guest_memory::Error;
use vm_memory::{Address, AtomicAccess, ByteValued, Bytes, GuestMemoryBackend, VolatileMemory};

use super::{GuestAddress, GuestMemory, GuestSlice};

/// A run of guest memory, looked up once, so that no access to a field of it has to find the memory region again.
#[derive(Debug)]
pub struct Stretch<'m> {
    memory: &'m GuestMemory,
    start: GuestAddress,
    /// All of it, unless it straddles two memory regions or is not memory; then each access looks for itself.
    whole: Option<GuestSlice<'m>>,
}

impl<'m> Stretch<'m> {
    /// The `len` bytes of `memory` from `start` on.
    #[must_use]
    pub fn new(memory: &'m GuestMemory, start: GuestAddress, len: usize) -> Self {
        Self {
            memory,
            start,
            whole: slice(memory, start, len),
        }
    }

    /// Reads the field at byte `offset`, in one access.
    ///
    /// # Errors
    /// It is not in guest memory, or not aligned.
    #[inline]
    pub fn load<T: AtomicAccess>(&self, offset: usize, order: Ordering) -> Result<T, Error> {
        match &self.whole {
            Some(whole) => whole.load(offset, order).map_err(Error::from),
            None => self.memory.load(self.at(offset)?, order),
        }
    }

    /// Writes the field at byte `offset`, in one access.
    ///
    /// # Errors
    /// As for [`load`](Self::load).
    #[inline]
    pub fn store<T: AtomicAccess>(
        &self,
        value: T,
        offset: usize,
        order: Ordering,
    ) -> Result<(), Error> {
        match &self.whole {
            Some(whole) => whole.store(value, offset, order).map_err(Error::from),
            None => self.memory.store(value, self.at(offset)?, order),
        }
    }

    /// Reads the structure at byte `offset`, once: the guest may change it at any time.
    ///
    /// # Errors
    /// It is not in guest memory.
    #[inline]
    pub fn get<T: ByteValued>(&self, offset: usize) -> Result<T, Error> {
        match &self.whole {
            Some(whole) => Ok(whole.get_ref(offset)?.load()),
            None => self.memory.read_obj(self.at(offset)?),
        }
    }

    /// Writes the structure at byte `offset`.
    ///
    /// # Errors
    /// It is not in guest memory.
    #[inline]
    pub fn set<T: ByteValued>(&self, value: T, offset: usize) -> Result<(), Error> {
        match &self.whole {
            Some(whole) => {
                whole.get_ref(offset)?.store(value);
                Ok(())
            }
            None => self.memory.write_obj(value, self.at(offset)?),
        }
    }

    fn at(&self, offset: usize) -> Result<GuestAddress, Error> {
        let overflow = Error::GuestAddressOverflow;
        self.start.checked_add(offset as u64).ok_or(overflow)
    }
}

/// The `len` bytes from `start` on, where they are in one piece.
pub fn slice(memory: &GuestMemory, start: GuestAddress, len: usize) -> Option<GuestSlice<'_>> {
    GuestMemoryBackend::get_slice(memory, start, len).ok()
}

//! The bytes of a request in guest memory, used up from the front as the disk moves them.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;

use crate::iovec::{self, IoVec, MAX_BUFFERS};
use crate::mem::GuestSlice;

/// Where zeroes are written from.
static ZEROES: Zeroes = Zeroes([0; 1 << 16]);

/// A page as O_DIRECT wants it.
#[repr(align(4096))]
struct Zeroes([u8; 1 << 16]);

/// Runs of guest memory, in order, of which the front is used up bit by bit.
#[derive(Debug, Default)]
pub(super) struct Buffers<'m> {
    vector: Vec<IoVec<'m>>,
    /// Elements of `vector` that are used up.
    used: usize,
}

impl<'m> Buffers<'m> {
    /// All bytes of `slices`.
    pub(super) fn of(slices: &[GuestSlice<'m>]) -> Self {
        let vector = slices
            .iter()
            .filter(|slice| !slice.is_empty())
            .map(IoVec::new)
            .collect();
        Self { vector, used: 0 }
    }

    /// Bytes of ours.
    pub(super) fn of_bytes(bytes: &'m mut [u8]) -> Self {
        Self::of(&[GuestSlice::from(bytes)])
    }

    /// The same buffers for as long as anybody likes.
    ///
    /// # Safety
    /// The memory stays mapped until the result is gone.
    pub(super) unsafe fn held(self) -> Buffers<'static> {
        Buffers {
            // SAFETY: the caller's promise.
            vector: unsafe { iovec::held(self.vector) },
            used: self.used,
        }
    }

    /// What is left, as much as one call takes.
    pub(super) fn vector(&self) -> &[IoVec<'m>] {
        let rest = &self.vector[self.used..];
        &rest[..rest.len().min(MAX_BUFFERS)]
    }

    /// What is left, as slices of guest memory.
    pub(super) fn slices(&self) -> impl ExactSizeIterator<Item = GuestSlice<'m>> {
        self.vector[self.used..].iter().map(IoVec::slice)
    }

    /// Whether nothing is left.
    pub(super) fn is_empty(&self) -> bool {
        self.used == self.vector.len()
    }

    /// How many bytes are left.
    pub(super) fn len(&self) -> u64 {
        self.parts().map(|(_, len)| len).sum()
    }

    /// Address and length of each part of what is left.
    pub(super) fn parts(&self) -> impl Iterator<Item = (u64, u64)> {
        self.slices()
            .map(|slice| (slice.ptr_guard().as_ptr() as u64, slice.len() as u64))
    }

    /// Takes the first `len` bytes out, or all there are.
    pub(super) fn split(&mut self, len: u64) -> Self {
        if len >= self.len() {
            return std::mem::take(self);
        }
        // More than there are where it is no length of memory.
        let mut wanted = usize::try_from(len).unwrap_or(usize::MAX);
        let mut front = Vec::new();
        while let Some(part) = self.vector.get_mut(self.used).filter(|_| wanted > 0) {
            if part.len() > wanted {
                front.push(part.split(wanted));
                break;
            }
            front.push(*part);
            wanted -= part.len();
            self.used += 1;
        }
        Self {
            vector: front,
            used: 0,
        }
    }

    /// Uses up the first `moved` bytes.
    pub(super) fn advance(&mut self, moved: usize) {
        let left = iovec::skip(&mut self.vector[self.used..], moved).len();
        self.used = self.vector.len() - left;
    }

    /// Fills what is left from `bytes`, which are as many.
    pub(super) fn copy_from(&self, bytes: &[u8]) {
        iovec::scatter(&self.vector[self.used..], 0, bytes);
    }

    /// Copies what is left into `bytes`, which are as many.
    pub(super) fn copy_to(&self, bytes: &mut [u8]) {
        iovec::gather(&self.vector[self.used..], 0, bytes);
    }

    /// Fills all of it with zeroes.
    pub(super) fn fill_zero(&self) {
        for slice in self.slices() {
            let mut at = 0;
            while let Ok(rest) = slice.offset(at)
                && !rest.is_empty()
            {
                rest.copy_from(&ZEROES.0);
                at += rest.len().min(ZEROES.0.len());
            }
        }
    }
}

impl Buffers<'static> {
    /// So many bytes, all of them zero, to write somewhere; at most 64 MiB.
    pub(super) fn of_zeroes(len: u64) -> Self {
        let mut left = usize::try_from(len).unwrap_or(usize::MAX);
        let mut vector = Vec::new();
        while left > 0 && vector.len() < MAX_BUFFERS {
            let now = left.min(ZEROES.0.len());
            let start = (&raw const ZEROES.0).cast_mut().cast();
            // SAFETY: these bytes are there for good, and nobody writes through what comes of this: it is
            // made for a call that reads it.
            let slice = unsafe { GuestSlice::new(start, now) };
            vector.push(IoVec::new(&slice));
            left -= now;
        }
        Self { vector, used: 0 }
    }
}

/// Fills `buffers` from `offset` of `file`. A file that ends before is an error: it was cut off while
/// in use, and zeroes in place of what was there would go unnoticed.
pub(super) fn read_exact_at(file: &File, buffers: Buffers<'_>, offset: u64) -> io::Result<()> {
    let read = |vector: &[IoVec<'_>], offset| iovec::read_at(file.as_fd(), vector, offset);
    transfer(buffers, offset, ErrorKind::UnexpectedEof, read)
}

/// Stores `buffers` at `offset` of `file`.
pub(super) fn write_all_at(file: &File, buffers: Buffers<'_>, offset: u64) -> io::Result<()> {
    let write = |vector: &[IoVec<'_>], offset| iovec::write_at(file.as_fd(), vector, offset);
    transfer(buffers, offset, ErrorKind::WriteZero, write)
}

/// Calls `call` until it has moved every byte of `buffers`; `stuck` is the error if it moves none.
fn transfer(
    mut buffers: Buffers<'_>,
    mut offset: u64,
    stuck: ErrorKind,
    mut call: impl FnMut(&[IoVec<'_>], u64) -> io::Result<usize>,
) -> io::Result<()> {
    while !buffers.is_empty() {
        match call(buffers.vector(), offset) {
            Ok(0) => return Err(stuck.into()),
            Ok(moved) => {
                buffers.advance(moved);
                offset = offset
                    .checked_add(moved as u64)
                    .ok_or(ErrorKind::FileTooLarge)?;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vm_memory::VolatileSlice;

    use super::*;

    /// Every address of `vector`, in order.
    fn addresses(vector: &[IoVec<'_>]) -> Vec<usize> {
        vector
            .iter()
            .map(IoVec::slice)
            .flat_map(|slice| {
                let start = slice.ptr_guard().as_ptr() as usize;
                start..start + slice.len()
            })
            .collect()
    }

    fn memory(sizes: &[usize]) -> Vec<Vec<u8>> {
        sizes.iter().map(|size| vec![0xee; *size]).collect()
    }

    fn slices(memory: &mut [Vec<u8>]) -> Vec<GuestSlice<'_>> {
        memory
            .iter_mut()
            .map(|bytes| VolatileSlice::from(&mut bytes[..]))
            .collect()
    }

    /// Runs a transfer of `sizes` against a file that moves at most `step` bytes a call and is
    /// interrupted every third time; returns the number of calls.
    fn run(sizes: &[usize], step: usize) -> usize {
        let mut memory = memory(sizes);
        let buffers = Buffers::of(&slices(&mut memory));
        let all = addresses(&buffers.vector);
        let mut moved = Vec::new();
        let mut calls = 0;
        transfer(buffers, 7, ErrorKind::WriteZero, |vector, offset| {
            calls += 1;
            assert!(vector.len() <= MAX_BUFFERS, "{} buffers", vector.len());
            assert_eq!(offset, 7 + moved.len() as u64);
            if calls % 3 == 0 {
                return Err(ErrorKind::Interrupted.into());
            }
            let before = moved.len();
            moved.extend(addresses(vector).into_iter().take(step));
            Ok(moved.len() - before)
        })
        .unwrap();
        assert_eq!(moved, all, "every byte once, in order");
        calls
    }

    #[test]
    fn every_byte_is_moved_once_whatever_a_call_moves() {
        for step in [1, 2, 511, 512, 513, 4096, usize::MAX] {
            run(&[512], step);
            run(&[1, 1, 510, 0, 512, 3], step);
        }
        assert_eq!(run(&[], 1), 0);
        assert_eq!(run(&[0, 0], 1), 0);
    }

    #[test]
    fn more_buffers_than_a_call_takes() {
        assert_eq!(run(&[16; 1024], usize::MAX), 1);
        assert_eq!(run(&[16; 1025], usize::MAX), 2);
        run(&[16; 3000], 1000);
    }

    #[test]
    fn no_progress_and_errors_end_it() {
        let mut memory = memory(&[512]);
        let slices = slices(&mut memory);
        let buffers = || Buffers::of(&slices);
        let stuck = transfer(buffers(), 0, ErrorKind::UnexpectedEof, |_, _| Ok(0));
        assert_eq!(stuck.unwrap_err().kind(), ErrorKind::UnexpectedEof);
        let full = || io::Error::from_raw_os_error(libc::ENOSPC);
        let error = transfer(buffers(), 0, ErrorKind::WriteZero, |_, _| Err(full()));
        assert_eq!(error.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        let far = transfer(buffers(), u64::MAX, ErrorKind::WriteZero, |_, _| Ok(512));
        assert!(far.is_err(), "an offset no file has");
        let file = tempfile::tempfile().unwrap();
        assert!(write_all_at(&file, buffers(), 1 << 63).is_err());
    }

    #[test]
    fn a_split_takes_the_front_and_leaves_the_rest() {
        for step in [1, 2, 3, 5, 512, 513, 600] {
            let mut memory = memory(&[1, 5, 512, 0, 88]);
            let mut buffers = Buffers::of(&slices(&mut memory));
            let all = addresses(&buffers.vector);
            let mut taken = Vec::new();
            while !buffers.is_empty() {
                let before = buffers.len();
                let front = buffers.split(step);
                assert_eq!(front.len(), step.min(before));
                assert_eq!(front.len() + buffers.len(), before);
                taken.extend(addresses(front.vector()));
            }
            assert_eq!(taken, all, "in steps of {step}");
            assert!(buffers.split(1).is_empty());
        }
    }

    #[test]
    fn zeroes_fill_what_is_left_and_no_more() {
        let mut memory = memory(&[3, 5000, 2]);
        let mut buffers = Buffers::of(&slices(&mut memory));
        buffers.advance(2);
        buffers.split(4997).fill_zero();
        let bytes = memory.concat();
        assert_eq!(bytes[..2], [0xee; 2]);
        assert!(bytes[2..4999].iter().all(|byte| *byte == 0));
        assert_eq!(bytes[4999..], [0xee; 6]);
    }
}

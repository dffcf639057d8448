//! Bytes straight between a file and guest memory: preadv(2) and pwritev(2) over guest slices.
//!
//! The loop around the two system calls is safe and does what they leave to the caller: short transfers,
//! interruptions, more buffers than one call takes.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;

use crate::mem::GuestSlice;

/// The most buffers the kernel takes in one call: UIO_MAXIOV.
const MAX_BUFFERS: usize = 1024;

/// Where zeroes are written from.
static ZEROES: Zeroes = Zeroes([0; 1 << 16]);

/// A page as O_DIRECT wants it.
#[repr(align(4096))]
struct Zeroes([u8; 1 << 16]);

/// Addresses of guest buffers, in order, of which the front is used up bit by bit.
///
/// They outlive the slices that they were made of: whoever holds them sees to it that the guest's memory
/// stays mapped, as the contract of [`DiskLane`](super::disk::DiskLane) has it.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    vector: Vec<libc::iovec>,
    /// Elements of `vector` that are used up.
    used: usize,
}

// SAFETY: the pointers are to memory that is shared with the guest and that every thread of the process
// may access; nothing of it belongs to a thread.
unsafe impl Send for Buffers {}

impl Buffers {
    /// All bytes of `slices`.
    pub(super) fn of(slices: &[GuestSlice<'_>]) -> Self {
        let vector = slices
            .iter()
            .filter(|slice| !slice.is_empty())
            // Guest memory stays mapped while there are slices of it: the guard, which matters for memory
            // that is mapped per access, need not be kept.
            .map(|slice| libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            })
            .collect();
        Self { vector, used: 0 }
    }

    /// Bytes of ours. They must stay as long as the result is used, which is no longer than a call.
    pub(super) fn of_bytes(bytes: &mut [u8]) -> Self {
        Self::of(&[GuestSlice::from(bytes)])
    }

    /// So many bytes, all of them zero, to write somewhere; at most 64 MiB.
    pub(super) fn of_zeroes(len: u64) -> Self {
        let mut left = usize::try_from(len).unwrap_or(usize::MAX);
        let mut vector = Vec::new();
        while left > 0 && vector.len() < MAX_BUFFERS {
            let now = left.min(ZEROES.0.len());
            vector.push(libc::iovec {
                iov_base: (&raw const ZEROES.0).cast_mut().cast(),
                iov_len: now,
            });
            left -= now;
        }
        Self { vector, used: 0 }
    }

    /// What is left, as much as one call takes.
    pub(super) fn vector(&self) -> &[libc::iovec] {
        let rest = &self.vector[self.used..];
        &rest[..rest.len().min(MAX_BUFFERS)]
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
        let rest = &self.vector[self.used..];
        rest.iter()
            .map(|part| (part.iov_base as u64, part.iov_len as u64))
    }

    /// Takes the first `len` bytes out, or all there are.
    pub(super) fn split(&mut self, len: u64) -> Self {
        let mut front = Vec::new();
        let mut wanted = len;
        while let Some(part) = self.vector.get_mut(self.used).filter(|_| wanted > 0) {
            let part_len = part.iov_len as u64;
            if part_len > wanted {
                // Less than a length that fits.
                let now = usize::try_from(wanted).unwrap_or(part.iov_len);
                front.push(libc::iovec {
                    iov_base: part.iov_base,
                    iov_len: now,
                });
                self.advance(now);
                break;
            }
            front.push(*part);
            wanted -= part_len;
            self.used += 1;
        }
        Self {
            vector: front,
            used: 0,
        }
    }

    /// Uses up the first `moved` bytes.
    pub(super) fn advance(&mut self, mut moved: usize) {
        while let Some(part) = self.vector.get_mut(self.used) {
            if moved < part.iov_len {
                part.iov_base = part.iov_base.wrapping_byte_add(moved);
                part.iov_len -= moved;
                return;
            }
            moved -= part.iov_len;
            self.used += 1;
        }
    }

    /// The bytes that are left, as slices of guest memory.
    fn slices(&self) -> impl Iterator<Item = GuestSlice<'_>> {
        self.vector[self.used..].iter().map(|part| {
            // SAFETY: the pointer and length are those of a slice of guest memory, or of a part of one, and
            // whoever holds `self` keeps that memory mapped.
            unsafe { GuestSlice::new(part.iov_base.cast(), part.iov_len) }
        })
    }

    /// Fills what is left from `bytes`, which are as many.
    pub(super) fn copy_from(&self, mut bytes: &[u8]) {
        for slice in self.slices() {
            let (now, later) = bytes.split_at(bytes.len().min(slice.len()));
            slice.copy_from(now);
            bytes = later;
        }
    }

    /// Copies what is left into `bytes`, which are as many.
    pub(super) fn copy_to(&self, mut bytes: &mut [u8]) {
        for slice in self.slices() {
            let (now, later) = bytes.split_at_mut(bytes.len().min(slice.len()));
            slice.copy_to(now);
            bytes = later;
        }
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

/// Fills `buffers` from `offset` of `file`. A file that ends before is an error: it was cut off while
/// in use, and zeroes in place of what was there would go unnoticed.
pub(super) fn read_exact_at(file: &File, buffers: Buffers, offset: u64) -> io::Result<()> {
    transfer(
        buffers,
        offset,
        ErrorKind::UnexpectedEof,
        |vector, offset| {
            let count = libc::c_int::try_from(vector.len()).map_err(io::Error::other)?;
            // SAFETY: `vector` has `count` elements, each of mapped guest memory or of a buffer that the
            // caller lent. The kernel writes through the pointers only during the call; Rust has no
            // references to guest memory, which the guest may change at any time anyway.
            check(unsafe { libc::preadv64(file.as_raw_fd(), vector.as_ptr(), count, offset) })
        },
    )
}

/// Stores `buffers` at `offset` of `file`.
pub(super) fn write_all_at(file: &File, buffers: Buffers, offset: u64) -> io::Result<()> {
    transfer(buffers, offset, ErrorKind::WriteZero, |vector, offset| {
        let count = libc::c_int::try_from(vector.len()).map_err(io::Error::other)?;
        // SAFETY: as for reading; the kernel only reads through the pointers.
        check(unsafe { libc::pwritev64(file.as_raw_fd(), vector.as_ptr(), count, offset) })
    })
}

fn check(transferred: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(transferred).map_err(|_| io::Error::last_os_error())
}

/// Calls `call` until it has moved every byte of `buffers`; `stuck` is the error if it moves none.
fn transfer(
    mut buffers: Buffers,
    offset: u64,
    stuck: ErrorKind,
    mut call: impl FnMut(&[libc::iovec], libc::off64_t) -> io::Result<usize>,
) -> io::Result<()> {
    let mut offset = libc::off64_t::try_from(offset).map_err(io::Error::other)?;
    while !buffers.is_empty() {
        match call(buffers.vector(), offset) {
            Ok(0) => return Err(stuck.into()),
            Ok(moved) => {
                buffers.advance(moved);
                offset = libc::off64_t::try_from(moved)
                    .ok()
                    .and_then(|moved| offset.checked_add(moved))
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

    /// Every address of `buffers`, in order.
    fn addresses(vector: &[libc::iovec]) -> Vec<usize> {
        vector
            .iter()
            .flat_map(|v| (0..v.iov_len).map(|at| v.iov_base as usize + at))
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
            assert_eq!(offset, i64::try_from(7 + moved.len()).unwrap());
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

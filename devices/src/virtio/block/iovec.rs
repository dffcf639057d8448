//! Bytes straight between a file and guest memory: preadv(2) and pwritev(2) over guest slices.
//!
//! All the unsafe code of block devices. The loop around the two calls is safe and does what they
//! leave to the caller: short transfers, interruptions, more buffers than one call takes.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;

use crate::mem::GuestSlice;

/// The most buffers the kernel takes in one call: UIO_MAXIOV.
const MAX_BUFFERS: usize = 1024;

/// Fills `buffers` from `offset` of `file`. A file that ends before is an error: it was cut off while
/// in use, and zeroes in place of what was there would go unnoticed.
pub(super) fn read_exact_at(
    file: &File,
    buffers: &[GuestSlice<'_>],
    offset: u64,
) -> io::Result<()> {
    transfer(
        buffers,
        offset,
        ErrorKind::UnexpectedEof,
        |vector, offset| {
            let count = libc::c_int::try_from(vector.len()).map_err(io::Error::other)?;
            // SAFETY: `vector` was made by `transfer` from slices of mapped guest memory that outlive this
            // call, and has `count` elements. The kernel writes through the pointers only during the call;
            // Rust has no references to that memory, which the guest may change at any time anyway.
            check(unsafe { libc::preadv64(file.as_raw_fd(), vector.as_ptr(), count, offset) })
        },
    )
}

/// Stores `buffers` at `offset` of `file`.
pub(super) fn write_all_at(file: &File, buffers: &[GuestSlice<'_>], offset: u64) -> io::Result<()> {
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
    buffers: &[GuestSlice<'_>],
    offset: u64,
    stuck: ErrorKind,
    mut call: impl FnMut(&[libc::iovec], libc::off64_t) -> io::Result<usize>,
) -> io::Result<()> {
    let mut vector: Vec<libc::iovec> = buffers
        .iter()
        .filter(|buffer| !buffer.is_empty())
        // Guest memory stays mapped while there are slices of it: the guard, which matters for memory
        // that is mapped per access, need not be kept.
        .map(|buffer| libc::iovec {
            iov_base: buffer.ptr_guard_mut().as_ptr().cast(),
            iov_len: buffer.len(),
        })
        .collect();
    let mut rest = &mut vector[..];
    let mut offset = libc::off64_t::try_from(offset).map_err(io::Error::other)?;
    while !rest.is_empty() {
        let now = &rest[..rest.len().min(MAX_BUFFERS)];
        match call(now, offset) {
            Ok(0) => return Err(stuck.into()),
            Ok(moved) => {
                rest = advance(rest, moved);
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

/// What is left of `vector` after its first `moved` bytes.
fn advance(vector: &mut [libc::iovec], mut moved: usize) -> &mut [libc::iovec] {
    let mut done = 0;
    for buffer in vector.iter_mut() {
        if moved < buffer.iov_len {
            buffer.iov_base = buffer.iov_base.wrapping_byte_add(moved);
            buffer.iov_len -= moved;
            break;
        }
        moved -= buffer.iov_len;
        done += 1;
    }
    &mut vector[done..]
}

#[cfg(test)]
mod tests {
    use vm_memory::VolatileSlice;

    use super::*;

    /// Runs a transfer of `sizes` against a file that moves at most `step` bytes a call and is
    /// interrupted every third time; returns the number of calls.
    fn run(sizes: &[usize], step: usize) -> usize {
        let mut memory: Vec<Vec<u8>> = sizes.iter().map(|size| vec![0; *size]).collect();
        let slices: Vec<_> = memory
            .iter_mut()
            .map(|bytes| VolatileSlice::from(&mut bytes[..]))
            .collect();
        let total: usize = sizes.iter().sum();
        let mut moved = Vec::new();
        let mut calls = 0;
        transfer(&slices, 7, ErrorKind::WriteZero, |vector, offset| {
            calls += 1;
            assert!(vector.len() <= MAX_BUFFERS, "{} buffers", vector.len());
            assert_eq!(offset, i64::try_from(7 + moved.len()).unwrap());
            if calls % 3 == 0 {
                return Err(ErrorKind::Interrupted.into());
            }
            let addresses = vector
                .iter()
                .flat_map(|v| (0..v.iov_len).map(|at| v.iov_base as usize + at));
            let before = moved.len();
            moved.extend(addresses.take(step));
            Ok(moved.len() - before)
        })
        .unwrap();
        let all: Vec<usize> = slices
            .iter()
            .flat_map(|s| (0..s.len()).map(|at| s.ptr_guard().as_ptr() as usize + at))
            .collect();
        assert_eq!(moved.len(), total);
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
        let mut bytes = [0; 512];
        let slices = [VolatileSlice::from(&mut bytes[..])];
        let stuck = transfer(&slices, 0, ErrorKind::UnexpectedEof, |_, _| Ok(0));
        assert_eq!(stuck.unwrap_err().kind(), ErrorKind::UnexpectedEof);
        let full = || io::Error::from_raw_os_error(libc::ENOSPC);
        let error = transfer(&slices, 0, ErrorKind::WriteZero, |_, _| Err(full()));
        assert_eq!(error.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        let far = transfer(&slices, u64::MAX, ErrorKind::WriteZero, |_, _| Ok(512));
        assert!(far.is_err(), "an offset no file has");
    }
}

//! Bytes straight between a descriptor and guest memory: readv(2), writev(2) and their kin over guest
//! slices.
//!
//! All the unsafe code of devices that move data. An [`IoVec`] is a guest slice in the shape that the
//! kernel takes, so that a list of them can be kept and used for more than one call.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use smallvec::SmallVec;

use crate::mem::{GuestMemory, GuestSlice};

/// The most buffers the kernel takes in one call: UIO_MAXIOV.
pub const MAX_BUFFERS: usize = 1024;

/// A run of guest memory, or of a host buffer put into a [`GuestSlice`], ready for the kernel.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct IoVec<'m> {
    raw: libc::iovec,
    memory: PhantomData<GuestSlice<'m>>,
}

// SAFETY: the pointer is to memory that outlives 'm and that only the kernel and volatile accesses touch;
// both may do so from any thread, and the guest does so all the time.
unsafe impl Send for IoVec<'_> {}

impl<'m> IoVec<'m> {
    /// The run of bytes that `slice` is.
    #[must_use]
    pub fn new(slice: &GuestSlice<'m>) -> Self {
        // Guest memory stays mapped while there are slices of it: the guard, which matters for memory
        // that is mapped per access, need not be kept.
        let raw = libc::iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: slice.len(),
        };
        Self {
            raw,
            memory: PhantomData,
        }
    }

    /// Number of bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.raw.iov_len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.raw.iov_len == 0
    }

    /// Where the run begins, for a call that is made later.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.raw.iov_base.cast()
    }

    /// The slice this was made from.
    #[must_use]
    pub fn slice(&self) -> GuestSlice<'m> {
        // SAFETY: `new` took pointer and length from a slice of the same lifetime, and `advance` only
        // moves them within it.
        unsafe { GuestSlice::new(self.raw.iov_base.cast(), self.raw.iov_len) }
    }

    /// Takes the first `count` bytes out, or as many as there are.
    pub(crate) fn split(&mut self, count: usize) -> Self {
        let mut front = *self;
        front.raw.iov_len = count.min(self.raw.iov_len);
        self.advance(count);
        front
    }

    /// Leaves out the first `count` bytes, or as many as there are.
    fn advance(&mut self, count: usize) {
        let count = count.min(self.raw.iov_len);
        self.raw.iov_base = self.raw.iov_base.wrapping_byte_add(count);
        self.raw.iov_len -= count;
    }
}

/// A list for one call. Most have one or two.
pub type IoVecs<'m> = SmallVec<[IoVec<'m>; 2]>;

impl fmt::Debug for IoVec<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoVec({} bytes)", self.len())
    }
}

/// The same list for as long as anybody likes.
///
/// # Safety
/// The memory stays mapped until the result is gone.
#[must_use]
pub unsafe fn held(list: Vec<IoVec<'_>>) -> Vec<IoVec<'static>> {
    list.into_iter()
        .map(|IoVec { raw, .. }| IoVec {
            raw,
            memory: PhantomData,
        })
        .collect()
}

/// Buffers that are kept from one event to the next, and with them the memory they lie in.
#[derive(Debug, Default)]
pub struct HeldBuffers {
    buffers: Vec<IoVec<'static>>,
    /// Where in the list those begin that are still held.
    first: usize,
    /// Keeps the mappings, for as long as there are pointers into them.
    memory: Option<GuestMemory>,
}

impl HeldBuffers {
    /// Holds `slices` too, behind the others.
    ///
    /// # Safety
    /// They lie in `memory`, which is the same, or shares its mappings, in each call.
    pub unsafe fn push(&mut self, memory: &GuestMemory, slices: &[GuestSlice<'_>]) {
        self.memory.get_or_insert_with(|| memory.clone());
        self.buffers.extend(slices.iter().map(|slice| IoVec {
            raw: IoVec::new(slice).raw,
            memory: PhantomData,
        }));
    }

    /// Those that are held.
    #[must_use]
    pub fn as_slice(&self) -> &[IoVec<'_>] {
        &self.buffers[self.first..]
    }

    /// How many that is.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buffers.len() - self.first
    }

    /// Whether none is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Lets go of the first `count`.
    pub fn release(&mut self, count: usize) {
        self.first = (self.first + count).min(self.buffers.len());
        // The list moves up only when most of it is gone, so that its length stays bounded and each
        // buffer is moved a bounded number of times.
        if self.first > self.buffers.len() / 2 {
            self.buffers.drain(..self.first);
            self.first = 0;
        }
    }
}

/// An empty list in the allocation of `list`, for other memory than that one was for.
#[must_use]
pub fn recycle<'m>(mut list: Vec<IoVec<'_>>) -> Vec<IoVec<'m>> {
    list.clear();
    // Nothing is left to map; collecting a vector's own iterator keeps its allocation.
    list.into_iter().map(|_| unreachable!()).collect()
}

/// Bytes in `buffers`.
#[must_use]
pub fn total(buffers: &[IoVec<'_>]) -> usize {
    buffers.iter().fold(0, |sum, buffer| {
        // Slices may overlap: a chain can name the same memory often.
        sum.saturating_add(buffer.len())
    })
}

/// What is left of `buffers` after their first `count` bytes.
pub fn skip<'b, 'm>(buffers: &'b mut [IoVec<'m>], mut count: usize) -> &'b mut [IoVec<'m>] {
    let mut done = 0;
    for buffer in buffers.iter_mut() {
        if count < buffer.len() {
            buffer.advance(count);
            break;
        }
        count -= buffer.len();
        done += 1;
    }
    &mut buffers[done..]
}

/// Cuts `buffers` off behind their first `count` bytes; what is left of them.
pub fn truncate<'b, 'm>(buffers: &'b mut [IoVec<'m>], mut count: usize) -> &'b mut [IoVec<'m>] {
    let mut kept = 0;
    for buffer in buffers.iter_mut() {
        if count == 0 {
            break;
        }
        buffer.raw.iov_len = buffer.len().min(count);
        count -= buffer.len();
        kept += 1;
    }
    &mut buffers[..kept]
}

/// Copies `bytes` into `buffers`, from their byte `offset` on; returns how many there was room for.
pub fn scatter(buffers: &[IoVec<'_>], offset: usize, bytes: &[u8]) -> usize {
    copy(buffers, offset, bytes.len(), |slice, at| {
        slice.copy_from(&bytes[at..at + slice.len()]);
    })
}

/// Copies from `buffers`, from their byte `offset` on, into `bytes`; returns how many there were.
pub fn gather(buffers: &[IoVec<'_>], offset: usize, bytes: &mut [u8]) -> usize {
    copy(buffers, offset, bytes.len(), |slice, at| {
        slice.copy_to(&mut bytes[at..at + slice.len()]);
    })
}

/// Calls `each` with every run of the `count` bytes from `offset` on, and where among them it begins.
fn copy<'m>(
    buffers: &[IoVec<'m>],
    mut offset: usize,
    count: usize,
    mut each: impl FnMut(GuestSlice<'m>, usize),
) -> usize {
    let mut done = 0;
    for buffer in buffers {
        if done == count {
            break;
        }
        if let Some(room) = buffer.len().checked_sub(offset)
            && let Ok(slice) = buffer.slice().subslice(offset, room.min(count - done))
        {
            done += slice.len();
            each(slice, done - slice.len());
        }
        offset = offset.saturating_sub(buffer.len());
    }
    done
}

/// readv(2): what comes at once, into `buffers`.
///
/// # Errors
/// As the system call; more than [`MAX_BUFFERS`] buffers are an error.
pub fn readv(from: BorrowedFd<'_>, buffers: &[IoVec<'_>]) -> io::Result<usize> {
    let count = libc::c_int::try_from(buffers.len()).map_err(io::Error::other)?;
    // One buffer is a usual case, and spares the kernel to fetch a list.
    if let [IoVec { raw, .. }] = buffers {
        // SAFETY: as below, with one buffer.
        return check(unsafe { libc::read(from.as_raw_fd(), raw.iov_base, raw.iov_len) });
    }
    // SAFETY: `IoVec` is an `iovec` of memory that is mapped for longer than this call, and there are
    // `count` of them. The kernel writes through the pointers only during the call; Rust has no
    // references to that memory, which the guest may change at any time anyway.
    check(unsafe { libc::readv(from.as_raw_fd(), buffers.as_ptr().cast(), count) })
}

/// writev(2): as much of `buffers` as goes at once.
///
/// # Errors
/// As the system call; more than [`MAX_BUFFERS`] buffers are an error.
pub fn writev(to: BorrowedFd<'_>, buffers: &[IoVec<'_>]) -> io::Result<usize> {
    let count = libc::c_int::try_from(buffers.len()).map_err(io::Error::other)?;
    if let [IoVec { raw, .. }] = buffers {
        // SAFETY: as below, with one buffer.
        return check(unsafe { libc::write(to.as_raw_fd(), raw.iov_base, raw.iov_len) });
    }
    // SAFETY: as for reading; the kernel only reads through the pointers.
    check(unsafe { libc::writev(to.as_raw_fd(), buffers.as_ptr().cast(), count) })
}

/// preadv(2): what comes at once from `offset` of a file, into `buffers`.
///
/// # Errors
/// As the system call; more than [`MAX_BUFFERS`] buffers are an error.
pub fn read_at(from: BorrowedFd<'_>, buffers: &[IoVec<'_>], offset: u64) -> io::Result<usize> {
    let count = libc::c_int::try_from(buffers.len()).map_err(io::Error::other)?;
    let offset = libc::off64_t::try_from(offset).map_err(io::Error::other)?;
    if let [IoVec { raw, .. }] = buffers {
        // SAFETY: as for `readv`, with one buffer.
        return check(unsafe {
            libc::pread64(from.as_raw_fd(), raw.iov_base, raw.iov_len, offset)
        });
    }
    // SAFETY: as for `readv`.
    check(unsafe { libc::preadv64(from.as_raw_fd(), buffers.as_ptr().cast(), count, offset) })
}

/// pwritev(2): as much of `buffers` as goes at once to `offset` of a file.
///
/// # Errors
/// As the system call; more than [`MAX_BUFFERS`] buffers are an error.
pub fn write_at(to: BorrowedFd<'_>, buffers: &[IoVec<'_>], offset: u64) -> io::Result<usize> {
    let count = libc::c_int::try_from(buffers.len()).map_err(io::Error::other)?;
    let offset = libc::off64_t::try_from(offset).map_err(io::Error::other)?;
    if let [IoVec { raw, .. }] = buffers {
        // SAFETY: as for `writev`, with one buffer.
        return check(unsafe { libc::pwrite64(to.as_raw_fd(), raw.iov_base, raw.iov_len, offset) });
    }
    // SAFETY: as for `writev`.
    check(unsafe { libc::pwritev64(to.as_raw_fd(), buffers.as_ptr().cast(), count, offset) })
}

/// sendmsg(2): as much of `buffers` as a socket takes. Does not wait, and a peer that has left is an error,
/// not a signal.
///
/// # Errors
/// As the system call; more than [`MAX_BUFFERS`] buffers are an error.
pub fn send(to: BorrowedFd<'_>, buffers: &[IoVec<'_>]) -> io::Result<usize> {
    let message = message(buffers);
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the message is of `buffers`, of which holds what holds for writing.
    check(unsafe { libc::sendmsg(to.as_raw_fd(), &message, flags) })
}

/// What [`receive`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Bytes.
    pub len: usize,
    /// Descriptors came along, which end a read (unix(7)): there may be more behind them.
    pub cut: bool,
}

/// recvmsg(2): what a socket has, into `buffers`. Does not wait, and takes no descriptors.
///
/// # Errors
/// As the system call; more than [`MAX_BUFFERS`] buffers are an error.
pub fn receive(from: BorrowedFd<'_>, buffers: &[IoVec<'_>]) -> io::Result<Received> {
    let mut message = message(buffers);
    // SAFETY: the message is of `buffers`, of which holds what holds for reading.
    let len = check(unsafe { libc::recvmsg(from.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) })?;
    let cut = message.msg_flags & libc::MSG_CTRUNC != 0;
    Ok(Received { len, cut })
}

/// A message of `buffers`, to nobody in particular, with nothing beside them.
fn message(buffers: &[IoVec<'_>]) -> libc::msghdr {
    // SAFETY: all of it may be zero.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = buffers.as_ptr().cast_mut().cast();
    // The type is the C library's: `size_t` or `int`.
    message.msg_iovlen = buffers.len() as _;
    message
}

fn check(transferred: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(transferred).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use vm_memory::VolatileSlice;

    use super::*;

    #[test]
    fn bytes_are_copied_wherever_the_buffers_are_split() {
        for split in 0..=10 {
            let (mut left, mut right) = (vec![0; split], vec![0; 10 - split]);
            let buffers = [&mut left, &mut right]
                .map(|bytes| IoVec::new(&VolatileSlice::from(&mut bytes[..])));
            assert_eq!(total(&buffers), 10);
            assert_eq!(scatter(&buffers, 3, &[1, 2, 3, 4]), 4);
            assert_eq!(scatter(&buffers, 9, &[5, 6]), 1, "no room for the second");
            assert_eq!(scatter(&buffers, 10, &[7]), 0);
            let mut read = [9; 8];
            assert_eq!(gather(&buffers, 2, &mut read), 8);
            assert_eq!(read, [0, 1, 2, 3, 4, 0, 0, 5]);
            assert_eq!(gather(&buffers, 8, &mut read), 2);
        }
    }

    #[test]
    fn a_list_can_be_cut_anywhere() {
        let mut bytes: Vec<Vec<u8>> = vec![vec![0, 1, 2], vec![3], vec![4, 5, 6, 7]];
        let whole: Vec<_> = bytes
            .iter_mut()
            .map(|bytes| IoVec::new(&VolatileSlice::from(&mut bytes[..])))
            .collect();
        for count in 0..10 {
            let mut list = whole.clone();
            let list = truncate(&mut list, count);
            assert_eq!(total(list), count.min(8));
            assert!(list.iter().all(|buffer| !buffer.is_empty()));
            let mut read = [9; 10];
            let len = gather(list, 0, &mut read);
            assert!(
                read[..len]
                    .iter()
                    .zip(0u8..)
                    .all(|(read, byte)| *read == byte)
            );
        }
    }

    #[test]
    fn a_pipe_carries_a_gathered_write_into_scattered_buffers() {
        let (reader, writer) = io::pipe().unwrap();
        let mut sent = [1, 2, 3, 4, 5];
        let (one, two) = sent.split_at_mut(2);
        let from = [one, two].map(|bytes| IoVec::new(&VolatileSlice::from(bytes)));
        assert_eq!(writev(writer.as_fd(), &from).unwrap(), 5);
        let mut received = [0; 8];
        let (one, two) = received.split_at_mut(4);
        let mut to = [one, two].map(|bytes| IoVec::new(&VolatileSlice::from(bytes)));
        assert_eq!(readv(reader.as_fd(), skip(&mut to, 1)).unwrap(), 5);
        assert_eq!(received, [0, 1, 2, 3, 4, 5, 0, 0]);
    }
}

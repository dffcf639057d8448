//! Random bytes straight from the host's kernel into guest memory: getrandom(2), without a copy on the
//! way that would have to be wiped.

use std::io::{self, ErrorKind};

use crate::mem::GuestSlice;

/// Fills `buffer`. Waits on a host that has only just booted and has no entropy yet, rather than hand
/// out bytes that can be guessed.
///
/// # Errors
/// The host's kernel has no getrandom, or a policy forbids it.
pub(super) fn fill(buffer: &GuestSlice<'_>) -> io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        let rest = buffer.offset(filled).map_err(io::Error::other)?;
        let guard = rest.ptr_guard_mut();
        // SAFETY: the guard keeps `rest.len()` bytes of guest memory from its pointer on mapped during the
        // call, which is as long as the kernel writes to them. Rust has no references to that memory,
        // which the guest may change at any time anyway.
        let got = unsafe { libc::getrandom(guard.as_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            // More than 256 bytes may come short when a signal arrives.
            Ok(got) => filled += got,
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    Ok(())
}

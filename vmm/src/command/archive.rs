//! The archive that is appended to the initramfs, in the "newc" format
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::collections::BTreeSet;
use std::io::Write;

use cpio::newc::{Builder, ModeFileType, trailer};

/// The init, built for the guest by `build.rs`.
pub(super) const INIT_PROGRAM: &[u8] = include_bytes!(env!("MVM_INIT"));

/// An archive that is being made.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    directories: BTreeSet<String>,
    entries: u32,
}

impl Archive {
    /// A file, in directories that are made as needed.
    pub fn file(&mut self, path: &str, mode: u32, contents: &[u8]) {
        for (at, _) in path.match_indices('/') {
            let directory = &path[..at];
            if self.directories.insert(directory.to_owned()) {
                self.entry(directory, ModeFileType::Directory, 0o755, &[]);
            }
        }
        self.entry(path, ModeFileType::Regular, mode, contents);
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        trailer(&mut self.bytes).expect("a vector takes everything");
        self.bytes
    }

    fn entry(&mut self, path: &str, kind: ModeFileType, mode: u32, contents: &[u8]) {
        self.entries += 1;
        let len = u32::try_from(contents.len())
            .expect("modules of 4 GiB are refused, and so are commands of 6 MiB");
        let mut writer = Builder::new(path)
            .ino(self.entries)
            .nlink(1)
            .mode(mode)
            .set_mode_file_type(kind)
            .write(&mut self.bytes, len);
        let written = writer
            .write_all(contents)
            .and_then(|()| writer.finish().map(drop));
        written.expect("a vector takes everything");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ELF, `e_phoff` and `e_phnum`: a program that needs another to be loaded has a PT_INTERP (3).
    #[test]
    fn the_init_is_small_and_needs_nothing() {
        let init = INIT_PROGRAM;
        assert!(init.len() < 192 << 10, "{} bytes", init.len());
        assert!(init.starts_with(b"\x7fELF"));
        let headers = usize::from(init[32]);
        let count = usize::from(init[56]);
        let kinds = (0..count).map(|number| init[headers + 56 * number]);
        assert!(count > 0 && kinds.into_iter().all(|kind| kind != 3));
    }
}

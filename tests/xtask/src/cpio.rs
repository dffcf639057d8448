//! Initramfs archives in the "newc" format, written directly: no root, no `cpio` program, and the same bytes for
//! the same input, because inode numbers count up and times are zero.
//!
//! Format: Linux `Documentation/driver-api/early-userspace/buffer-format.rst`.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// An archive that is being written.
#[derive(Debug)]
pub struct Archive<W> {
    out: W,
    inode: u32,
    directories: BTreeSet<String>,
    written: u64,
}

impl<W: Write> Archive<W> {
    /// An empty archive.
    pub fn new(out: W) -> Self {
        Self {
            out,
            inode: 0,
            directories: BTreeSet::new(),
            written: 0,
        }
    }

    /// A directory and its parents, each once.
    pub fn directory(&mut self, path: &str) -> Result<()> {
        let path = path.trim_matches('/');
        if path.is_empty() || self.directories.contains(path) {
            return Ok(());
        }
        self.parents(path)?;
        self.directories.insert(path.to_owned());
        self.entry(path, DIRECTORY | 0o755, &[])
    }

    /// A regular file made of bytes.
    pub fn bytes(&mut self, path: &str, mode: u32, data: &[u8]) -> Result<()> {
        self.parents(path)?;
        self.entry(path, REGULAR | mode & 0o7777, data)
    }

    /// A symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> Result<()> {
        self.parents(path)?;
        self.entry(path, SYMLINK | 0o777, target.as_bytes())
    }

    /// A file of the host, streamed, with its permissions.
    pub fn file(&mut self, path: &str, source: &Path) -> Result<()> {
        self.parents(path)?;
        let mut file = fs::File::open(source).with_context(|| source.display().to_string())?;
        let metadata = file.metadata()?;
        let length = metadata.len();
        self.header(
            path,
            REGULAR | metadata.permissions().mode() & 0o7777,
            length,
        )?;
        let copied = io::copy(&mut file, &mut self.out)?;
        if copied != length {
            bail!("{} changed while it was being read", source.display());
        }
        self.written += copied;
        self.pad()
    }

    /// A tree of the host: directories, files and links, in the order of their names.
    pub fn tree(&mut self, path: &str, source: &Path) -> Result<()> {
        let metadata =
            fs::symlink_metadata(source).with_context(|| source.display().to_string())?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            self.directory(path)?;
            let mut children = fs::read_dir(source)?.collect::<io::Result<Vec<_>>>()?;
            children.sort_by_key(fs::DirEntry::file_name);
            for child in children {
                let name = child.file_name();
                let name = name.to_str().context("a file name is not UTF-8")?;
                self.tree(
                    &format!("{}/{name}", path.trim_end_matches('/')),
                    &child.path(),
                )?;
            }
            Ok(())
        } else if kind.is_symlink() {
            let target = fs::read_link(source)?;
            self.symlink(
                path,
                target.to_str().context("a link's target is not UTF-8")?,
            )
        } else if kind.is_file() {
            self.file(path, source)
        } else {
            let what = if kind.is_fifo() {
                "FIFO"
            } else {
                "special file"
            };
            bail!(
                "{}: a {what} (device {}) cannot be archived",
                source.display(),
                metadata.rdev()
            );
        }
    }

    /// Ends the archive and hands back what it was written to.
    pub fn finish(mut self) -> Result<W> {
        self.entry("TRAILER!!!", 0, &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn parents(&mut self, path: &str) -> Result<()> {
        match path.trim_matches('/').rsplit_once('/') {
            Some((parent, _)) => self.directory(parent),
            None => Ok(()),
        }
    }

    fn entry(&mut self, path: &str, mode: u32, data: &[u8]) -> Result<()> {
        self.header(path, mode, data.len() as u64)?;
        self.out.write_all(data)?;
        self.written += data.len() as u64;
        self.pad()
    }

    fn header(&mut self, path: &str, mode: u32, length: u64) -> Result<()> {
        let name = path.trim_start_matches('/');
        let length = u32::try_from(length).with_context(|| format!("{name} exceeds 4 GiB"))?;
        self.inode += 1;
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        let header = format!(
            "070701{inode:08x}{mode:08x}{uid:08x}{gid:08x}{links:08x}{mtime:08x}{length:08x}{zero:08x}{zero:08x}\
             {zero:08x}{zero:08x}{name_length:08x}{zero:08x}{name}\0",
            inode = self.inode,
            uid = 0,
            gid = 0,
            mtime = 0,
            zero = 0,
            name_length = name.len() + 1,
        );
        self.out.write_all(header.as_bytes())?;
        self.written += header.len() as u64;
        self.pad()
    }

    /// Headers and contents each begin at a multiple of four.
    fn pad(&mut self) -> Result<()> {
        let missing = self.written.next_multiple_of(4) - self.written;
        let zeros = &[0; 3][..usize::try_from(missing)?];
        self.out.write_all(zeros)?;
        self.written += missing;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_what_the_kernel_expects() {
        let mut archive = Archive::new(Vec::new());
        archive.bytes("a/b", 0o644, b"hello").unwrap();
        let bytes = archive.finish().unwrap();
        // Header (110 bytes), name and its zero, padding; then the same for the file, the data and the trailer.
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(
            &bytes[14..22],
            b"000041ed",
            "a directory with mode 755 comes first"
        );
        assert_eq!(&bytes[110..112], b"a\0");
        assert_eq!(&bytes[112..118], b"070701");
        assert_eq!(
            &bytes[112 + 54..112 + 62],
            b"00000005",
            "the length of the data"
        );
        assert_eq!(&bytes[112 + 110..112 + 116], b"a/b\0\0\0"[..6].as_ref());
        assert_eq!(bytes.len() % 4, 0);
        assert!(bytes.windows(11).any(|window| window == b"TRAILER!!!\0"));
    }

    #[test]
    fn the_same_input_makes_the_same_bytes() {
        let make = || {
            let mut archive = Archive::new(Vec::new());
            archive.directory("x/y").unwrap();
            archive.symlink("x/z", "y").unwrap();
            archive.finish().unwrap()
        };
        assert_eq!(make(), make());
    }
}

//! Initramfs archives (Linux `Documentation/driver-api/early-userspace/buffer-format.rst`): no root, no `cpio`
//! program, and the same bytes for the same input, because inode numbers count up and times are zero.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};
use cpio::newc::{Builder, ModeFileType, trailer};

/// An archive that is being written.
#[derive(Debug)]
pub struct Archive<W> {
    out: W,
    inode: u32,
    directories: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    /// An empty archive.
    pub fn new(out: W) -> Self {
        Self {
            out,
            inode: 0,
            directories: BTreeSet::new(),
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
        self.entry(path, ModeFileType::Directory, 0o755, &[])
    }

    /// A regular file made of bytes.
    pub fn bytes(&mut self, path: &str, mode: u32, data: &[u8]) -> Result<()> {
        self.parents(path)?;
        self.entry(path, ModeFileType::Regular, mode & 0o7777, data)
    }

    /// A symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> Result<()> {
        self.parents(path)?;
        self.entry(path, ModeFileType::Symlink, 0o777, target.as_bytes())
    }

    /// A file of the host, streamed, with its permissions.
    pub fn file(&mut self, path: &str, source: &Path) -> Result<()> {
        self.parents(path)?;
        let mut file = fs::File::open(source).with_context(|| source.display().to_string())?;
        let metadata = file.metadata()?;
        let mode = metadata.permissions().mode() & 0o7777;
        let head = self.head(path, ModeFileType::Regular, mode);
        self.write(head, metadata.len(), &mut file)
            .with_context(|| source.display().to_string())
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
        trailer(&mut self.out)?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn parents(&mut self, path: &str) -> Result<()> {
        match path.trim_matches('/').rsplit_once('/') {
            Some((parent, _)) => self.directory(parent),
            None => Ok(()),
        }
    }

    fn entry(&mut self, path: &str, kind: ModeFileType, mode: u32, mut data: &[u8]) -> Result<()> {
        let head = self.head(path, kind, mode);
        self.write(head, data.len() as u64, &mut data)
    }

    fn head(&mut self, path: &str, kind: ModeFileType, mode: u32) -> Builder {
        self.inode += 1;
        Builder::new(path.trim_start_matches('/'))
            .ino(self.inode)
            .nlink(1)
            .mode(mode)
            .set_mode_file_type(kind)
    }

    fn write(&mut self, head: Builder, length: u64, data: &mut dyn io::Read) -> Result<()> {
        let len = u32::try_from(length).context("files of 4 GiB and more cannot be archived")?;
        let mut writer = head.write(&mut self.out, len);
        // The archive does not look after what is missing.
        if io::copy(data, &mut writer)? != length {
            bail!("it changed while it was being read");
        }
        writer.finish()?;
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

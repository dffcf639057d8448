//! Persistent memory, and its command-line form `PATH[,ro][,root]`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::disk::DiskConfig;
use super::list::{ListError, OptionList, escape};

/// A file that the guest has as memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PmemConfig {
    /// The file or block device.
    pub path: PathBuf,
    /// The guest may not write it; other VMs may read it at the same time, and share its pages.
    #[serde(default, rename = "ro", skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// It is the root file system; `root=/dev/pmemN` goes on the command line.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub root: bool,
}

/// Why a persistent memory is not one.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PmemConfigError {
    /// The list itself is malformed.
    #[error(transparent)]
    List(#[from] ListError),
    /// The path is an empty string.
    #[error("the path of the persistent memory is empty; name a file or a block device")]
    EmptyPath,
    /// There is one root file system.
    #[error("pmem {} cannot be the root file system, as another image is; leave out 'root', or the other", .0.display())]
    SecondRoot(PathBuf),
    /// Two users of one file would overwrite each other.
    #[error("pmem {} is given twice, or is a disk too; it can be used twice only if each time it is read-only", .0.display())]
    Twice(PathBuf),
}

impl PmemConfig {
    /// A writable one that is not the root file system.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            read_only: false,
            root: false,
        }
    }
}

/// Checks all of a VM's, beside its disks, of which the root file system may be one.
pub(super) fn validate_all(
    pmems: &[PmemConfig],
    disks: &[&DiskConfig],
    mut has_root: bool,
) -> Result<(), PmemConfigError> {
    for (at, pmem) in pmems.iter().enumerate() {
        if pmem.path.as_os_str().is_empty() {
            return Err(PmemConfigError::EmptyPath);
        }
        if pmem.root && has_root {
            return Err(PmemConfigError::SecondRoot(pmem.path.clone()));
        }
        has_root |= pmem.root;
        let before = pmems[..at]
            .iter()
            .map(|other| (other.path.as_path(), !other.read_only));
        let mut others = disks.iter().flat_map(|disk| disk.files()).chain(before);
        if others.any(|(path, writes)| path == pmem.path && (writes || !pmem.read_only)) {
            return Err(PmemConfigError::Twice(pmem.path.clone()));
        }
    }
    Ok(())
}

impl FromStr for PmemConfig {
    type Err = PmemConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(PmemConfigError::EmptyPath);
        }
        let (path, mut list) = OptionList::with_head(text)?;
        let pmem = Self {
            path: path.into(),
            read_only: list.switch("ro")?,
            root: list.switch("root")?,
        };
        list.finish()?;
        Ok(pmem)
    }
}

impl fmt::Display for PmemConfig {
    /// The command-line form; it reads back as the same where the path is UTF-8.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape(&self.path.to_string_lossy()))?;
        for (word, is_set) in [("ro", self.read_only), ("root", self.root)] {
            if is_set {
                write!(f, ",{word}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_form_round_trips() {
        for (text, path, read_only, root) in [
            ("img.ext4", "img.ext4", false, false),
            ("a,,b.img,ro", "a,b.img", true, false),
            ("/dev/sdb,root", "/dev/sdb", false, true),
            ("a.img,ro,root", "a.img", true, true),
        ] {
            let pmem: PmemConfig = text.parse().unwrap();
            let path = path.into();
            assert_eq!(
                pmem,
                PmemConfig {
                    path,
                    read_only,
                    root
                }
            );
            assert_eq!(pmem.to_string(), text);
        }
    }

    #[test]
    fn bad_ones_say_what_is_wrong() {
        for (text, message) in [
            (
                "",
                "the path of the persistent memory is empty; name a file or a block device",
            ),
            ("a.img,dax", "unknown key 'dax'; known keys: ro, root"),
            ("a.img,ro,ro", "'ro' is given twice"),
        ] {
            assert_eq!(text.parse::<PmemConfig>().unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn one_file_has_one_writer_and_one_of_all_is_the_root() {
        let disk: DiskConfig = "a.img".parse().unwrap();
        let check = |pmems: &[&str], disks: &[&DiskConfig], has_root| {
            let pmems: Vec<PmemConfig> = pmems.iter().map(|text| text.parse().unwrap()).collect();
            validate_all(&pmems, disks, has_root).map_err(|error| error.to_string())
        };
        check(&["a.img,ro,root", "a.img,ro"], &[], false).unwrap();
        check(&["b.img"], &[&disk], true).unwrap();
        for (pmems, disks) in [
            (&["a.img", "a.img,ro"][..], &[][..]),
            (&["a.img,ro", "a.img"], &[]),
            (&["a.img,ro"], &[&disk]),
        ] {
            let refused = check(pmems, disks, false).unwrap_err();
            assert!(
                refused.starts_with("pmem a.img is given twice"),
                "{refused}"
            );
        }
        for (pmems, has_root) in [(&["a.img,root"][..], true), (&["a,root", "b,root"], false)] {
            let refused = check(pmems, &[], has_root).unwrap_err();
            assert!(refused.contains("root file system"), "{refused}");
        }
    }
}

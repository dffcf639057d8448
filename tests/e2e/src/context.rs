//! What a test works with: guest files, a directory of its own, a deadline, and the logs of its guests.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::vm::{Mvm, Transcript};

/// What all tests share.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The binary under test.
    pub mvm: PathBuf,
    /// The directory with the guest files.
    pub guest: PathBuf,
    /// The directory with the library's examples.
    pub examples: PathBuf,
    /// Where the logs of failed tests go.
    pub out: PathBuf,
}

/// A kernel, with what it needs to come up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// Debian's bzImage as it is shipped, with the initrd that holds its drivers.
    StockBzimage,
    /// The ELF kernel inside it.
    StockElf,
    /// The small kernel, which needs no initrd.
    TinyElf,
    /// The same as a bzImage.
    TinyBzimage,
}

/// An error that says that a test cannot be run here, and why.
#[derive(Debug)]
pub struct Skip(pub String);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

/// One test's surroundings.
#[derive(Debug)]
pub struct Context {
    name: &'static str,
    setting: Setting,
    directory: TempDir,
    /// When the test has failed, whatever it is doing.
    pub deadline: Instant,
    transcripts: Mutex<Vec<Arc<Transcript>>>,
}

impl Context {
    /// The surroundings of a test that begins.
    pub fn new(name: &'static str, setting: &Setting, deadline: Instant) -> Result<Self> {
        Ok(Self {
            name,
            setting: setting.clone(),
            directory: TempDir::new().context("no directory for the test")?,
            deadline,
            transcripts: Mutex::default(),
        })
    }

    /// A path in the test's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A guest file, which tests must not change.
    pub fn guest(&self, name: &str) -> PathBuf {
        self.setting.guest.join(name)
    }

    /// One of the library's examples.
    pub fn example(&self, name: &str) -> PathBuf {
        self.setting.examples.join(name)
    }

    /// A copy of the root file system that the test may write.
    pub fn rootfs(&self) -> Result<PathBuf> {
        let path = self.path("rootfs.ext4");
        fs::copy(self.guest("rootfs"), &path).context("cannot copy the root file system")?;
        Ok(path)
    }

    /// An image of so many bytes, all of them holes.
    pub fn image(&self, name: &str, bytes: u64) -> Result<PathBuf> {
        let path = self.path(name);
        fs::File::create(&path)?.set_len(bytes)?;
        Ok(path)
    }

    /// The command with no arguments yet.
    pub fn mvm(&self) -> Mvm<'_> {
        Mvm::new(self, &self.setting.mvm)
    }

    /// The command with a kernel and what that needs. Without the kernel's file the test is skipped.
    pub fn boot(&self, kernel: Kernel) -> Result<Mvm<'_>> {
        let (file, initrd) = match kernel {
            Kernel::StockBzimage => ("vmlinuz", true),
            Kernel::StockElf => ("vmlinux", true),
            Kernel::TinyElf => ("tiny-vmlinux", false),
            Kernel::TinyBzimage => ("tiny-bzimage", false),
        };
        let path = self.guest(file);
        if !path.exists() {
            return Err(Skip(format!("no {file}: `cargo xtask guest all` makes it")).into());
        }
        let mvm = self.mvm().arg("--kernel").arg(path);
        Ok(if initrd {
            mvm.arg("--initrd").arg(self.guest("initrd"))
        } else {
            mvm
        })
    }

    /// The command with a kernel and the test's root file system, running one of its scripts.
    pub fn script(&self, kernel: Kernel, rootfs: &Path, script: &str) -> Result<Mvm<'_>> {
        Ok(self
            .boot(kernel)?
            .arg("--rootfs")
            .arg(rootfs)
            .script(script))
    }

    /// A new transcript that is kept if the test fails.
    pub fn transcript(&self, command: String) -> Arc<Transcript> {
        let transcript = Arc::new(Transcript::new(command));
        self.transcripts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(transcript.clone());
        transcript
    }

    /// Writes down what every guest of the test said, and why the test failed.
    pub fn keep_logs(&self, why: &str) {
        let path = self
            .setting
            .out
            .join(format!("{}.log", self.name.replace("::", "-")));
        let transcripts = self
            .transcripts
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let logs: Vec<_> = transcripts
            .iter()
            .map(|transcript| transcript.to_string())
            .collect();
        let text = format!("{}: {why}\n\n{}", self.name, logs.join("\n"));
        let written = fs::create_dir_all(&self.setting.out).and_then(|()| fs::write(&path, text));
        if let Err(error) = written {
            eprintln!("cannot keep the log of {}: {error}", self.name);
        }
    }
}

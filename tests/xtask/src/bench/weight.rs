//! What the binary weighs.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};

use super::stats::float;
use crate::workspace;

/// The program that was measured, and what it is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weight {
    /// Of the static binary.
    pub bytes: u64,
    /// Packages in it, its own among them.
    pub crates: usize,
}

impl Weight {
    /// Weighs a binary of mvm's.
    pub fn of(mvm: &Path) -> Result<Self> {
        let tree = workspace::cargo_command(&["tree", "--package", "mvm", "--edges", "normal"])
            .args(["--prefix", "none", "--no-dedupe"])
            .output()?;
        ensure!(tree.status.success(), "cargo tree: {}", tree.status);
        Ok(Self {
            bytes: fs::metadata(mvm)?.len(),
            crates: packages(&String::from_utf8_lossy(&tree.stdout)),
        })
    }
}

/// How many packages cargo lists, one a line: `NAME vVERSION`, and more where it has been there before.
fn packages(tree: &str) -> usize {
    let package = |line: &str| {
        let mut words = line.split_whitespace();
        Some((words.next()?.to_owned(), words.next()?.to_owned()))
    };
    tree.lines()
        .filter_map(package)
        .collect::<BTreeSet<_>>()
        .len()
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabytes = float(self.bytes) / 1e6;
        write!(
            f,
            "binary: {megabytes:.2} MB, static, of {} crates",
            self.crates
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_counts_once_and_each_version_of_it_does() {
        let tree = "mvm v0.1.0 (/x/cli)\nlog v0.4.1\nvm-memory v0.18.0\nvm-memory v0.17.1\nlog v0.4.1 (*)\n\n";
        assert_eq!(packages(tree), 4);
    }
}

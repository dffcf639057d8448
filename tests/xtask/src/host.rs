//! What this machine's KVM is good for, as `mvm doctor` tells it.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The kinds of host that mvm meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// Its KVM runs stock kernels.
    Hardware,
    /// Its KVM interprets kernel code, which stock kernels do not survive.
    Software,
    /// There is no KVM, or it may not be opened.
    None,
}

impl Host {
    /// Asks the binary.
    pub fn ask(mvm: &Path) -> Result<Self> {
        let output = Command::new(mvm)
            .args(["doctor", "--json"])
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("cannot run {}", mvm.display()))?;
        // Its status says whether all is well; what matters here is what it found.
        Self::parse(&output.stdout)
            .with_context(|| format!("`{} doctor --json` did not say", mvm.display()))
    }

    fn parse(json: &[u8]) -> Result<Self> {
        let answer: serde_json::Value = serde_json::from_slice(json)?;
        match answer["host"]["kind"].as_str() {
            Some("hardware") => Ok(Self::Hardware),
            Some("software") => Ok(Self::Software),
            Some("none") => Ok(Self::None),
            other => bail!("what kind of host this is, but {other:?}"),
        }
    }

    /// Why guests are booted where they are, in a sentence.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Hardware => {
                "This machine's KVM runs stock kernels, so the guest boots right here."
            }
            Self::Software => {
                "This machine's KVM interprets kernel code and cannot run a stock kernel, so the guest boots in the \
                 lab, a host emulated in software."
            }
            Self::None => {
                "This machine has no KVM that can be opened, so the guest boots in the lab, a host emulated in software."
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_is_found_in_the_answer() {
        let host = Host::parse(
            br#"{"version": "1", "host": {"kind": "software", "why": "x"}, "checks": []}"#,
        );
        assert_eq!(host.unwrap(), Host::Software);
        Host::parse(b"{}").unwrap_err();
        Host::parse(b"mvm: panic").unwrap_err();
    }
}

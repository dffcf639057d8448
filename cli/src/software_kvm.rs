//! Linux on a KVM that interprets guest kernels: refused at once, where it would die after seconds.
//!
//! Only a kernel that was made for such a KVM gets through there, and none says of itself that it was:
//! the user does, with `--software-kvm`.

use std::path::Path;

use thiserror::Error;
use vmm::probe::{HostKind, is_linux, probe_host};

use crate::host::System;

/// A kernel that this host's KVM cannot run.
#[derive(Debug, Error)]
#[error(
    "this host's KVM ({module}) interprets guest kernels and cannot run a stock Linux; boot it on a host whose KVM uses hardware virtualization, see 'mvm doctor'; a kernel that is made for such a KVM boots with --software-kvm"
)]
pub struct Unfit {
    module: &'static str,
}

/// The module of such a KVM. Whether it is one is then found out by running a tiny guest.
const SUSPECT: &str = "kvm_pvm";

/// Refuses a Linux kernel here; anything else may try.
pub fn check(kernel: &Path) -> Result<(), Unfit> {
    let suspect = System::this().has(&format!("/sys/module/{SUSPECT}"));
    judge(suspect, || is_linux(kernel), || probe_host().ok())
}

/// Asks what costs the least first: a host above suspicion costs next to nothing.
fn judge(
    suspect: bool,
    is_linux: impl FnOnce() -> bool,
    probe: impl FnOnce() -> Option<HostKind>,
) -> Result<(), Unfit> {
    if suspect && is_linux() && probe() == Some(HostKind::Software) {
        return Err(Unfit { module: SUSPECT });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_is_refused_where_it_is_sure_to_die() {
        let software = || Some(HostKind::Software);
        let line = judge(true, || true, software).unwrap_err().to_string();
        assert!(
            line.contains("(kvm_pvm) interprets guest kernels"),
            "{line}"
        );
        assert!(line.contains("mvm doctor") && line.contains("--software-kvm"));
        judge(true, || false, || unreachable!("a tiny guest runs")).unwrap();
        judge(true, || true, || Some(HostKind::Hardware)).unwrap();
        judge(true, || true, || None).unwrap();
        judge(false, || unreachable!("not even asked"), software).unwrap();
    }
}

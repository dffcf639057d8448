//! `mvm doctor`: what this host can do for a VM, and the remedy where it cannot.
//!
//! Each room asks one question and answers in [`Check`]s: [`kvm`] of KVM itself, [`resources`] of what a
//! VM may use besides, [`programs`] of what testing needs. [`render`] shows them. A check whose subject
//! is out of reach because an earlier one failed is left out.

mod kvm;
mod programs;
mod render;
mod resources;

use std::io;

use serde::Serialize;
use vmm::probe::HostKind;

use crate::args::DoctorArgs;
use crate::host::{Host, System};
use crate::status;

/// The result of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    Warn,
    Fail,
}

/// One question and its answer.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Check {
    /// Stable, for scripts.
    name: &'static str,
    status: Status,
    /// What was found, in one line.
    detail: String,
    /// What to do about it, where it is not well.
    remedy: Option<String>,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Ok,
            detail: detail.into(),
            remedy: None,
        }
    }

    fn warn(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Warn,
            detail: detail.into(),
            remedy: Some(remedy.into()),
        }
    }

    fn fail(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Fail,
            detail: detail.into(),
            remedy: Some(remedy.into()),
        }
    }
}

/// What was found out; the JSON output is this, field by field.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    host: HostReport,
    checks: Vec<Check>,
}

/// The host as a whole.
#[derive(Debug, Serialize)]
struct HostReport {
    #[serde(serialize_with = "as_text")]
    kind: HostKind,
    /// Whether stock kernels boot.
    stock_kernels: bool,
    /// The module that implements KVM, where one is loaded.
    kvm_module: Option<&'static str>,
    cpu: Option<String>,
    kernel: Option<String>,
    /// How many times longer guest kernel code takes than the same code here.
    guest_slowdown: Option<f64>,
    /// What every stock kernel executes and this KVM cannot.
    missing_instructions: Vec<&'static str>,
}

fn as_text<S: serde::Serializer>(kind: &HostKind, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(kind)
}

/// Looks at everything and prints it; fails where stock kernels do not boot.
pub fn run(args: &DoctorArgs) -> io::Result<u8> {
    let report = examine(&System::this());
    if args.json {
        render::json(&report)?;
    } else {
        render::human(&report)?;
    }
    Ok(if report.host.stock_kernels {
        0
    } else {
        status::DOCTOR_UNFIT
    })
}

fn examine(system: &System) -> Report {
    let host = Host::of(system);
    let findings = kvm::examine(system, &host);
    let unusable = findings
        .checks
        .iter()
        .any(|check| check.status == Status::Fail);
    let mut checks = findings.checks;
    checks.extend(resources::examine(system));
    checks.extend(programs::examine());
    let slowdown = findings.evidence.as_ref().map(|found| found.slowdown);
    Report {
        version: env!("CARGO_PKG_VERSION"),
        host: HostReport {
            kind: findings.kind,
            stock_kernels: findings.kind == HostKind::Hardware && !unusable,
            kvm_module: host.kvm_module,
            cpu: host.cpu,
            kernel: host.kernel,
            // JSON has no infinity; a guest that did not end has no ratio.
            guest_slowdown: slowdown.filter(|ratio| ratio.is_finite()),
            missing_instructions: findings
                .evidence
                .iter()
                .flat_map(vmm::probe::Evidence::failed)
                .collect(),
        },
        checks,
    }
}

//! Is KVM there, may it be opened, is it complete, and does it run guest kernels on the processor?

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use vmm::probe::{Evidence, HostKind, KVM_DEVICE, Probe, ProbeError};

use super::Check;
use crate::host::{Host, System};

/// What was found, and what follows from it.
pub(super) struct Findings {
    pub(super) kind: HostKind,
    pub(super) evidence: Option<Evidence>,
    pub(super) checks: Vec<Check>,
}

/// Asks from the outside in, and stops where there is nothing further to ask.
pub(super) fn examine(system: &System, host: &Host) -> Findings {
    let mut findings = Findings {
        kind: HostKind::None,
        evidence: None,
        checks: vec![device(system, host)],
    };
    let probe = match Probe::open() {
        Ok(probe) => probe,
        Err(error) => {
            findings.checks.extend(access_refused(system, host, &error));
            return findings;
        }
    };
    findings.checks.push(Check::ok(
        "kvm-access",
        "may be opened for reading and writing",
    ));
    findings.checks.push(api(&probe));
    findings.checks.push(capabilities(&probe));
    match probe.run() {
        Ok(evidence) => {
            findings.kind = evidence.kind();
            findings.checks.push(kind(&evidence, host));
            findings.evidence = Some(evidence);
        }
        Err(error) => findings.checks.push(Check::fail(
            "kvm-kind",
            format!("no guest can be run: {}", crate::chain(&error)),
            "look for the cause in the kernel's log: sudo dmesg | grep -i kvm",
        )),
    }
    findings
}

fn device(system: &System, host: &Host) -> Check {
    const NAME: &str = "kvm-device";
    match fs::metadata(system.path(KVM_DEVICE)) {
        Ok(found) => Check::ok(
            NAME,
            format!(
                "{KVM_DEVICE}, mode {:04o}, {}:{}",
                found.permissions().mode() & 0o7777,
                owner_name(system, "/etc/passwd", found.uid()),
                owner_name(system, "/etc/group", found.gid()),
            ),
        ),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let (detail, remedy) = match host.kvm_module {
                // The module is there, its device is not: a container or a bare /dev.
                Some(module) => (
                    format!("{KVM_DEVICE} is missing, though {module} is loaded"),
                    format!(
                        "in a container pass --device {KVM_DEVICE}; else: sudo mknod {KVM_DEVICE} c 10 232"
                    ),
                ),
                None => (
                    format!("{KVM_DEVICE} is missing: {}", why_no_module(host)),
                    host.remedy(),
                ),
            };
            Check::fail(NAME, detail, remedy)
        }
        Err(error) => Check::fail(
            NAME,
            format!("{KVM_DEVICE} cannot be looked at: {error}"),
            "check the permissions of /dev",
        ),
    }
}

fn why_no_module(host: &Host) -> String {
    match (host.wanted_module, host.provider) {
        (Some(module), _) => format!("the module {module} is not loaded"),
        (None, Some(_)) => {
            "this is a virtual machine whose processor does not virtualise".to_owned()
        }
        (None, None) => "the processor does not virtualise, or the firmware hides it".to_owned(),
    }
}

/// The name of a numeric owner in a file of `name:x:id:…` lines, or the number.
fn owner_name(system: &System, file: &str, id: u32) -> String {
    let text = system.text(file).unwrap_or_default();
    let number = id.to_string();
    let name = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == number).then(|| name.to_owned())
    });
    name.unwrap_or(number)
}

/// A missing device has been reported already.
fn access_refused(system: &System, host: &Host, error: &ProbeError) -> Option<Check> {
    let ProbeError::Open(cause) = error else {
        return None;
    };
    if cause.kind() == ErrorKind::NotFound {
        return None;
    }
    let detail = format!("cannot be opened: {cause}");
    Some(Check::fail(
        "kvm-access",
        detail,
        access_remedy(system, host, cause),
    ))
}

fn access_remedy(system: &System, host: &Host, cause: &io::Error) -> String {
    if cause.kind() != ErrorKind::PermissionDenied {
        return host.remedy();
    }
    let group = fs::metadata(system.path(KVM_DEVICE))
        .ok()
        .filter(|found| found.permissions().mode() & 0o060 == 0o060 && found.gid() != 0)
        .map(|found| owner_name(system, "/etc/group", found.gid()));
    match group {
        Some(group) => {
            format!("join its group and log in again: sudo usermod -aG {group} $USER")
        }
        None => format!(
            "give it to a group: sudo chgrp kvm {KVM_DEVICE} && sudo chmod 660 {KVM_DEVICE}, \
             then sudo usermod -aG kvm $USER and log in again"
        ),
    }
}

fn api(probe: &Probe) -> Check {
    let (version, known) = probe.api_version();
    if known {
        Check::ok("kvm-api", format!("version {version}"))
    } else {
        Check::fail(
            "kvm-api",
            format!("version {version} is not the stable one, 12"),
            "use a kernel of this century",
        )
    }
}

fn capabilities(probe: &Probe) -> Check {
    const NAME: &str = "kvm-capabilities";
    let all = probe.capabilities();
    let missing = |required| {
        let absent = all
            .iter()
            .filter(move |it| it.required == required && !it.present);
        absent.map(|it| it.name).collect::<Vec<_>>().join(", ")
    };
    let (needed, liked) = (missing(true), missing(false));
    if !needed.is_empty() {
        Check::fail(
            NAME,
            format!("missing {needed}"),
            "use Linux 5.10 or later with CONFIG_KVM complete",
        )
    } else if !liked.is_empty() {
        Check::warn(
            NAME,
            format!("without {liked}"),
            "use a later kernel; VMs run, but slower or with less",
        )
    } else {
        let count = all.len();
        let vcpus = probe.max_vcpus();
        Check::ok(NAME, format!("all {count}; up to {vcpus} vCPUs"))
    }
}

fn kind(evidence: &Evidence, host: &Host) -> Check {
    const NAME: &str = "kvm-kind";
    let by = host
        .kvm_module
        .map_or_else(String::new, |module| format!(" ({module})"));
    if evidence.kind() == HostKind::Hardware {
        return Check::ok(
            NAME,
            format!("hardware{by}: guest kernel code runs on the processor"),
        );
    }
    let failed: Vec<_> = evidence.failed().collect();
    let gaps = if failed.is_empty() {
        String::new()
    } else {
        format!(" and {} cannot be run", failed.join(", "))
    };
    let slowdown = if evidence.slowdown.is_finite() {
        format!("{:.0} times slower", evidence.slowdown)
    } else {
        "without end".to_owned()
    };
    Check::fail(
        NAME,
        format!("software{by}: guest kernel code is interpreted, {slowdown}{gaps}"),
        format!("boot stock kernels elsewhere, or {}", host.remedy()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;
    use crate::host::Provider;
    use crate::host::tests::system;
    use vmm::probe::Outcome;

    #[test]
    fn a_missing_device_is_explained_by_what_is_known() {
        let (_dir, system) = system(&[]);
        let check = |host: &Host| {
            let check = device(&system, host);
            assert_eq!(check.status, Status::Fail);
            (check.detail, check.remedy.unwrap())
        };
        let (detail, remedy) = check(&Host {
            wanted_module: Some("kvm_amd"),
            ..Host::default()
        });
        assert_eq!(
            detail,
            "/dev/kvm is missing: the module kvm_amd is not loaded"
        );
        assert!(remedy.contains("modprobe kvm_amd"));
        let (detail, remedy) = check(&Host {
            provider: Some(Provider::Aws),
            ..Host::default()
        });
        assert!(detail.contains("virtual machine"), "{detail}");
        assert!(remedy.contains(".metal"), "{remedy}");
        let (detail, remedy) = check(&Host {
            kvm_module: Some("kvm_intel"),
            ..Host::default()
        });
        assert!(detail.contains("kvm_intel is loaded"), "{detail}");
        assert!(remedy.contains("--device /dev/kvm"), "{remedy}");
    }

    #[test]
    fn owners_have_names_where_the_system_knows_them() {
        let (_dir, system) = system(&[("/etc/group", "root:x:0:\nkvm:x:104:me\n")]);
        assert_eq!(owner_name(&system, "/etc/group", 104), "kvm");
        assert_eq!(owner_name(&system, "/etc/group", 105), "105");
        assert_eq!(owner_name(&system, "/etc/passwd", 0), "0");
    }

    #[test]
    fn no_permission_names_the_group_that_has_it() {
        let (_dir, system) = system(&[("/dev/kvm", "")]);
        let denied = io::Error::from(ErrorKind::PermissionDenied);
        // The test's file has no group access, as a device that only root may open.
        fs::set_permissions(system.path(KVM_DEVICE), fs::Permissions::from_mode(0o600)).unwrap();
        let remedy = access_remedy(&system, &Host::default(), &denied);
        assert!(remedy.contains("chgrp kvm /dev/kvm"), "{remedy}");
        let other = io::Error::from(ErrorKind::Unsupported);
        assert!(access_remedy(&system, &Host::default(), &other).contains("firmware"));
    }

    #[test]
    fn the_kind_is_said_with_its_evidence() {
        let mut evidence = Evidence {
            instructions: vec![("popcnt", Outcome::Ran), ("int3", Outcome::Ran)],
            slowdown: 1.1,
        };
        let host = Host {
            kvm_module: Some("kvm_pvm"),
            ..Host::default()
        };
        let check = kind(&evidence, &host);
        assert_eq!(check.status, Status::Ok);
        evidence.instructions[1].1 = Outcome::EmulationFailed;
        evidence.slowdown = 1234.5;
        let check = kind(&evidence, &host);
        assert_eq!(check.status, Status::Fail);
        assert_eq!(
            check.detail,
            "software (kvm_pvm): guest kernel code is interpreted, 1234 times slower and int3 cannot be run"
        );
    }
}

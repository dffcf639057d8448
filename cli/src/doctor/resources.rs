//! What a VM may use besides KVM: huge pages and tap devices. Their lack is never fatal.

use std::fs::OpenOptions;
use std::io::ErrorKind;

use super::Check;
use crate::host::System;

const TUN: &str = "/dev/net/tun";

pub(super) fn examine(system: &System) -> Vec<Check> {
    let mut checks = vec![huge_pages(system)];
    checks.extend(transparent_huge_pages(system));
    checks.push(tun(system));
    checks
}

/// Reserved huge pages: an offer, so having none is no fault.
fn huge_pages(system: &System) -> Check {
    let size = |label: &str, kib: u32| {
        let dir = format!("/sys/kernel/mm/hugepages/hugepages-{kib}kB");
        let total = system.text(&format!("{dir}/nr_hugepages"))?;
        let free = system.text(&format!("{dir}/free_hugepages"))?;
        Some(match total.as_str() {
            "0" => format!("{label} none reserved"),
            _ => format!("{label} {free} of {total} free"),
        })
    };
    let sizes: Vec<_> = [size("2M:", 2 << 10), size("1G:", 1 << 20)]
        .into_iter()
        .flatten()
        .collect();
    let detail = match sizes.is_empty() {
        true => "not supported by this kernel".to_owned(),
        false => sizes.join(", "),
    };
    Check::ok("hugepages", detail)
}

/// Guest memory asks for them where a boot touches all of it; `always` and `madvise` grant it.
fn transparent_huge_pages(system: &System) -> Option<Check> {
    const NAME: &str = "transparent-hugepages";
    const FILE: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
    let text = system.text(FILE)?;
    // The setting in force is the one in brackets.
    let (_, rest) = text.split_once('[')?;
    let (setting, _) = rest.split_once(']')?;
    Some(match setting {
        "never" => Check::warn(
            NAME,
            "never: guest memory costs more page faults and TLB misses",
            format!("echo madvise | sudo tee {FILE}"),
        ),
        _ => Check::ok(NAME, setting),
    })
}

fn tun(system: &System) -> Check {
    const NAME: &str = "tun";
    let open = OpenOptions::new()
        .read(true)
        .write(true)
        .open(system.path(TUN));
    match open {
        Ok(_) => Check::ok(NAME, format!("{TUN} may be opened")),
        Err(error) if error.kind() == ErrorKind::NotFound => Check::warn(
            NAME,
            format!("{TUN} is missing: no tap devices"),
            "sudo modprobe tun; in a container pass --device /dev/net/tun",
        ),
        // The node is there without the driver.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Check::warn(
            NAME,
            format!("{TUN} cannot be opened: {error}"),
            format!("sudo chmod 666 {TUN}, as distributions have it"),
        ),
        Err(error) => Check::warn(
            NAME,
            format!("{TUN} cannot be opened: {error}"),
            "sudo modprobe tun",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;
    use crate::host::tests::system;

    #[test]
    fn huge_pages_are_counted_by_size() {
        let (_dir, system) = system(&[
            (
                "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
                "64\n",
            ),
            (
                "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages",
                "60\n",
            ),
            (
                "/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages",
                "0\n",
            ),
            (
                "/sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages",
                "0\n",
            ),
        ]);
        let check = huge_pages(&system);
        assert_eq!(check.detail, "2M: 60 of 64 free, 1G: none reserved");
        let (_dir, bare) = crate::host::tests::system(&[]);
        assert_eq!(huge_pages(&bare).detail, "not supported by this kernel");
    }

    #[test]
    fn the_setting_in_brackets_is_in_force() {
        let check = |text| {
            let file = "/sys/kernel/mm/transparent_hugepage/enabled";
            let (_dir, system) = system(&[(file, text)]);
            transparent_huge_pages(&system)
        };
        assert_eq!(check("always [madvise] never\n").unwrap().detail, "madvise");
        assert_eq!(
            check("always madvise [never]\n").unwrap().status,
            Status::Warn
        );
        assert_eq!(check("strange"), None);
    }

    #[test]
    fn a_missing_tun_is_a_warning() {
        let (_dir, system) = system(&[]);
        assert_eq!(tun(&system).status, Status::Warn);
    }
}

//! The programs that mvm calls, that this project's tests and guest recipes call, and the Debian packages
//! they are in.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Check;

const NAME: &str = "lab-programs";

/// Program and package.
const PROGRAMS: [(&str, &str); 4] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("mkfs.ext4", "e2fsprogs"),
    ("depmod", "kmod"),
    ("xz", "xz-utils"),
];

pub(super) fn examine() -> Vec<Check> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<_> = env::split_paths(&path).collect();
    let passt = dirs
        .iter()
        .map(|dir| dir.join("passt"))
        .find(|program| is_executable(program));
    // Where Debian keeps mkfs and depmod, and which users' PATH leaves out.
    dirs.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    vec![
        user_network(passt.as_deref().map(|program| (program, help_of(program)))),
        judge(&|program| dirs.iter().any(|dir| is_executable(&dir.join(program)))),
    ]
}

/// passt, which `--net user` runs, and what it says of its options.
fn user_network(passt: Option<(&Path, String)>) -> Check {
    const NAME: &str = "passt";
    /// An option of August 2024. Before that month's versions, whoever sends to a published UDP port
    /// from the host's loopback is answered at the gateway's address, somewhere else.
    const ANSWERS_LOOPBACK: &str = "--map-host-loopback";
    let Some((program, help)) = passt else {
        return Check::warn(
            NAME,
            "missing: no user-mode networking",
            "sudo apt-get install passt, for --net user",
        );
    };
    let program = program.display();
    if help.contains(ANSWERS_LOOPBACK) {
        return Check::ok(NAME, program.to_string());
    }
    Check::warn(
        NAME,
        format!("{program} is of before August 2024: published UDP ports do not answer 127.0.0.1"),
        "reach them by another address of this host, or install a newer passt (Debian 13 has one)",
    )
}

/// What `program --help` prints, on whichever stream.
fn help_of(program: &Path) -> String {
    let output = Command::new(program)
        .arg("--help")
        .stdin(Stdio::null())
        .output();
    output.map_or(String::new(), |output| {
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    })
}

fn judge(has: &dyn Fn(&str) -> bool) -> Check {
    let missing: Vec<_> = PROGRAMS
        .iter()
        .filter(|(program, _)| !has(program))
        .collect();
    if missing.is_empty() {
        return Check::ok(NAME, format!("all {} present", PROGRAMS.len()));
    }
    let column = |pick: fn(&(&'static str, &'static str)) -> &'static str| {
        missing.iter().map(|it| pick(it)).collect::<Vec<_>>()
    };
    Check::warn(
        NAME,
        format!("missing {}", column(|it| it.0).join(", ")),
        format!(
            "only testing mvm needs them: sudo apt-get install --no-install-recommends {}",
            column(|it| it.1).join(" ")
        ),
    )
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

    #[test]
    fn passt_is_missing_old_or_fine() {
        let missing = user_network(None);
        assert_eq!(missing.status, Status::Warn);
        assert!(missing.remedy.unwrap().contains("apt-get install passt"));
        let found = |help: &str| user_network(Some((Path::new("/usr/bin/passt"), help.to_owned())));
        let old = found("  --no-map-gw  Don't map gateway address to host");
        assert_eq!(old.status, Status::Warn);
        assert!(old.detail.contains("UDP"), "{}", old.detail);
        let new = found("  --map-host-loopback ADDR  Translate ADDR to refer to host");
        assert_eq!(new, Check::ok("passt", "/usr/bin/passt".to_owned()));
    }

    #[test]
    fn what_is_missing_is_named_with_its_package() {
        assert_eq!(judge(&|_| true).status, Status::Ok);
        let check = judge(&|program| program != "mkfs.ext4" && program != "depmod");
        assert_eq!(check.status, Status::Warn);
        assert_eq!(check.detail, "missing mkfs.ext4, depmod");
        let remedy = check.remedy.unwrap();
        assert!(remedy.ends_with("e2fsprogs kmod"), "{remedy}");
    }
}

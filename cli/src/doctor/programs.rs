//! The programs that this project's tests and guest recipes call, and the Debian packages they are in.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::Check;

const NAME: &str = "lab-programs";

/// Program and package.
const PROGRAMS: [(&str, &str); 4] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("mkfs.ext4", "e2fsprogs"),
    ("depmod", "kmod"),
    ("xz", "xz-utils"),
];

pub(super) fn examine() -> Check {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<_> = env::split_paths(&path).collect();
    // Where Debian keeps mkfs and depmod, and which users' PATH leaves out.
    dirs.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    judge(&|program| dirs.iter().any(|dir| is_executable(&dir.join(program))))
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
    fn what_is_missing_is_named_with_its_package() {
        assert_eq!(judge(&|_| true).status, Status::Ok);
        let check = judge(&|program| program != "mkfs.ext4" && program != "depmod");
        assert_eq!(check.status, Status::Warn);
        assert_eq!(check.detail, "missing mkfs.ext4, depmod");
        let remedy = check.remedy.unwrap();
        assert!(remedy.ends_with("e2fsprogs kmod"), "{remedy}");
    }
}

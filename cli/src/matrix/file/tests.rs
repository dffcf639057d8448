//! Test files: what they make, and where their mistakes are found.

use super::*;
use vmm::config::DiskConfig;

const FILE: &str = r#"
[settings]
mem = "512M"
expect = "login: "

[matrix]
kernel = ["/boot/vmlinuz-6.1", "new/vmlinuz-6.12"]
cpus = [1, 4]

[[case]]
name = "disk"
rootfs = "img.ext4,ro"

[[case]]
name = "command"
command = ["uname", "-a"]
"#;

fn names(text: &str) -> Vec<String> {
    let cases = parse(text).unwrap();
    cases.into_iter().map(|case| case.name).collect()
}

#[test]
fn every_case_meets_every_combination() {
    assert_eq!(
        names(FILE),
        [
            "disk kernel=vmlinuz-6.1 cpus=1",
            "disk kernel=vmlinuz-6.1 cpus=4",
            "disk kernel=vmlinuz-6.12 cpus=1",
            "disk kernel=vmlinuz-6.12 cpus=4",
            "command kernel=vmlinuz-6.1 cpus=1",
            "command kernel=vmlinuz-6.1 cpus=4",
            "command kernel=vmlinuz-6.12 cpus=1",
            "command kernel=vmlinuz-6.12 cpus=4",
        ]
    );
    let cases = parse(FILE).unwrap();
    let last = &cases[3].settings;
    assert_eq!(last.kernel.as_deref(), Some(Path::new("new/vmlinuz-6.12")));
    assert_eq!(last.cpus, Some(4));
    assert_eq!(last.expect.len(), 1);
    let disk = DiskConfig {
        read_only: true,
        ..DiskConfig::new("img.ext4")
    };
    assert_eq!(last.rootfs, Some(disk));
    assert_eq!(cases[7].settings.words, ["uname", "-a"]);
}

#[test]
fn the_example_is_one() {
    let text = include_str!("../../../../resources/ci/boots.toml");
    assert_eq!(names(text).len(), 8);
}

#[test]
fn names_tell_apart_what_differs() {
    assert_eq!(names("[settings]\nkernel = 'k'"), ["boot"]);
    assert_eq!(
        names("[matrix]\nkernel = ['a/k', 'b/k']"),
        ["kernel=a/k", "kernel=b/k"]
    );
    assert_eq!(
        names("[matrix]\ncommand = [['true'], ['sh', '-c', 'a/b']]\nno-acpi = [true]"),
        [
            "command=true no-acpi=true",
            "command=sh -c a/b no-acpi=true"
        ]
    );
}

#[test]
fn mistakes_are_found_by_line() {
    for (text, line, part) in [
        ("[settings]\n\nkernal = 'x'", 3, "unknown field `kernal`"),
        ("[settings]\nmem = '1X'", 2, "'1X' is not a size"),
        ("[matrix]\ncpus = 1", 2, "expected a sequence"),
        ("[matrix]\ncpus = [1,\n 300]", 3, "cpus: "),
        ("[matrix]\nmem = ['1X']", 2, "mem: '1X' is not a size"),
        ("\n[matrix]\nkernal = ['x']", 3, "unknown field `kernal`"),
        ("[matrix]\ncpus = []", 2, "'cpus' has no value"),
        ("[matrices]", 1, "unknown field `matrices`"),
        (
            "[settings]\ncpus = 1\n[matrix]\ncpus = [1]",
            4,
            "in [settings] and in [matrix]",
        ),
        (
            "[settings]\nconsole = 'pty'",
            1,
            "'console' has no place here",
        ),
        (
            "[matrix]\nreport = ['a.xml']",
            2,
            "'report' has no place here",
        ),
        ("\n[[case]]\ncpus = 1", 2, "needs a name"),
        ("[[case]]\nname = ' '", 1, "needs a name"),
        (
            "[[case]]\nname = 'a'\n[[case]]\nname = 'b'\nmem = 'x'",
            3,
            "case 'b': 'x' is not a size",
        ),
        (
            "[matrix]\ncpus = [1]\n[[case]]\nname = 'a'\ncpus = 2",
            3,
            "case 'a': 'cpus' is in the case and in [matrix]",
        ),
        (
            "[[case]]\nname = 'a'\n[[case]]\nname = 'a'",
            3,
            "there are two cases 'a'",
        ),
        ("[matrix", 1, ""),
    ] {
        let (at, cause) = parse(text).unwrap_err();
        let found = text[..at].matches('\n').count() + 1;
        assert_eq!(found, line, "{text}: {cause}");
        assert!(cause.contains(part), "{text}: {cause}");
        assert!(!cause.contains('\n'), "{cause:?}");
    }
}

#[test]
fn a_matrix_that_explodes_is_refused() {
    let values: Vec<_> = (1..=100).map(|value| value.to_string()).collect();
    let values = values.join(", ");
    let text = format!("[matrix]\ncpus = [{values}]\nio-threads = [{values}]\nmem = ['1G', '2G']");
    let (_, cause) = parse(&text).unwrap_err();
    assert!(cause.contains("more than 10000 cases"), "{cause}");
}

//! Reads a `--config` file: TOML, or JSON where it opens with a brace.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::Settings;

/// Why a configuration file could not be used.
#[derive(Debug, Error)]
pub enum FileError {
    /// It could not be read.
    #[error("the configuration file {path} cannot be read: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not a configuration.
    #[error("the configuration file {path}, line {line}: {cause}; see 'mvm --help' for --config")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where in it, from 1.
        line: usize,
        /// What is wrong there.
        cause: String,
    },
}

/// Reads the settings, with relative paths taken from the file's own directory.
pub fn read(path: &Path) -> Result<Settings, FileError> {
    let text = fs::read_to_string(path).map_err(|source| FileError::Read {
        path: path.to_owned(),
        source,
    })?;
    let mut settings = parse(&text).map_err(|(line, cause)| FileError::Syntax {
        path: path.to_owned(),
        line,
        cause,
    })?;
    settings.relative_to(path.parent().unwrap_or(Path::new("")));
    Ok(settings)
}

/// The settings, or the line of the mistake and what it is.
fn parse(text: &str) -> Result<Settings, (usize, String)> {
    // No TOML document can begin with a brace, and every JSON object does.
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(text).map_err(|error| {
            let cause = error.to_string();
            let place = format!(" at line {} column {}", error.line(), error.column());
            let cause = cause.strip_suffix(&place).unwrap_or(&cause);
            (error.line(), cause.to_owned())
        });
    }
    toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        let before = text.get(..start).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        (line, error.message().replace('\n', ", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{KernelErrors, LogLevel};
    use vmm::config::{BalloonConfig, DiskConfig, MemorySize, RngConfig, VsockConfig};
    use vmm::console::ConsoleEnd;

    const TOML: &str = r#"
kernel = "vmlinux"
append = "quiet"
cpus = 2
mem = "1G"
no-acpi = false
rootfs = "img.ext4,ro"
disk = ["a.img", { path = "b.img", serial = "b", bps = "10M", iops = 100 }]
rng = "bps=64K"
balloon = "size=64M,deflate-on-oom=off"
vsock = "cid=7,uds=v"
share = [".,tag=src,ro", { path = "b", tag = "t" }]
net = ["tap=t0,mtu=9000,queues=2", { fd = 5, mac = "02:00:00:00:00:01", bps = 4096, burst = 8192 }]
console = "file=boot.log"
api = "vm.sock"
timeout = "90s"
expect = 'login: $'
report = ["out.xml", "out.json"]
fail-on = ["a", "b"]
kernel-errors = "fatal"
log-level = "debug"
log-file = "mvm.log"
"#;

    const JSON: &str = r#"
{ "kernel": "vmlinux", "append": "quiet", "cpus": 2, "mem": "1G", "no-acpi": false,
  "rootfs": { "path": "img.ext4", "ro": true },
  "disk": ["a.img", "b.img,serial=b,bps=10M,iops=100"],
  "rng": { "bps": 65536 },
  "balloon": { "size": "64M", "deflate-on-oom": false },
  "share": [{ "path": ".", "tag": "src", "ro": true }, "b,tag=t"],
  "vsock": { "cid": 7, "uds": "v" },
  "net": [{ "tap": "t0", "mtu": 9000, "queues": 2 }, "fd=5,mac=02:00:00:00:00:01,bps=4K,burst=8K"],
  "expect": ["login: $"], "fail-on": ["a", "b"], "kernel-errors": "fatal",
  "report": ["out.xml", "out.json"],
  "console": "file=boot.log", "api": "vm.sock", "timeout": "90s", "log-level": "debug", "log-file": "mvm.log" }"#;

    fn expected() -> Settings {
        let disk = |path: &str, read_only, serial: Option<&str>| DiskConfig {
            read_only,
            serial: serial.map(str::to_owned),
            ..DiskConfig::new(path)
        };
        Settings {
            kernel: Some("vmlinux".into()),
            append: Some("quiet".to_owned()),
            cpus: Some(2),
            mem: Some(MemorySize::mib(1024)),
            rootfs: Some(disk("img.ext4", true, None)),
            disks: vec![
                disk("a.img", false, None),
                DiskConfig {
                    rate: "bps=10M,iops=100".parse().unwrap(),
                    ..disk("b.img", false, Some("b"))
                },
            ],
            rng: Some(RngConfig {
                rate: "bps=64K".parse().unwrap(),
                ..RngConfig::default()
            }),
            balloon: Some(BalloonConfig {
                size: MemorySize::mib(64),
                deflate_on_oom: false,
                ..BalloonConfig::default()
            }),
            vsock: Some(VsockConfig {
                uds: Some("v".into()),
                ..VsockConfig::new(7)
            }),
            nets: [
                "tap=t0,mtu=9000,queues=2",
                "fd=5,mac=02:00:00:00:00:01,bps=4K,burst=8K",
            ]
            .map(|card| card.parse().unwrap())
            .into(),
            shares: [".,tag=src,ro", "b,tag=t"]
                .map(|share| share.parse().unwrap())
                .into(),
            console: Some(ConsoleEnd::File("boot.log".into()).into()),
            api: Some("vm.sock".into()),
            timeout: Some("90s".parse().unwrap()),
            expect: vec!["login: $".parse().unwrap()],
            fail_on: vec!["a".parse().unwrap(), "b".parse().unwrap()],
            kernel_errors: Some(KernelErrors::Fatal),
            reports: vec!["out.xml".parse().unwrap(), "out.json".parse().unwrap()],
            log_level: Some(LogLevel::Debug),
            log_file: Some("mvm.log".into()),
            ..Settings::default()
        }
    }

    #[test]
    fn toml_and_json_say_the_same() {
        assert_eq!(parse(TOML).unwrap(), expected());
        assert_eq!(parse(JSON).unwrap(), expected());
        assert_eq!(parse("").unwrap(), Settings::default());
        assert_eq!(parse("{}").unwrap(), Settings::default());
    }

    #[test]
    fn mistakes_are_found_by_line() {
        for (text, line, part) in [
            (
                "kernel = \"a\"\nkernal = \"b\"",
                2,
                "unknown field `kernal`",
            ),
            ("{\n\"kernal\": 1}", 2, "unknown field `kernal`"),
            ("\n\nmem = \"1X\"", 3, "'1X' is not a size"),
            ("cpus = 300", 1, "300"),
            ("disk = [\"a,rw\"]", 1, "unknown key 'rw'"),
            (
                "rootfs = { path = \"a\", rw = true }",
                1,
                "unknown field `rw`",
            ),
            (
                "net = [{ tap = \"t\", mac = \"ff:ff:ff:ff:ff:ff\" }]",
                1,
                "is a multicast address",
            ),
            ("net = [{ mtu = 1500 }]", 1, "give exactly one of them"),
            (
                "net = [{ tap = \"t\", queue = 2 }]",
                1,
                "unknown field `queue`",
            ),
            (
                "cpus = 1\n\n[rootfs]\npath = \"a\"\nrw = true",
                3,
                "unknown field `rw`",
            ),
            ("\nrng = { bps = \"1X\" }", 2, "'1X' is not a size"),
            (
                "\nrng = { iops = \"x\" }",
                2,
                "invalid type: string \"x\", expected u64",
            ),
            ("rootfs = 7", 1, "text as on the command line, or a table"),
            ("{ \"timeout\": \"5x\" }", 1, "'5x' is not a duration"),
            ("\nexpect = ['a(b']", 2, "'a(b' is not a regular expression"),
            ("kernel =", 1, ""),
            ("{", 1, "EOF"),
        ] {
            let (at, cause) = parse(text).unwrap_err();
            assert_eq!(at, line, "{text}: {cause}");
            assert!(cause.contains(part), "{text}: {cause}");
            assert!(!cause.contains('\n'), "{cause:?}");
        }
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm.toml");
        fs::write(
            &path,
            "kernel = \"vmlinux\"\nrootfs = \"/abs.img\"\ndisk = [\"d.img\"]\nconsole = \"unix=s\"\n\
             vsock = \"cid=3,uds=v\"\nshare = [\"s,tag=t\"]",
        )
        .unwrap();
        let settings = read(&path).unwrap();
        assert_eq!(settings.kernel.unwrap(), dir.path().join("vmlinux"));
        assert_eq!(settings.rootfs.unwrap().path, Path::new("/abs.img"));
        assert_eq!(settings.disks[0].path, dir.path().join("d.img"));
        assert_eq!(
            settings.console,
            Some(ConsoleEnd::Unix(dir.path().join("s")).into())
        );
        assert_eq!(settings.shares[0].path, dir.path().join("s"));
        assert_eq!(settings.vsock.unwrap().uds, Some(dir.path().join("v")));
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = read(Path::new("no/such.toml")).unwrap_err().to_string();
        assert!(error.starts_with("the configuration file no/such.toml cannot be read: "));
    }
}

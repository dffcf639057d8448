//! Settings of the command line and of a file, and what they make together.

use log::LevelFilter;
use vmm::config::CommandConfig;

use super::*;

fn kernel(path: &str) -> Settings {
    Settings {
        kernel: Some(path.into()),
        ..Settings::default()
    }
}

#[test]
fn flags_win_and_the_file_fills_in() {
    let flags = Settings {
        cpus: Some(2),
        disks: vec![DiskConfig::new("flag.img")],
        ..kernel("flag")
    };
    let file = Settings {
        cpus: Some(8),
        mem: Some(MemorySize::mib(512)),
        no_acpi: true,
        disks: vec![DiskConfig::new("file.img")],
        ..kernel("file")
    };
    let both = flags.or(file);
    assert_eq!(both.kernel.unwrap(), Path::new("flag"));
    assert_eq!(both.cpus, Some(2));
    assert_eq!(both.mem, Some(MemorySize::mib(512)));
    assert!(both.no_acpi);
    assert_eq!(both.disks, [DiskConfig::new("flag.img")]);
}

#[test]
fn defaults_are_the_librarys() {
    let run = kernel("vmlinux").resolve(None).unwrap();
    assert_eq!(run.vm, VmConfig::new("vmlinux"));
    assert_eq!(run.log_level, LevelFilter::Warn);
    assert_eq!(run.timeout, None);
}

#[test]
fn a_vm_needs_a_kernel_and_sense() {
    let error = Settings::default().resolve(None).unwrap_err();
    assert!(matches!(error, SettingsError::NoKernel));
    let settings = Settings {
        cpus: Some(0),
        ..kernel("vmlinux")
    };
    let error = settings.resolve(None).unwrap_err();
    assert_eq!(error.to_string(), "0 vCPUs asked for; a VM has 1 to 254");
}

/// The flags, with what a file says where they are silent.
fn with_file(flags: Settings, name: &str, text: &str) -> Result<Run, SettingsError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    flags.resolve(Some(&path))
}

const COMMAND: &str = r#"
kernel = "/vmlinux"
command = ["make", "check; $A", ""]
env = ["A=b=c", "CARGO_PKG_NAME"]
workdir = "/src"
modules = "/lib/modules/6.12"
timeout = "60s"
"#;

const COMMAND_JSON: &str = r#"{ "kernel": "/vmlinux", "command": ["make", "check; $A", ""],
  "env": ["A=b=c", "CARGO_PKG_NAME"], "workdir": "/src", "modules": "/lib/modules/6.12", "timeout": "60s" }"#;

#[test]
fn a_file_may_have_the_command() {
    for (name, text) in [("vm.toml", COMMAND), ("vm.json", COMMAND_JSON)] {
        let run = with_file(Settings::default(), name, text).unwrap();
        let command = CommandConfig {
            env: vec!["A=b=c".to_owned(), "CARGO_PKG_NAME=mvm".to_owned()],
            workdir: Some("/src".into()),
            modules: Some("/lib/modules/6.12".into()),
            ..CommandConfig::new(["make", "check; $A", ""])
        };
        assert_eq!(run.vm.command, Some(command));
        assert_eq!(run.console, ConsoleEnd::None.into());
        assert!(run.wanted.has_command);
    }
}

#[test]
fn a_command_of_the_flags_takes_the_place_of_the_files() {
    let flags = || Settings {
        words: vec!["true".to_owned()],
        ..Settings::default()
    };
    let run = with_file(flags(), "vm.toml", COMMAND).unwrap();
    let command = run.vm.command.unwrap();
    assert_eq!(command.words, ["true"]);
    assert_eq!(command.workdir.as_deref(), Some(Path::new("/src")));

    // What belongs to a command may be in the file, and the command after '--'.
    let text = "kernel = '/vmlinux'\nenv = ['A=1']\n";
    let run = with_file(flags(), "vm.toml", text).unwrap();
    assert_eq!(run.vm.command.unwrap().env, ["A=1"]);
    let error = with_file(Settings::default(), "vm.toml", text).unwrap_err();
    let said = "--env is for a command in the guest; name one after '--'";
    assert_eq!(error.to_string(), said);
}

#[test]
fn a_command_in_a_file_that_is_none_is_refused() {
    for (text, said) in [
        ("command = [\"\"]", "there is no command after '--'"),
        ("command = \"make check\"", "line 2: invalid type: string"),
        ("command = [1]", "line 2: invalid type: integer"),
        ("command = [\"a\\u0000\"]", "cannot contain a NUL"),
        (
            "command = [\"a\"]\nenv = [\"NOT_SET_ANYWHERE\"]",
            "--env NOT_SET_ANYWHERE: mvm has no such variable",
        ),
        (
            "command = [\"a\"]\nenv = [\"=x\"]",
            "--env =x: write NAME=VALUE",
        ),
        (
            "command = [\"a\"]\nworkdir = \"src\"",
            "--workdir src: not absolute",
        ),
        (
            "command = [\"a\"]\nconsole = \"stdio\"",
            "--console stdio: the command has standard input",
        ),
    ] {
        let text = format!("kernel = \"/vmlinux\"\n{text}");
        let error = with_file(Settings::default(), "vm.toml", &text).unwrap_err();
        let error = error.to_string();
        assert!(error.contains(said), "{text}: {error}");
        assert!(!error.contains('\n'), "{error:?}");
    }
}

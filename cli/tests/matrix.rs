//! `mvm test` with guests of a few bytes on a real KVM.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{
    Files, POWER_OFF, Running, SPIN, TRIPLE_FAULT, arg, finish, has_kvm, mvm, say_and, text, until,
};
use rustix::process::Signal;
use serde_json::Value;

/// Kernels that greet and go on, greet and power off, and crash; and a test file of them.
fn matrix(settings: &str) -> (Files, PathBuf) {
    let files = Files::new();
    for (name, then) in [
        ("stays", SPIN),
        ("quits", POWER_OFF),
        ("faults", TRIPLE_FAULT),
    ] {
        files.file(name, &common::elf(&say_and("hello\r\n", then)));
    }
    let file = files.file("boots.toml", settings.as_bytes());
    (files, file)
}

const BOOTS: &str = r#"
[settings]
mem = "32M"
timeout = "20s"

[matrix]
kernel = ["stays", "quits", "faults"]
cpus = [1, 2]

[[case]]
name = "greets"
expect = "^hello$"

[[case]]
name = "ends"
fail-on = "goodbye"
timeout = "2s"
"#;

fn test(file: &Path, out: &Path, options: &[&str]) -> Command {
    let mut command = mvm();
    command
        .args(["test", arg(file), "--out", arg(out)])
        .args(options);
    command
}

/// The words at the beginning of each case's line, by its name.
fn said(output: &Output) -> Vec<(String, String)> {
    let lines = text(&output.stdout).lines();
    let mut said: Vec<_> = lines
        .filter_map(|line| {
            let (word, rest) = line.split_once(' ')?;
            let name = rest.trim_start().split("  ").next()?;
            Some((name.to_owned(), word.to_owned()))
        })
        .filter(|(name, _)| name.contains('='))
        .collect();
    said.sort();
    said
}

#[test]
fn a_matrix_is_run_and_what_fails_leaves_its_files() {
    if !has_kvm() {
        return;
    }
    let (files, file) = matrix(BOOTS);
    let (out, xml, json) = (files.path("out"), files.path("o.xml"), files.path("o.json"));
    let reports = ["--report", arg(&xml), "--report", arg(&json), "-j", "3"];
    let output = finish(&mut test(&file, &out, &reports));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let expected = [
        ("ends kernel=faults cpus=1", "FAIL"),
        ("ends kernel=faults cpus=2", "FAIL"),
        ("ends kernel=quits cpus=1", "ok"),
        ("ends kernel=quits cpus=2", "ok"),
        ("ends kernel=stays cpus=1", "FAIL"),
        ("ends kernel=stays cpus=2", "FAIL"),
        ("greets kernel=faults cpus=1", "ok"),
        ("greets kernel=faults cpus=2", "ok"),
        ("greets kernel=quits cpus=1", "ok"),
        ("greets kernel=quits cpus=2", "ok"),
        ("greets kernel=stays cpus=1", "ok"),
        ("greets kernel=stays cpus=2", "ok"),
    ];
    let found = said(&output);
    let found: Vec<_> = found
        .iter()
        .map(|(n, w)| (n.as_str(), w.as_str()))
        .collect();
    assert_eq!(found, expected);
    let last = text(&output.stdout).lines().last().unwrap();
    assert!(
        last.starts_with("8 passed, 4 failed, 0 errors, 0 skipped"),
        "{last}"
    );

    let mut left: Vec<_> = fs::read_dir(&out)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(
        left,
        [
            "ends_kernel=faults_cpus=1",
            "ends_kernel=faults_cpus=2",
            "ends_kernel=stays_cpus=1",
            "ends_kernel=stays_cpus=2",
        ]
    );
    let console = fs::read(out.join(&left[0]).join("console.log")).unwrap();
    assert_eq!(console, b"hello\r\n");

    let xml = fs::read_to_string(xml).unwrap();
    assert!(xml.contains(r#"name="boots" tests="12" failures="4" errors="0" skipped="0""#));
    let report: Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    let case = |name: &str| {
        let cases = report["cases"].as_array().unwrap();
        cases
            .iter()
            .find(|case| case["name"] == name)
            .unwrap()
            .clone()
    };
    let faults = case("ends kernel=faults cpus=1");
    assert_eq!(
        (&faults["status"], &faults["ended"]),
        (&123.into(), &"triple-faulted".into())
    );
    assert_eq!(case("ends kernel=stays cpus=2")["status"], 124);
    assert_eq!(case("greets kernel=stays cpus=2")["message"], Value::Null);

    // It can be run again as it was.
    let settings = out.join(&left[0]).join("settings.json");
    let again = finish(mvm().args(["--config", arg(&settings)]));
    assert_eq!(again.status.code(), Some(123), "{again:?}");
}

#[test]
fn cases_are_chosen_by_their_names() {
    if !has_kvm() {
        return;
    }
    let (files, file) = matrix(BOOTS);
    let out = files.path("out");
    let output = finish(&mut test(&file, &out, &["--list"]));
    assert_eq!(text(&output.stdout).lines().count(), 12);
    let output = finish(&mut test(&file, &out, &["greets", "quits"]));
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(said(&output).len(), 8);
    assert!(!out.exists(), "nothing is left where all pass");
    let output = finish(&mut test(&file, &out, &["frobs"]));
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("no case of"), "{output:?}");
}

/// With one image under all of them, which none of them writes.
#[test]
fn cases_share_an_image_by_overlays() {
    if !has_kvm() {
        return;
    }
    let settings = "[settings]\nkernel = 'quits'\nrootfs = 'image,overlay'\nmem = '32M'\n\
                    [matrix]\ncpus = [1, 2]\n\
                    [[case]]\nname = 'in memory'\n\
                    [[case]]\nname = 'read-only'\nrootfs = 'image,ro'\n";
    let (files, file) = matrix(settings);
    files.zeroes("image", 1 << 20);
    let output = finish(&mut test(&file, &files.path("out"), &["-j", "4"]));
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let last = text(&output.stdout).lines().last().unwrap();
    assert!(last.starts_with("4 passed"), "{last}");
}

#[test]
fn what_cannot_be_run_is_refused_before_anything_runs() {
    if !has_kvm() {
        return;
    }
    for (settings, said) in [
        (
            "[matrix]\ncpus = [0]\nkernel = ['stays']",
            "case 'cpus=0 kernel=stays': 0 vCPUs",
        ),
        (
            "[matrix]\nkernel = ['stays', 'gone']",
            "gone cannot be opened",
        ),
        (
            "[settings]\nrootfs = 'x.img'\nkernel = 'stays'",
            "x.img cannot be opened",
        ),
        (
            "[settings]\nscript = 'x.script'\nkernel = 'stays'",
            "x.script cannot be read",
        ),
        ("[settings]\nmem = '32M'", "no kernel given"),
        ("[settings]\nkernal = 'x'", "line 2: unknown field `kernal`"),
        (
            "[settings]\nkernel = 'stays'\nrootfs = 'quits'\n[matrix]\ncpus = [1, 2]",
            "quits is a disk of case 'cpus=1' too, and written; share it as PATH,ro or PATH,overlay",
        ),
        (
            "[settings]\nkernel = 'stays'\nrootfs = 'quits,overlay=new'\n[matrix]\ncpus = [1, 2]",
            "new is a disk of case 'cpus=1' too",
        ),
        (
            "[settings]\nkernel = 'stays'\n[matrix]\nrootfs = ['quits,ro', './quits']",
            "quits is a disk of case 'rootfs=quits,ro' too",
        ),
    ] {
        let (files, file) = matrix(settings);
        let output = finish(&mut test(&file, &files.path("out"), &["-j", "2"]));
        let line = text(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{settings}: {line}");
        assert!(line.contains(said), "{settings}: {line}");
        assert_eq!(line.lines().count(), 1, "{line}");
        assert_eq!(text(&output.stdout), "");
    }
    let output = finish(mvm().args(["test"]));
    assert_eq!(output.status.code(), Some(125));
    assert!(
        text(&output.stderr).contains("missing: <FILE>"),
        "{output:?}"
    );
    let output = finish(mvm().args(["test", "no/such.toml"]));
    assert!(
        text(&output.stderr).contains("no/such.toml cannot be read"),
        "{output:?}"
    );
    let (files, file) = matrix(BOOTS);
    let report = ["--report", "no/such/dir/o.xml"];
    let output = finish(&mut test(&file, &files.path("out"), &report));
    assert!(
        text(&output.stderr).contains("the report no/such/dir/o.xml"),
        "{output:?}"
    );
    let output = finish(&mut test(&file, Path::new("/proc/x"), &[]));
    assert!(
        text(&output.stderr).contains("choose another with --out"),
        "{output:?}"
    );
}

/// The processes that run a case of this directory.
fn children(out: &Path) -> usize {
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let line = fs::read(entry.ok()?.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).into_owned();
        (line.contains("--config") && line.contains(arg(out))).then_some(())
    });
    processes.count()
}

const ENDLESS: &str = "[settings]\nmem = '32M'\nkernel = 'stays'\n[matrix]\ncpus = [1, 2, 3]\n";

#[test]
fn a_signal_ends_what_runs_and_skips_the_rest() {
    if !has_kvm() {
        return;
    }
    let (files, file) = matrix(ENDLESS);
    let (out, report) = (files.path("out"), files.path("o.xml"));
    let options = ["-j", "2", "--report", arg(&report)];
    let mut running = Running::start(&mut test(&file, &out, &options));
    until("two cases", || children(&out) == 2);
    running.signal(Signal::TERM);
    assert_eq!(running.wait().code(), Some(143));
    assert_eq!(children(&out), 0);
    let xml = fs::read_to_string(report).unwrap();
    assert!(
        xml.contains(r#"tests="3" failures="0" errors="0" skipped="3""#),
        "{xml}"
    );
}

#[test]
fn cases_do_not_outlive_mvm() {
    if !has_kvm() {
        return;
    }
    let (files, file) = matrix(ENDLESS);
    let out = files.path("out");
    let mut running = Running::start(&mut test(&file, &out, &["-j", "2"]));
    until("two cases", || children(&out) == 2);
    running.signal(Signal::KILL);
    assert_eq!(running.wait().code(), None);
    until("their end", || children(&out) == 0);
}

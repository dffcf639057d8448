//! Reports of guests of a few bytes on a real KVM, of runs that never began, and of paths that are none.

mod common;

use std::fs;
use std::path::Path;

use common::{Files, POWER_OFF, SPIN, arg, finish, has_kvm, mvm, say_and, text};
use serde_json::Value;

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_run_is_reported_in_both_formats() {
    if !has_kvm() {
        return;
    }
    let files = Files::new();
    let said = "[    0.500000] Run /init as init process\nready\n";
    let kernel = files.kernel(&say_and(said, SPIN));
    let (as_json, as_junit) = (
        files.path("out.json"),
        files.file("out.xml", b"old and long"),
    );
    let output = finish(
        mvm()
            .args(["--kernel", arg(&kernel), "--expect", "^ready$"])
            .args(["--report", arg(&as_json), "--report", arg(&as_junit)]),
    );
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report = json(&as_json);
    assert_eq!(report["result"], "passed");
    assert_eq!(report["status"], 0);
    assert_eq!(report["ended"], "expectations-met");
    assert_eq!(report["expect"][0]["line"], "ready");
    assert_eq!(report["exits"]["port_writes"], said.len());
    assert!(report["usage"]["peak_memory_kib"].as_u64().unwrap() > 100);
    let stages = report["stages"].as_array().unwrap();
    let names: Vec<_> = stages.iter().map(|stage| &stage["name"]).collect();
    assert_eq!(
        names,
        ["start", "vm-created", "first-instruction", "init", "end"]
    );
    let times = stages.iter().map(|stage| stage["ms"].as_f64().unwrap());
    assert!(times.is_sorted(), "{stages:?}");
    let xml = fs::read_to_string(as_junit).unwrap();
    assert!(
        xml.starts_with("<?xml") && xml.ends_with("</testsuites>\n"),
        "{xml}"
    );
    assert!(
        xml.contains(r#"tests="2" failures="0" errors="0""#),
        "{xml}"
    );
}

#[test]
fn a_run_that_fails_keeps_its_last_lines() {
    if !has_kvm() {
        return;
    }
    let files = Files::new();
    let kernel = files.kernel(&say_and("one\ntwo\nlast words", POWER_OFF));
    let report = files.path("out.json");
    let output = finish(
        mvm()
            .args(["--kernel", arg(&kernel), "--expect", "never"])
            .args(["--report", arg(&report), "--console", "none"]),
    );
    assert_eq!(output.status.code(), Some(122), "{output:?}");
    let report = json(&report);
    assert_eq!(
        (&report["result"], &report["ended"]),
        (&"failed".into(), &"powered-off".into())
    );
    assert_eq!(
        report["console_tail"],
        serde_json::json!(["one", "two", "last words"])
    );
    assert_eq!(report["expect"][0]["line"], Value::Null);
    let said = text(&output.stderr);
    assert_eq!(
        said,
        format!("mvm: {}\n", report["message"].as_str().unwrap())
    );
}

#[test]
fn of_the_environment_only_the_names_are_reported() {
    if !has_kvm() {
        return;
    }
    let files = Files::new();
    let kernel = files.kernel(POWER_OFF);
    let (as_json, as_junit) = (files.path("out.json"), files.path("out.xml"));
    let output = finish(
        mvm()
            .env("PASSED_ON", "hush-hush")
            .args(["--kernel", arg(&kernel), "--log-level", "trace"])
            .args(["--report", arg(&as_json), "--report", arg(&as_junit)])
            .args(["--env", "TOKEN=secret=hush", "--env", "PASSED_ON"])
            .args(["--", "true"]),
    );
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    let report = json(&as_json);
    let names = serde_json::json!(["TOKEN", "PASSED_ON"]);
    assert_eq!(report["vm"]["command"]["env"], names);
    for report in [&as_json, &as_junit] {
        let text = fs::read_to_string(report).unwrap();
        assert!(!text.contains("hush"), "{text}");
    }
    assert!(!text(&output.stderr).contains("hush"), "nor logged");
}

#[test]
fn a_boot_is_drawn() {
    if !has_kvm() {
        return;
    }
    let files = Files::new();
    let said = "[    0.100000] Linux version 6\n[    0.500000] Run /init as init process\nready\n";
    let kernel = files.kernel(&say_and(said, POWER_OFF));
    let chart = files.path("boot.svg");
    let output = finish(mvm().args(["--kernel", arg(&kernel), "--boot-chart", arg(&chart)]));
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let svg = fs::read_to_string(chart).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    for words in [
        "Boot of kernel",
        "assemble the VM",
        "early set-up",
        "to init",
    ] {
        assert!(svg.contains(words), "no '{words}' in {svg}");
    }
}

#[test]
fn a_run_that_never_began_is_reported_too() {
    let files = Files::new();
    let (kernel, report) = (files.path("missing"), files.path("out.json"));
    let output = finish(mvm().args(["--kernel", arg(&kernel), "--report", arg(&report)]));
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    let report = json(&report);
    assert_eq!(
        (&report["result"], &report["status"]),
        (&"error".into(), &125.into())
    );
    assert_eq!(report["ended"], "mvm-failed");
    let message = report["message"].as_str().unwrap();
    assert!(message.contains("missing cannot be opened"), "{message}");
}

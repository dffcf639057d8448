//! Reports of made-up runs, to the letter, and what any JUnit file must be.

use std::time::UNIX_EPOCH;

use proptest::prelude::*;
use quick_xml::events::Event as Xml;
use quick_xml::{Reader, XmlVersion};
use vmm::events::{Event, EventKind};

use super::junit::{Case, End, Suite, compose};
use super::*;
use crate::policy::{Event as Cause, Policy};
use crate::record::Start;
use crate::usage::Usage;
use crate::watch::{Verdict, Wanted};

/// A run of a kernel that says these lines, 10 ms apart.
fn record(wanted: Wanted, lines: &[&str]) -> (Record, Option<Verdict>) {
    let start = Start {
        at: Instant::now(),
        date: UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
    };
    let mut record = Record::new(start, VmConfig::new("boot/vmlinuz-6.1"), wanted);
    let lines = lines.iter().map(|line| EventKind::Line((*line).to_owned()));
    let kinds = [EventKind::Started].into_iter().chain(lines);
    record.stages.created(start.at + Duration::from_millis(5));
    let mut at = start.at;
    let mut verdict = None;
    for kind in kinds.chain([EventKind::Ended(None)]) {
        at += Duration::from_millis(10);
        verdict = verdict.or(record.on_event(&Event { at, kind }));
    }
    record.usage = Usage {
        user: Duration::from_micros(1500),
        system: Duration::from_millis(2),
        peak_kib: 4096,
    };
    record.exits.port_writes = 7;
    (record, verdict)
}

fn failed() -> (Record, Outcome) {
    let wanted = Wanted {
        expect: vec!["^up$".parse().unwrap(), "<never>".parse().unwrap()],
        fail_on: vec!["FAIL & \"co\"".parse().unwrap()],
        ..Wanted::default()
    };
    let (record, verdict) = record(
        wanted,
        &[
            "[    0.500000] Run /init as init process",
            "[    0.600000] BUG: scheduling while atomic: sh/1/0x2",
            "up",
            "FAIL & \"co\"",
        ],
    );
    let mut policy = Policy::new(true);
    policy.on(Cause::Verdict(verdict.unwrap()));
    let outcome = policy.outcome(vmm::ExitReason::Stopped, Some(&record.watch));
    (record, outcome)
}

#[test]
fn a_failed_run_as_junit() {
    let (record, outcome) = failed();
    let text = junit::of_run(&Report::new(&record, Ok(&outcome))).unwrap();
    let expected = include_str!("tests/failed.xml");
    let expected = expected.replace("VERSION", env!("CARGO_PKG_VERSION"));
    assert_eq!(text, expected);
    check(&text);
}

#[test]
fn a_failed_run_as_json() {
    let (record, outcome) = failed();
    let text = json(&Report::new(&record, Ok(&outcome))).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    // The settings have tests of their own.
    assert_eq!(value["vm"]["kernel"], "boot/vmlinuz-6.1");
    value.as_object_mut().unwrap().remove("vm");
    value.as_object_mut().unwrap().remove("mvm");
    let expected: serde_json::Value =
        serde_json::from_str(include_str!("tests/failed.json")).unwrap();
    assert_eq!(value, expected);
}

#[test]
fn a_run_that_passes_keeps_the_console_to_itself() {
    let (record, _) = record(Wanted::default(), &["up"]);
    let outcome = Policy::new(true).outcome(vmm::ExitReason::PoweredOff, Some(&record.watch));
    let report = Report::new(&record, Ok(&outcome));
    assert_eq!((report.result, report.status), (Ran::Passed, 0));
    assert_eq!(report.ended, "powered-off");
    assert!(report.console_tail.is_empty());
    let text = junit::of_run(&report).unwrap();
    assert!(text.contains(r#"name="boot" time="0.030"/>"#), "{text}");
    check(&text);
}

#[test]
fn a_run_that_mvm_failed_is_an_error() {
    let (record, _) = record(Wanted::default(), &["up"]);
    let error = RunError::Emulation("no".to_owned());
    let report = Report::new(&record, Err(&error));
    assert_eq!((report.result, report.status), (Ran::Error, 125));
    assert_eq!(report.ended, "mvm-failed");
    let text = junit::of_run(&report).unwrap();
    assert!(text.contains(r#"<error message="no">up</error>"#), "{text}");
    check(&text);
}

#[test]
fn a_path_that_cannot_be_written_is_named() {
    let path: ReportPath = "no/such/dir/out.json".parse().unwrap();
    let error = ReportFiles::open(&[path]).unwrap_err().to_string();
    assert!(
        error.starts_with("the report no/such/dir/out.json cannot be written: No such file"),
        "{error}"
    );
}

/// Fails unless this is what Jenkins' junit-10.xsd and GitLab's reader take: the elements in their
/// places, their attributes, and sums that are right.
fn check(text: &str) {
    let mut reader = Reader::from_str(text);
    let mut open: Vec<String> = Vec::new();
    let mut counted = [0; 4];
    let mut said = [0; 4];
    loop {
        let event = reader.read_event().expect("well-formed XML");
        let (element, closes) = match &event {
            Xml::Start(element) => (element, false),
            Xml::Empty(element) => (element, true),
            Xml::End(_) => {
                open.pop();
                continue;
            }
            Xml::Eof => break,
            _ => continue,
        };
        let name = element.name().as_ref().to_owned();
        let attribute = |name: &str| {
            let value = element.try_get_attribute(name).unwrap();
            let value = value.unwrap_or_else(|| panic!("no {name}"));
            value
                .normalized_value(XmlVersion::Explicit1_0)
                .unwrap()
                .into_owned()
        };
        let number = |name: &str| attribute(name).parse::<usize>().unwrap();
        let parent = open.last().map(String::as_str);
        match (parent, name.as_str()) {
            (None, "testsuites") => {}
            (Some("testsuites"), "testsuite") => {
                said = ["tests", "failures", "errors", "skipped"].map(number);
                attribute("time").parse::<f64>().unwrap();
                let stamp = attribute("timestamp");
                assert!(stamp.len() == 19 && stamp.contains('T'), "{stamp}");
                assert!(!attribute("name").is_empty());
            }
            (Some("testsuite"), "properties") => assert_eq!(counted[0], 0, "they come first"),
            (Some("properties"), "property") => {
                attribute("name");
                attribute("value");
            }
            (Some("testsuite"), "testcase") => {
                counted[0] += 1;
                attribute("time").parse::<f64>().unwrap();
                assert!(attribute("classname").contains('.') && !attribute("name").is_empty());
            }
            (Some("testcase"), what @ ("failure" | "error" | "skipped")) => {
                attribute("message");
                counted[match what {
                    "failure" => 1,
                    "error" => 2,
                    _ => 3,
                }] += 1;
            }
            (Some("testcase"), "system-out") => {}
            place => panic!("{place:?} has no place in JUnit"),
        }
        if !closes {
            open.push(name);
        }
    }
    assert!(open.is_empty());
    assert_eq!(said, counted, "tests, failures, errors, skipped");
}

proptest! {
    #[test]
    fn whatever_a_guest_prints_is_xml(name in ".*", message in any::<String>(), text in any::<String>()) {
        let end = |number| match number {
            0 => End::Passed,
            1 => End::Failed(message.clone(), text.clone()),
            2 => End::Error(message.clone(), text.clone()),
            _ => End::Skipped(message.clone()),
        };
        let cases = (0..4).map(|number| Case {
            name: format!("a{name}"),
            time: Duration::from_millis(number),
            end: end(number),
            output: text.clone(),
        });
        let suite = Suite {
            name: format!("a{name}"),
            started: "2023-11-14T22:13:20.123Z".to_owned(),
            time: Duration::ZERO,
            properties: vec![("a", text.clone())],
            cases: cases.collect(),
        };
        check(&compose(&suite).unwrap());
    }
}

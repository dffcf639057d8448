//! `mvm doctor` on the host that runs the tests, whatever that host is.

mod common;

use std::path::Path;

use common::{finish, has_kvm, mvm, text};
use serde_json::Value;

fn report() -> (Value, i32) {
    let output = finish(mvm().args(["doctor", "--json"]));
    assert_eq!(text(&output.stderr), "");
    let report = serde_json::from_slice(&output.stdout).expect("one JSON object");
    (report, output.status.code().expect("an exit"))
}

#[test]
fn the_json_says_what_the_status_says() {
    let (report, status) = report();
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    let fit = report["host"]["stock_kernels"].as_bool().unwrap();
    assert_eq!(status, if fit { 0 } else { 1 });
    assert_eq!(fit, report["host"]["kind"] == "hardware");
    let checks = report["checks"].as_array().unwrap();
    assert_eq!(checks[0]["name"], "kvm-device");
    for check in checks {
        let well = check["status"] == "ok";
        assert_eq!(check["remedy"].is_null(), well, "{check}");
        assert!(!check["detail"].as_str().unwrap().contains('\n'));
    }
    let failed = checks.iter().any(|check| check["status"] == "fail");
    assert_eq!(failed, !fit);
}

#[test]
fn the_kind_agrees_with_what_is_known_of_this_host() {
    let (report, _) = report();
    let kind = report["host"]["kind"].as_str().unwrap();
    if !has_kvm() {
        assert_eq!(kind, "none");
    } else if Path::new("/sys/module/kvm_pvm").exists() {
        assert_eq!(kind, "software");
        assert!(report["host"]["guest_slowdown"].as_f64().unwrap() > 50.0);
    } else {
        println!("skipped: nothing else is known of this host's KVM, which mvm calls {kind}");
    }
}

#[test]
fn the_text_has_a_line_per_check_and_the_answer_last() {
    let (report, status) = report();
    let output = finish(mvm().arg("doctor"));
    assert_eq!(output.status.code(), Some(status));
    let text = text(&output.stdout);
    assert!(text.is_ascii(), "no symbols or colour in a pipe: {text}");
    for check in report["checks"].as_array().unwrap() {
        let name = check["name"].as_str().unwrap();
        assert!(text.contains(name), "{name} in {text}");
    }
    let answer = text.lines().last().unwrap();
    assert!(answer.starts_with("Stock kernels "), "{answer}");
}

//! Scripts that talk with guests of a few bytes on a real KVM.

mod common;

use std::process::Output;

use common::{Files, SHOUT, SPIN, arg, finish, has_kvm, mvm, text};

/// Plays a script against a guest that prompts once and then says everything back in upper case.
fn shout(script: &str, options: &[&str]) -> Output {
    let files = Files::new();
    let kernel = files.kernel(SHOUT);
    let script = files.file("talk.script", script.as_bytes());
    finish(
        mvm()
            .args(["--kernel", arg(&kernel), "--script", arg(&script)])
            .args(options),
    )
}

#[test]
fn a_talk_that_goes_as_written_passes() {
    if !has_kvm() {
        return;
    }
    let output = shout(
        "expect '>'\nsend 'hello'\nexpect 'HELLO$'\nsend 'bye'\nexpect 'BYE'",
        &[],
    );
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(text(&output.stderr), "");
    assert_eq!(text(&output.stdout), ">HELLOBYE");
}

#[test]
fn more_than_a_pipe_holds_is_typed_whole() {
    if !has_kvm() {
        return;
    }
    // The guest's bytes are interpreted one by one on some hosts, so not much more.
    let long = "abcdefghij".repeat(7000);
    let script = format!("expect '>'\nsend '{long}'\nsend 'end'\nexpect 'JEND' 10m");
    let output = shout(&script, &["--console", "none"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn a_step_that_fails_is_named() {
    if !has_kvm() {
        return;
    }
    let output = shout("expect '>'\n\nsend 'hello'\nexpect 'hello' 300ms", &[]);
    assert_eq!(output.status.code(), Some(122), "{output:?}");
    let said = text(&output.stderr);
    assert!(
        said.ends_with("talk.script, line 4: 'hello' did not come within 300ms\n"),
        "{said}"
    );
}

#[test]
fn the_script_and_every_expectation_must_be_met() {
    if !has_kvm() {
        return;
    }
    let script = "expect '>'\nsend 'hello'\nexpect 'HELLO'";
    let output = shout(script, &["--expect", "never", "--timeout", "500ms"]);
    assert_eq!(output.status.code(), Some(124), "{output:?}");
    let said = text(&output.stderr);
    assert!(said.contains("no line matched --expect 'never'"), "{said}");
    let output = shout(
        "expect '>'\nsend 'hello'\nexpect 'x' 1h",
        &["--fail-on", "HEL"],
    );
    assert_eq!(output.status.code(), Some(122), "{output:?}");
}

#[test]
fn what_cannot_be_a_script_is_refused() {
    let files = Files::new();
    let refused = |script: &str, options: &[&str], said: &str| {
        let output = finish(
            mvm()
                .args(["--kernel", "vmlinux", "--script", script])
                .args(options),
        );
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        let line = text(&output.stderr);
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(line.contains(said), "{line}");
    };
    refused(
        "no/such.script",
        &[],
        "script no/such.script cannot be read",
    );
    let bad = files.file("bad.script", b"expect 'a'\nsend a");
    refused(
        arg(&bad),
        &[],
        "bad.script, line 2: send needs a text in quotes",
    );
    let good = files.file("good.script", b"expect 'a'");
    for console in ["pty", "unix=s"] {
        let said = format!("which cannot be {console} then");
        refused(arg(&good), &["--console", console], &said);
    }
}

#[test]
fn a_guest_that_never_answers_is_given_up() {
    if !has_kvm() {
        return;
    }
    let files = Files::new();
    let kernel = files.kernel(SPIN);
    let script = files.file("wait.script", b"send 'x'\nend 200ms");
    let output = finish(mvm().args(["--kernel", arg(&kernel), "--script", arg(&script)]));
    assert_eq!(output.status.code(), Some(122), "{output:?}");
    let said = text(&output.stderr);
    assert!(
        said.contains("the guest did not end within 200ms"),
        "{said}"
    );
}

//! The console judged: --expect, --fail-on and --kernel-errors, with guests of a few bytes on a real KVM.

mod common;

use std::process::Output;

use common::{Files, POWER_OFF, SPIN, TRIPLE_FAULT, arg, finish, has_kvm, mvm, say_and, text};

/// Boots a guest that says this and then does that; the exit status and standard error.
///
/// A guest that spins is ended when the matter is settled, by its last line at the latest, and may not get to end that.
fn ends(said: &str, then: &[u8], options: &[&str]) -> (Option<i32>, String) {
    let output = boot(said, then, options);
    let begun = text(&output.stdout);
    let before_last = said.trim_end().rfind('\n').unwrap_or(0);
    let as_said = match then {
        SPIN => said.starts_with(begun) && begun.len() > before_last,
        _ => begun == said,
    };
    assert!(
        as_said,
        "the console is what it is without being looked at: {begun:?}"
    );
    (output.status.code(), text(&output.stderr).to_owned())
}

fn boot(said: &str, then: &[u8], options: &[&str]) -> Output {
    let files = Files::new();
    let kernel = files.kernel(&say_and(said, then));
    finish(mvm().args(["--kernel", arg(&kernel)]).args(options))
}

#[test]
fn a_guest_that_goes_on_is_ended_when_all_has_come() {
    if !has_kvm() {
        return;
    }
    let options = ["--expect", "^two$", "--expect", "o.e"];
    let ended = ends("one\r\ntwo\r\n", SPIN, &options);
    assert_eq!(ended, (Some(0), String::new()));
}

#[test]
fn a_prompt_is_enough() {
    if !has_kvm() {
        return;
    }
    for pattern in ["login:", "login: $"] {
        let ended = ends("\x1b[1mdebian\x1b[0m login: ", SPIN, &["--expect", pattern]);
        assert_eq!(ended, (Some(0), String::new()), "{pattern}");
    }
}

#[test]
fn last_words_count() {
    if !has_kvm() {
        return;
    }
    for then in [POWER_OFF, TRIPLE_FAULT] {
        let ended = ends("PASS", then, &["--expect", "^PASS$"]);
        assert_eq!(ended, (Some(0), String::new()));
        let (status, said) = ends("PASS, FAIL", then, &["--fail-on", "FAIL"]);
        assert_eq!(status, Some(122));
        assert_eq!(said, "mvm: --fail-on 'FAIL' matched: PASS, FAIL\n");
    }
}

#[test]
fn what_does_not_come_fails() {
    if !has_kvm() {
        return;
    }
    let options = ["--expect", "hello", "--expect", "bye", "--expect", "never"];
    let (status, said) = ends("hello", POWER_OFF, &options);
    assert_eq!(status, Some(122));
    assert_eq!(
        said,
        "mvm: the guest powered off, and no line matched --expect 'bye', 'never'\n"
    );
    let (status, said) = ends("hello", TRIPLE_FAULT, &options);
    assert_eq!(status, Some(123), "{said}");
    let options = ["--expect", "bye", "--timeout", "2s"];
    let (status, said) = ends("hello", SPIN, &options);
    assert_eq!(status, Some(124));
    assert_eq!(
        said,
        "mvm: the VM was ended: --timeout ran out; no line matched --expect 'bye'\n"
    );
}

#[test]
fn what_must_not_come_ends_the_guest() {
    if !has_kvm() {
        return;
    }
    let options = ["--expect", "good", "--fail-on", "bad", "--fail-on", "worse"];
    let (status, said) = ends("a \x1b[31mworse\x1b[0m one\ngood\n", SPIN, &options);
    assert_eq!(status, Some(122));
    assert_eq!(said, "mvm: --fail-on 'worse' matched: a worse one\n");
}

const OOPS: &str = "\
[    1.000000] BUG: kernel NULL pointer dereference, address: 0000000000000000\r
[    1.000001] Oops: 0002 [#1] PREEMPT SMP\r
[    1.000002] ---[ end trace 0000000000000000 ]---\r
";
const PANIC: &str = "[    1.000003] Kernel panic - not syncing: Fatal exception\r\n";

#[test]
fn kernel_trouble_is_told_or_fatal_or_ignored() {
    if !has_kvm() {
        return;
    }
    let well = format!("{OOPS}well\r\n");
    let (status, said) = ends(&well, SPIN, &["--expect", "well"]);
    assert_eq!(status, Some(0));
    assert!(
        said.starts_with("mvm: the guest's kernel reported 1 error: [    1.000000] BUG: "),
        "{said}"
    );
    let ignore = ["--expect", "well", "--kernel-errors", "ignore"];
    assert_eq!(ends(&well, SPIN, &ignore), (Some(0), String::new()));
    let fatal = ["--expect", "well", "--kernel-errors", "fatal"];
    assert_eq!(ends(&well, SPIN, &fatal).0, Some(122));
    assert_eq!(ends(PANIC, SPIN, &fatal[2..]).0, Some(123));
    let (status, said) = ends(PANIC, POWER_OFF, &["--kernel-errors", "report"]);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("reported 1 error"), "{said}");
}

#[test]
fn the_console_may_go_anywhere() {
    if !has_kvm() {
        return;
    }
    let files = Files::new();
    let (log, socket) = (files.path("log"), files.path("socket"));
    for console in [
        "none".to_owned(),
        "pty".to_owned(),
        format!("file={}", arg(&log)),
        format!("unix={}", arg(&socket)),
    ] {
        let output = boot(
            "hello\n",
            SPIN,
            &["--console", &console, "--expect", "hello"],
        );
        assert_eq!(output.status.code(), Some(0), "{console}: {output:?}");
        assert_eq!(text(&output.stdout), "");
    }
    assert_eq!(std::fs::read(log).unwrap(), b"hello\n");
}

#[test]
fn the_file_says_the_same() {
    if !has_kvm() {
        return;
    }
    let files = Files::new();
    files.kernel(&say_and("hello\n", SPIN));
    let config = files.file(
        "vm.toml",
        b"kernel = 'kernel'\nexpect = ['never']\nfail-on = ['^hello$']\nkernel-errors = 'report'",
    );
    let output = finish(mvm().args(["--config", arg(&config)]));
    assert_eq!(output.status.code(), Some(122), "{output:?}");
    let flags = ["--config", arg(&config), "--fail-on", "x", "--expect", "h"];
    let output = finish(mvm().args(flags));
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

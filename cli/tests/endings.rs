//! How mvm ends: the status of each way, and what it leaves behind. Guests of a few bytes on a real KVM.

mod common;

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{
    Files, GREET, POPCNT, POWER_OFF, RESET, Running, SPIN, TRIPLE_FAULT, arg, finish, has_kvm, mvm,
    program, say_and, say_at, text,
};
use rustix::process::Signal;

fn boot(files: &Files, code: &[u8]) -> Command {
    let mut command = mvm();
    command.arg("--kernel").arg(files.kernel(code));
    command
}

/// Starts a guest and waits for its first output.
fn greeted(command: &mut Command) -> Running {
    let mut running = Running::start(command);
    let mut hello = [0; 2];
    let stdout = running.0.stdout.as_mut().unwrap();
    stdout.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"hi");
    running
}

/// The rest of standard error, and the status.
fn ended(mut running: Running) -> (Option<i32>, String) {
    let status = running.wait();
    assert_eq!(status.signal(), None, "mvm ends by itself");
    let mut stderr = String::new();
    let pipe = running.0.stderr.as_mut().unwrap();
    pipe.read_to_string(&mut stderr).unwrap();
    (status.code(), stderr)
}

#[test]
fn a_reset_is_success() {
    if !has_kvm() {
        return;
    }
    let files = Files::new();
    let output = finish(&mut boot(&files, RESET));
    assert_eq!(text(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_triple_fault_is_a_crash() {
    if !has_kvm() {
        return;
    }
    let files = Files::new();
    let output = finish(&mut boot(&files, TRIPLE_FAULT));
    assert!(
        text(&output.stderr).contains("triple-faulted"),
        "{output:?}"
    );
    assert_eq!(output.status.code(), Some(123));
}

#[test]
fn the_timeout_has_its_status() {
    if !has_kvm() {
        return;
    }
    let files = Files::new();
    let start = Instant::now();
    let output = finish(boot(&files, SPIN).args(["--timeout", "300ms"]));
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert_eq!(output.status.code(), Some(124), "{output:?}");
    assert_eq!(
        text(&output.stderr),
        "mvm: the VM was ended: --timeout ran out\n"
    );
}

#[test]
fn a_signal_asks_and_the_second_ends() {
    if !has_kvm() {
        return;
    }
    let files = Files::new();
    let mut running = greeted(&mut boot(&files, GREET));
    running.signal(Signal::TERM);
    let mut line = String::new();
    let stderr = running.0.stderr.as_mut().unwrap();
    BufReader::new(stderr).read_line(&mut line).unwrap();
    assert!(line.starts_with("mvm: SIGTERM: "), "{line}");
    running.signal(Signal::INT);
    let (status, stderr) = ended(running);
    assert_eq!(status, Some(130));
    assert_eq!(stderr, "mvm: the VM was ended by SIGINT\n");
}

#[test]
fn a_hangup_ends_at_once() {
    if !has_kvm() {
        return;
    }
    for (sent, status) in [(Signal::HUP, 129), (Signal::QUIT, 131)] {
        let files = Files::new();
        let running = greeted(&mut boot(&files, GREET));
        running.signal(sent);
        assert_eq!(ended(running).0, Some(status));
    }
}

#[test]
fn an_ignored_hangup_stays_ignored() {
    if !has_kvm() {
        return;
    }
    let files = Files::new();
    let kernel = files.kernel(GREET);
    let mut command = program("nohup");
    command
        .arg(env!("CARGO_BIN_EXE_mvm"))
        .args(["--kernel", arg(&kernel), "--timeout", "700ms"]);
    let running = greeted(&mut command);
    running.signal(Signal::HUP);
    assert_eq!(ended(running).0, Some(124), "the timeout ended it");
}

#[test]
fn a_closed_output_does_not_end_the_guest() {
    if !has_kvm() {
        return;
    }
    let files = Files::new();
    let mut running = Running::start(boot(&files, GREET).args(["--timeout", "500ms"]));
    drop(running.0.stdout.take());
    assert_eq!(ended(running).0, Some(124));
}

/// The console is not shown then, so its last lines are, with what they may contain made harmless.
#[test]
fn a_guest_that_ends_before_its_command_shows_its_last_words() {
    if !has_kvm() {
        return;
    }
    let words = "mvm: the last lines of the guest's console:\none\nno root\\u{1b}[1m\n";
    for (then, reason, status) in [
        (
            POWER_OFF,
            "the guest powered off before its command was started",
            125,
        ),
        (
            TRIPLE_FAULT,
            "the guest triple-faulted: a CPU met a fault while handling a fault",
            123,
        ),
        (SPIN, "the VM was ended: --timeout ran out", 124),
    ] {
        let files = Files::new();
        let mut command = boot(&files, &say_and("one\r\nno root\x1b[1m\r\n", then));
        let output = finish(command.args(["--timeout", "2s", "--", "true"]));
        assert_eq!(output.status.code(), Some(status), "{output:?}");
        assert_eq!(text(&output.stdout), "");
        assert_eq!(text(&output.stderr), format!("mvm: {reason}\n{words}"));
    }

    let files = Files::new();
    let mut command = boot(&files, POWER_OFF);
    let output = finish(command.args(["--", "true"]));
    let said = "mvm: the guest powered off before its command was started\n\
                mvm: the guest's console has shown nothing\n";
    assert_eq!(text(&output.stderr), said);

    // What goes elsewhere is read there.
    let mut command = boot(&files, &say_and("one\n", POWER_OFF));
    let console = files.path("console.log");
    command
        .arg("--console")
        .arg(format!("file={}", arg(&console)));
    let output = finish(command.args(["--", "true"]));
    let said = "mvm: the guest powered off before its command was started\n";
    assert_eq!(text(&output.stderr), said);
    assert_eq!(std::fs::read(console).unwrap(), b"one\n");
}

/// It would go on for ever; what it says is no frame of its init's.
#[test]
fn a_guest_whose_init_is_not_understood_is_ended() {
    if !has_kvm() {
        return;
    }
    let files = Files::new();
    let code = [say_at(0x2f8, &[0xff; 8]), say_and("hm\n", SPIN)].concat();
    let output = finish(boot(&files, &code).args(["--", "true"]));
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    let stderr = text(&output.stderr);
    assert!(
        stderr.contains("the guest's init is not understood: "),
        "{stderr}"
    );
    let said = "mvm: the guest was lost before its command was started\n";
    assert!(stderr.contains(said), "{stderr}");
}

/// Whether guest kernels are interpreted here; says so where not.
fn is_software_kvm() -> bool {
    let doctor = finish(mvm().args(["doctor", "--json"]));
    let software = text(&doctor.stdout).contains("\"software\"");
    if !software {
        println!("skipped: this KVM runs guest code on the processor");
    }
    software
}

#[test]
fn linux_is_refused_at_once_where_it_would_be_interpreted() {
    if !has_kvm() || !is_software_kvm() {
        return;
    }
    let files = Files::new();
    let kernel = files.file("vmlinux", &common::vmlinux(RESET));
    let output = finish(mvm().args(["--kernel", arg(&kernel)]));
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{stderr}");
    assert!(stderr.contains("interprets guest kernels"), "{stderr}");
    assert!(stderr.contains("see 'mvm doctor'"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    let output = finish(mvm().args(["--kernel", arg(&kernel), "--software-kvm"]));
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn an_instruction_that_kvm_cannot_emulate_is_named() {
    if !has_kvm() || !is_software_kvm() {
        return;
    }
    let files = Files::new();
    let output = finish(&mut boot(&files, POPCNT));
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{stderr}");
    assert!(stderr.contains("'popcnt rax,rbx' at 0x100000"), "{stderr}");
    assert!(stderr.contains("software KVM"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

/// In a mount namespace whose /dev is empty.
#[test]
fn a_host_without_kvm_is_told_of_at_once() {
    let files = Files::new();
    let kernel = files.kernel(RESET);
    for options in [&[][..], &["--expect", "x"], &["--", "true"]] {
        let mut command = program("unshare");
        command
            .args([
                "-rm",
                "sh",
                "-c",
                "mount -t tmpfs none /dev && exec \"$@\"",
                "sh",
            ])
            .arg(env!("CARGO_BIN_EXE_mvm"))
            .args(["--kernel", arg(&kernel)])
            .args(options);
        let output = finish(&mut command);
        let stderr = text(&output.stderr);
        if output.status.code() != Some(125) {
            println!("skipped: no namespace with an empty /dev can be made: {stderr}");
            return;
        }
        assert!(stderr.starts_with("mvm: /dev/kvm"), "{stderr}");
        assert!(stderr.contains("mvm doctor"), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

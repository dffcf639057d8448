//! Every mistake a user can make is one line on standard error with its cause, and status 125.

mod common;

use common::{Files, SPIN, arg, finish, has_kvm, mvm, text};

/// Runs mvm, which must refuse, and gives its one line without the `mvm: `.
fn refusal(args: &[&str]) -> String {
    let output = finish(mvm().args(args));
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{args:?}: {stderr}");
    assert_eq!(text(&output.stdout), "", "{args:?}");
    let line = stderr.strip_suffix('\n').expect("a whole line");
    assert!(!line.contains(['\n', '\r']), "{args:?}: {stderr}");
    let line = line.strip_prefix("mvm: ").expect("the line says who");
    line.to_owned()
}

/// The line must have all of these in it.
fn refused(args: &[&str], parts: &[&str]) {
    let line = refusal(args);
    for part in parts {
        assert!(line.contains(part), "{args:?}: no '{part}' in '{line}'");
    }
}

#[test]
fn arguments_that_mean_nothing() {
    for (args, parts) in [
        (&[][..], &["no kernel given", "--kernel"][..]),
        (&["--frob"], &["unknown option --frob", "mvm --help"]),
        (&["--kernal", "x"], &["--kernal", "did you mean --kernel?"]),
        (&["--kernel"], &["--kernel needs a value"]),
        (&["vmlinux"], &["'vmlinux'", "--kernel"]),
        (&["doctor", "--frob"], &["unknown option --frob"]),
        (&["--cpus", "2", "doctor"], &["'doctor'"]),
    ] {
        refused(args, parts);
    }
}

#[test]
fn values_that_mean_nothing() {
    for (option, value, parts) in [
        ("--mem", "lots", &["--mem lots", "256M"][..]),
        ("--mem", "16M", &["16M of memory is too little", "32M"]),
        ("--mem", "40961K", &["whole number of 4K pages"]),
        ("--mem", "99999999T", &["too large"]),
        ("--cpus", "0", &["0 vCPUs", "1 to 254"]),
        ("--cpus", "two", &["--cpus two"]),
        ("--cpus", "300", &["--cpus 300"]),
        ("--timeout", "soon", &["--timeout soon", "60s"]),
        ("--timeout", "0s", &["leaves no time"]),
        (
            "--disk",
            "a.img,rw",
            &["'rw'", "did you mean 'ro'", "known keys: ro, serial"],
        ),
        ("--disk", ",ro", &["empty part"]),
        ("--rootfs", "", &["path is empty"]),
        ("--disk", "a,serial=123456789012345678901", &["21 bytes"]),
        (
            "--expect",
            "a(b",
            &[
                "--expect a(b",
                "not a regular expression",
                "found open group",
            ],
        ),
        ("--fail-on", "", &["--fail-on", "empty pattern"]),
        (
            "--report",
            "out.txt",
            &["--report out.txt", ".json", ".xml (JUnit)"],
        ),
        (
            "--report",
            "no/such/dir/out.xml",
            &["the report no/such/dir/out.xml", "No such file"],
        ),
        ("--boot-chart", "a.png", &["--boot-chart a.png", ".svg"]),
        (
            "--boot-chart",
            "no/such/dir/a.svg",
            &["the boot chart no/such/dir/a.svg", "No such file"],
        ),
        (
            "--kernel-errors",
            "maybe",
            &["--kernel-errors maybe", "fatal"],
        ),
        ("--log-level", "loud", &["--log-level loud", "warn"]),
        (
            "--log-file",
            "no/such/dir/log",
            &["log file no/such/dir/log", "No such file"],
        ),
        ("--append", "a\nb", &["control character '\\n'"]),
        ("--console", "printer", &["printer", "stdio"]),
        ("--vsock", "cid=2,uds=v", &["'2'", "cid from 3"]),
        ("--vsock", "cid=4294967295,uds=v", &["'4294967295'"]),
        ("--vsock", "cid=guest,uds=v", &["'guest'", "cid from 3"]),
        ("--vsock", "cid=3", &["lacks its uds", "cid=3,uds=PATH"]),
        ("--vsock", "uds=v", &["lacks its cid", "cid=3,uds=PATH"]),
        ("--vsock", "cid=3,uds=", &["path", "empty"]),
        ("--net", "mtu=1500", &["tap=NAME", "exactly one"]),
        ("--net", "tap=a/b", &["'a/b' is not a tap's name"]),
        ("--net", "tap=t,mac=01:00:00:00:00:00", &["multicast"]),
        ("--net", "tap=t,mac=00:00:00:00:00:00", &["no card's"]),
        (
            "--net",
            "tap=t,mac=02-00",
            &["'02-00' is not a MAC address"],
        ),
        ("--net", "tap=t,mtu=0", &["'0'", "68 to 65521"]),
        ("--net", "tap=t,queues=32", &["'32'", "1 to 31"]),
        ("--net", "tap=t,queues=two", &["'two'", "1 to 31"]),
        ("--net", "fd=three", &["'three'", "fd=3"]),
        ("--net", "fd=3,queues=2", &["as many queue pairs as"]),
    ] {
        refused(&["--kernel", "vmlinux", option, value], parts);
    }
    let stops = ["--kernel", "vmlinux", "--disk", "a.img,on-error=stop"];
    refused(&stops, &["disk a.img", "only --api PATH can resume it"]);
    let two_cpus = ["--kernel", "vmlinux", "--no-acpi", "--cpus", "2"];
    refused(&two_cpus, &["without ACPI"]);
    for (one, other, parts) in [
        ("tap=t0", "tap=t0", &["tap t0 is given twice"][..]),
        ("fd=3", "fd=4:3", &["descriptor 3 is given twice"]),
        (
            "tap=t0,mac=02:00:00:00:00:01",
            "tap=t1,mac=02:00:00:00:00:01",
            &["02:00:00:00:00:01 is given twice"],
        ),
    ] {
        refused(
            &["--kernel", "vmlinux", "--net", one, "--net", other],
            parts,
        );
    }
}

#[test]
fn configuration_files_that_are_none() {
    let files = Files::new();
    refused(
        &["--config", "no/such.toml"],
        &["configuration file no/such.toml", "No such file"],
    );
    for (name, content, parts) in [
        (
            "unknown.toml",
            "kernel = 'a'\nkernal = 'b'",
            &["line 2", "`kernal`"][..],
        ),
        ("broken.toml", "kernel = ", &["line 1"]),
        ("broken.json", "{ \"kernel\": ", &["line 1"]),
        (
            "value.toml",
            "mem = '1X'",
            &["line 1", "'1X' is not a size"],
        ),
        ("silent.toml", "cpus = 1", &["no kernel given"]),
    ] {
        let path = files.file(name, content.as_bytes());
        refused(&["--config", arg(&path)], parts);
    }
}

#[test]
fn kernels_that_are_none() {
    if !has_kvm() {
        return;
    }
    let files = Files::new();
    let whole = common::elf(SPIN);
    for (name, content) in [
        ("empty", &b""[..]),
        ("text", b"#!/bin/sh\necho not a kernel\n"),
        ("short", &whole[..100]),
        ("cut", &whole[..whole.len() - 1]),
    ] {
        let path = files.file(name, content);
        refused(&["--kernel", arg(&path)], &[arg(&path)]);
    }
    refused(
        &["--kernel", "no/such/kernel"],
        &["no/such/kernel", "No such file"],
    );
    let directory = files.path("");
    refused(&["--kernel", arg(&directory)], &[arg(&directory)]);
}

#[test]
fn what_does_not_fit() {
    if !has_kvm() {
        return;
    }
    let files = Files::new();
    let kernel = files.kernel(SPIN);
    let kernel = arg(&kernel);
    let initrd = files.zeroes("initrd", 64 << 20);
    refused(
        &["--kernel", kernel, "--initrd", arg(&initrd), "--mem", "32M"],
        &["32 MiB of memory", "initrd", "at least"],
    );
    refused(
        &["--kernel", kernel, "--initrd", "no/such/initrd"],
        &["no/such/initrd", "No such file"],
    );
    let long = "x".repeat(5000);
    refused(&["--kernel", kernel, "--append", &long], &["command line"]);
}

#[test]
fn disks_that_are_none() {
    if !has_kvm() {
        return;
    }
    let files = Files::new();
    let kernel = files.kernel(SPIN);
    let kernel = arg(&kernel);
    refused(
        &["--kernel", kernel, "--rootfs", "no/such.img"],
        &["no/such.img", "no such file"],
    );
    let odd = files.zeroes("odd.img", 1000);
    refused(
        &["--kernel", kernel, "--disk", arg(&odd)],
        &[arg(&odd), "512"],
    );
    let directory = files.path("");
    refused(
        &["--kernel", kernel, "--disk", arg(&directory)],
        &[arg(&directory)],
    );
    let image = files.zeroes("disk.img", 1 << 20);
    refused(
        &[
            "--kernel",
            kernel,
            "--disk",
            arg(&image),
            "--rootfs",
            arg(&image),
        ],
        &[arg(&image), "twice"],
    );
    let held = std::fs::File::open(&image).unwrap();
    held.lock().unwrap();
    refused(
        &["--kernel", kernel, "--disk", arg(&image)],
        &[arg(&image), "in use by another VM"],
    );
}

#[test]
fn vsock_paths_that_can_be_none() {
    let files = Files::new();
    let vsock = |path: &str| {
        let value = format!("cid=3,uds={path}");
        refusal(&["--kernel", "vmlinux", "--vsock", &value])
    };
    let there = files.file("there", b"precious");
    let line = vsock(arg(&there));
    assert!(line.contains("exists already; remove it"), "{line}");
    assert!(line.contains(arg(&there)), "{line}");
    assert_eq!(std::fs::read(&there).unwrap(), b"precious");
    let line = vsock(arg(&files.path("no/v")));
    assert!(line.contains("there is no folder"), "{line}");
    // Long enough for the path, but not with a port behind it.
    let line = vsock(&format!("/tmp/{}", "x".repeat(95)));
    assert!(
        line.contains("100 bytes") && line.contains("at most 96"),
        "{line}"
    );
    // Whatever else is wrong, no socket stays behind.
    let path = files.path("v");
    vsock(arg(&path));
    assert!(!path.exists());
}

#[test]
fn user_mode_networks_that_cannot_be() {
    for (net, parts) in [
        ("user,tap=t", &["exactly one"][..]),
        ("user,queues=2", &["one queue pair"]),
        ("user,publish=80", &["'80'", "[ADDR:]HOST:GUEST[/udp]"]),
        ("user,publish=::1:80:80", &["IPv6 in brackets"]),
        ("user,publish=80:0", &["1 to 65535"]),
        ("user,publish=80:80,publish=80:81", &["80/tcp", "twice"]),
        ("tap=t,publish=80:80", &["are for user"]),
        ("user,host-lopback", &["did you mean 'host-loopback'?"]),
    ] {
        refused(&["--kernel", "vmlinux", "--net", net], parts);
    }
}

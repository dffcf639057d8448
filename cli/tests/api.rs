//! Control from outside, on a real KVM: every resource, with a guest that only spins, and `mvm ctl`.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::thread;
use std::time::Duration;

use common::{Files, Running, SPIN, arg, finish, has_kvm, mvm, text};
use rustix::process::Signal;
use serde_json::{Value, json};

/// A VM that spins, and its socket.
struct Vm {
    running: Running,
    socket: PathBuf,
    _files: Files,
}

impl Vm {
    fn start(options: &[&str]) -> Self {
        let files = Files::new();
        let socket = files.path("api");
        let mut command = mvm();
        command
            .args(["--kernel", arg(&files.kernel(SPIN)), "--api", arg(&socket)])
            .args(options);
        let running = Running::start(&mut command);
        // The file is there a moment before somebody listens.
        common::until("the socket", || UnixStream::connect(&socket).is_ok());
        Self {
            running,
            socket,
            _files: files,
        }
    }

    /// The status and the JSON of the reply, if it has any.
    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let len = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {len}\r\n\r\n{body}"
        )
        .unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").expect("a reply");
        let status = head.split(' ').nth(1).expect("a status");
        let body = match body {
            "" => Value::Null,
            body => serde_json::from_str(body).expect("JSON"),
        };
        (status.parse().expect("a number"), body)
    }

    fn get(&self, path: &str) -> Value {
        let (status, body) = self.ask("GET", path, "");
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    fn ctl(&self, args: &[&str]) -> Output {
        ctl(&self.socket, args)
    }
}

fn ctl(socket: &Path, args: &[&str]) -> Output {
    finish(mvm().arg("ctl").arg(socket).args(args))
}

/// Fails unless it succeeded; what it printed.
fn shown(output: Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(text(&output.stderr), "");
    text(&output.stdout).to_owned()
}

/// Fails unless it failed; its one line.
fn refused(output: Output) -> String {
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert_eq!(text(&output.stdout), "");
    let line = text(&output.stderr).to_owned();
    assert_eq!(line.lines().count(), 1, "{line}");
    line
}

#[test]
fn every_resource_does_its_work() {
    if !has_kvm() {
        return;
    }
    let mut vm = Vm::start(&["--mem", "64M", "--balloon", "size=16M,deflate-on-oom=off"]);
    let info = vm.get("/");
    assert_eq!(info["state"], "Running");
    assert_eq!(info["id"], format!("mvm-{}", vm.running.0.id()));
    assert_eq!(info["vmm_version"], env!("CARGO_PKG_VERSION"));
    let config = vm.get("/vm/config");
    assert_eq!(config["mem"], "64M");
    assert_eq!(config["balloon"]["size"], "16M");
    assert_eq!(vm.get("/vm"), config);

    let mut balloon = json!({
        "amount_mib": 16,
        "actual_mib": 0,
        "deflate_on_oom": false,
        "free_page_reporting": true,
        "stats_polling_interval_s": 0,
    });
    assert_eq!(vm.get("/balloon"), balloon);
    let done = (204, Value::Null);
    assert_eq!(vm.ask("PATCH", "/balloon", "{\"amount_mib\": 32}"), done);
    let interval = "{\"stats_polling_interval_s\": 5}";
    assert_eq!(vm.ask("PATCH", "/balloon/statistics", interval), done);
    balloon["amount_mib"] = 32.into();
    balloon["stats_polling_interval_s"] = 5.into();
    assert_eq!(vm.get("/balloon"), balloon);
    // This guest tells nothing.
    let sizes = json!({
        "target_pages": 8192, "actual_pages": 0, "target_mib": 32, "actual_mib": 0,
    });
    assert_eq!(vm.get("/balloon/statistics"), sizes);
    let halt = "{\"action_type\": \"SendCtrlAltDel\"}";
    assert_eq!(vm.ask("PUT", "/actions", halt), done);
    assert_eq!(vm.get("/")["state"], "Running", "the guest does not listen");
    let halt = "{\"action_type\": \"InstanceHalt\"}";
    assert_eq!(vm.ask("PUT", "/actions", halt), done);
    assert_eq!(vm.running.wait().code(), Some(0));
    assert!(!vm.socket.exists(), "the socket is left behind");
}

#[test]
fn limits_are_shown_and_changed() {
    if !has_kvm() {
        return;
    }
    let files = Files::new();
    let image = files.path("disk.img");
    std::fs::write(&image, [0; 4096]).unwrap();
    let limited = format!("{},bps=10M,iops=100,burst=2M", arg(&image));
    let vm = Vm::start(&["--disk", &limited]);
    let config = vm.get("/vm/config");
    assert_eq!(config["disk"][0]["bps"], "10M");

    let limits = json!({ "bps": "10M", "iops": 100, "burst": "2M" });
    assert_eq!(vm.get("/drives/0")["rate_limiter"], limits);
    assert_eq!(vm.get("/entropy"), json!({ "rate_limiter": {} }));
    let done = (204, Value::Null);
    let limit = "{\"rate_limiter\": {\"bps\": 65536}}";
    assert_eq!(vm.ask("PATCH", "/entropy", limit), done);
    assert_eq!(vm.get("/entropy")["rate_limiter"]["bps"], "64K");
    assert_eq!(vm.ask("PATCH", "/drives/0", "{\"rate_limiter\": {}}"), done);
    assert_eq!(vm.get("/drives/0")["rate_limiter"], json!({}));
    for (path, body, status, words) in [
        ("/entropy", "{}", 400, "missing field `rate_limiter`"),
        (
            "/drives/0",
            "{\"rate_limiter\": {\"bps\": 0}}",
            400,
            "bps=0 is no rate",
        ),
        (
            "/drives/0",
            "{\"rate_limiter\": {\"bandwidth\": {}}}",
            400,
            "unknown field `bandwidth`",
        ),
        (
            "/drives/1",
            limit,
            404,
            "there is no drive 1; there are 0 to 0",
        ),
        ("/drives/vda", limit, 404, "there is no drive vda"),
        ("/network-interfaces/0", limit, 404, "there are none"),
    ] {
        let (got, reply) = vm.ask("PATCH", path, body);
        assert_eq!(got, status, "{reply}");
        let message = reply["fault_message"].as_str().unwrap();
        assert!(message.contains(words), "{message}");
    }

    assert_eq!(shown_by(&vm, "disk0"), "none\n");
    assert_eq!(shown(vm.ctl(&["limit", "disk0", "iops=50"])), "");
    assert_eq!(shown_by(&vm, "disk0"), "iops=50,burst=5\n");
    assert_eq!(shown(vm.ctl(&["limit", "rng", "none"])), "");
    assert_eq!(shown_by(&vm, "rng"), "none\n");
    for (words, reason) in [
        (["limit", "disk1", "none"], "there is no drive 1"),
        (["limit", "net0", "none"], "there is no network interface 0"),
        (["limit", "sda", "none"], "none of disk0"),
        (["limit", "disk0", "bps=0"], "bps=0 is no rate"),
    ] {
        let line = refused(vm.ctl(&words));
        assert!(line.contains(reason), "{line}");
    }
}

fn shown_by(vm: &Vm, device: &str) -> String {
    shown(vm.ctl(&["limit", device]))
}

#[test]
fn what_cannot_be_done_is_refused_with_a_reason() {
    if !has_kvm() {
        return;
    }
    let vm = Vm::start(&["--mem", "64M"]);
    for (method, path, body, status, words) in [
        ("GET", "/nothing", "", 404, "there is no /nothing"),
        (
            "PUT",
            "/balloon",
            "{}",
            405,
            "/balloon knows only GET, PATCH",
        ),
        ("PATCH", "/balloon", "", 400, "the body does not fit: EOF"),
        ("PATCH", "/balloon", "{", 400, "the body does not fit: EOF"),
        ("PATCH", "/balloon", "{\"amount_mib\": -1}", 400, "-1"),
        (
            "PATCH",
            "/balloon",
            "{\"amount\": 1}",
            400,
            "unknown field `amount`",
        ),
        (
            "PATCH",
            "/balloon",
            "{\"amount_mib\": 64}",
            400,
            "a balloon of 64 MiB takes all of the guest's 64 MiB of memory",
        ),
        (
            "PATCH",
            "/balloon/statistics",
            "{\"stats_polling_interval_s\": 65536}",
            400,
            "65536",
        ),
        (
            "PUT",
            "/actions",
            "{\"action_type\": \"Dance\"}",
            400,
            "unknown variant `Dance`",
        ),
    ] {
        let (got, reply) = vm.ask(method, path, body);
        let message = reply["fault_message"].as_str().expect("a message");
        assert_eq!(got, status, "{method} {path} {body}: {message}");
        assert!(message.contains(words), "{method} {path} {body}: {message}");
    }
    assert_eq!(vm.get("/balloon")["amount_mib"], 0);
}

#[test]
fn what_a_vm_does_not_have_is_absent() {
    if !has_kvm() {
        return;
    }
    let vm = Vm::start(&["--balloon", "off", "--no-acpi"]);
    for path in ["/balloon", "/balloon/statistics"] {
        let (status, reply) = vm.ask("GET", path, "");
        assert_eq!(status, 404, "{reply}");
    }
    let button = "{\"action_type\": \"SendCtrlAltDel\"}";
    assert_eq!(vm.ask("PUT", "/actions", button).0, 400);
    assert!(shown(vm.ctl(&["status"])).ends_with("balloon: none\n"));
    let line = refused(vm.ctl(&["power-button"]));
    assert!(
        line.contains("a VM without ACPI has no power button"),
        "{line}"
    );
    let line = refused(vm.ctl(&["balloon", "1M"]));
    assert!(line.contains("started without a balloon"), "{line}");
}

#[test]
fn ctl_is_a_client() {
    if !has_kvm() {
        return;
    }
    let mut vm = Vm::start(&["--mem", "64M"]);
    let status = shown(vm.ctl(&["status"]));
    assert!(status.starts_with("state: Running\nid: mvm-"), "{status}");
    assert_eq!(shown(vm.ctl(&["balloon", "24M"])), "");
    assert_eq!(
        shown(vm.ctl(&["balloon"])),
        "balloon: 0B of 24M asked for\n"
    );
    let figures = shown(vm.ctl(&["statistics"]));
    assert!(figures.contains("target_mib: 24\n"), "{figures}");
    let whole = shown(vm.ctl(&["request", "GET", "/balloon"]));
    let whole: Value = serde_json::from_str(&whole).expect("JSON");
    assert_eq!(whole["amount_mib"], 24);
    shown(vm.ctl(&["request", "PATCH", "/balloon", "{\"amount_mib\": 1}"]));
    assert_eq!(shown(vm.ctl(&["balloon"])), "balloon: 0B of 1M asked for\n");
    for (args, words) in [
        (&["balloon", "64M"][..], "takes all of the guest's 64 MiB"),
        (&["balloon", "1K"], "in whole MiB; 1K is not"),
        (&["balloon", "1X"], "'1X' is not a size"),
        (&["request", "GET", "/x"], "there is no /x (status 404)"),
        (&["dance"], "dance"),
        (&["request", "GET"], "missing: <PATH>"),
        (&[], "needs a socket and a command"),
    ] {
        let line = refused(vm.ctl(args));
        assert!(line.contains(words), "{line}");
    }
    shown(vm.ctl(&["power-button"]));
    shown(vm.ctl(&["stop"]));
    assert_eq!(vm.running.wait().code(), Some(0));
    let line = refused(vm.ctl(&["status"]));
    assert!(line.contains("there is no socket"), "{line}");
}

/// As far as they go without a driver in the guest.
#[test]
fn disks_are_shown_and_changed() {
    if !has_kvm() {
        return;
    }
    let files = Files::new();
    let path = |name: &str, bytes: u64| {
        let image = files.path(name);
        let file = std::fs::File::create(&image).unwrap();
        file.set_len(bytes).unwrap();
        image
    };
    let (first, second) = (path("first.img", 1 << 20), path("second.img", 2 << 20));
    let read_only = format!("{},ro,serial=fixed", arg(&second));
    let vm = Vm::start(&[
        "--disk",
        &format!("{},on-error=stop,queues=2", arg(&first)),
        "--disk",
        &read_only,
    ]);
    let drive = json!({
        "drive_id": "first.img", "is_read_only": false, "size_bytes": 1 << 20, "state": "Running",
        "trouble": null, "rate_limiter": {},
    });
    assert_eq!(vm.get("/drives/0"), drive);
    let config = vm.get("/vm/config");
    assert_eq!(config["disk"][0]["on-error"], "stop");
    assert_eq!(config["disk"][0]["queues"], 2);
    let disk = |args: &[&str]| shown(vm.ctl(&[&["disk", "disk0"], args].concat()));
    assert_eq!(disk(&["pause"]), "");
    let paused = "id: first.img\nstate: Paused\nsize: 1M\nread-only: false\n";
    assert_eq!(disk(&[]), paused);
    assert_eq!(disk(&["resize", "3M"]), "");
    assert_eq!(first.metadata().unwrap().len(), 3 << 20);
    std::fs::File::options()
        .write(true)
        .open(&first)
        .unwrap()
        .set_len(5 << 20)
        .unwrap();
    assert_eq!(disk(&["resize"]), "");
    assert_eq!(disk(&["resume"]), "");
    assert_eq!(vm.get("/drives/0")["size_bytes"], 5 << 20);
    assert_eq!(disk(&["flush"]), "");
    assert_eq!(disk(&["statistics"]), "");
    let read = vm.get("/drives/0/statistics")["read"].clone();
    assert_eq!((&read["requests"], &read["errors"]), (&json!(0), &json!(0)));
    let third = path("third.img", 4096);
    assert_eq!(disk(&["swap", arg(&third)]), "");
    assert_eq!(vm.get("/drives/0")["size_bytes"], 4096);
    for (args, words) in [
        (&["disk0", "swap", "/no/such.img"][..], "no such file"),
        (
            &["disk0", "swap", arg(&third)],
            "is in use by another VM or disk",
        ),
        (
            &["disk0", "swap", arg(&second)],
            "is in use by another VM or disk",
        ),
        (
            &["disk0", "resize", "1000B"],
            "1000 bytes, only a multiple of 512",
        ),
        (&["disk1", "resize", "4M"], "it is read-only"),
        (&["disk2"], "there is no drive 2; there are 0 to 1"),
        (&["net0"], "it is none of disk0"),
    ] {
        let line = refused(vm.ctl(&[&["disk"], args].concat()));
        assert!(line.contains(words), "{line}");
    }
    let both = "{\"size\": \"4M\", \"state\": \"Paused\"}";
    for body in ["{}", both, "{\"size\": \"4X\"}", "{\"path_on_host\": 7}"] {
        assert_eq!(vm.ask("PATCH", "/drives/0", body).0, 400, "{body}");
    }
    assert_eq!(vm.get("/drives/0")["size_bytes"], 4096);
    assert_eq!(third.metadata().unwrap().len(), 4096);
}

#[test]
fn a_paused_vm_is_controlled_and_ended_like_any_other() {
    if !has_kvm() {
        return;
    }
    let mut vm = Vm::start(&["--mem", "64M"]);
    let state = |vm: &Vm| vm.get("/")["state"].clone();
    let (pause, resume) = ("{\"state\": \"Paused\"}", "{\"state\": \"Resumed\"}");
    let done = (204, Value::Null);
    assert_eq!(vm.ask("PATCH", "/vm", resume), done, "it runs already");
    assert_eq!(state(&vm), "Running");
    assert_eq!(vm.ask("PATCH", "/vm", pause), done);
    assert_eq!(vm.ask("PATCH", "/vm", pause), done);
    assert_eq!(state(&vm), "Paused");
    assert_eq!(vm.ask("PATCH", "/vm", "{\"state\": \"Gone\"}").0, 400);
    assert_eq!(vm.ask("PATCH", "/balloon", "{\"amount_mib\": 8}"), done);
    shown(vm.ctl(&["resume"]));
    assert_eq!(state(&vm), "Running");
    shown(vm.ctl(&["pause"]));
    assert!(shown(vm.ctl(&["status"])).starts_with("state: Paused\n"));
    // The first signal is kept for the guest, the second ends the VM.
    vm.running.signal(Signal::TERM);
    let mut line = String::new();
    let mut stderr = BufReader::new(vm.running.0.stderr.take().unwrap());
    stderr.read_line(&mut line).unwrap();
    assert_eq!(
        line,
        "mvm: SIGTERM: pressed the guest's power button, which it sees when it is resumed: it is paused; a second signal ends the VM\n"
    );
    vm.running.signal(Signal::TERM);
    assert_eq!(vm.running.wait().code(), Some(143));
    // Time limits do not wait.
    let mut vm = Vm::start(&["--timeout", "5s"]);
    shown(vm.ctl(&["pause"]));
    assert_eq!(vm.running.wait().code(), Some(124));
}

#[test]
fn ctl_says_what_is_wrong_with_a_socket() {
    let files = Files::new();
    let socket = files.path("socket");
    drop(UnixListener::bind(&socket).unwrap());
    let line = refused(ctl(&socket, &["status"]));
    assert!(line.contains("no VM listens on"), "{line}");
    std::fs::remove_file(&socket).unwrap();
    // Something else listens there.
    let listener = UnixListener::bind(&socket).unwrap();
    let other = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"220 mail\r\n").unwrap();
    });
    let line = refused(ctl(&socket, &["status"]));
    assert!(line.contains("is not mvm's API"), "{line}");
    other.join().unwrap();
    let line = refused(finish(mvm().arg("ctl")));
    assert!(line.contains("needs a socket and a command"), "{line}");
}

#[test]
fn sockets_that_cannot_be_are_refused_before_anything_runs() {
    let files = Files::new();
    let there = files.file("there", b"precious");
    let long = files.path(&"x".repeat(120));
    for (path, words) in [
        (there.clone(), "exists already; remove it"),
        (files.path("no/such"), "there is no folder"),
        (long, "at most 107 are possible"),
        (there.join("x"), "cannot be made: Not a directory"),
    ] {
        let kernel = files.kernel(SPIN);
        let mut command = mvm();
        command.args(["--kernel", arg(&kernel), "--api", arg(&path)]);
        let line = refused(finish(command.stdin(Stdio::null())));
        assert!(line.contains("API socket "), "{line}");
        assert!(line.contains(words), "{line}");
    }
    assert_eq!(std::fs::read(&there).unwrap(), b"precious");
}

#[test]
fn two_vms_do_not_share_a_socket() {
    if !has_kvm() {
        return;
    }
    let vm = Vm::start(&[]);
    let files = Files::new();
    let kernel = files.kernel(SPIN);
    let line = refused(finish(mvm().args([
        "--kernel",
        arg(&kernel),
        "--api",
        arg(&vm.socket),
    ])));
    assert!(line.contains("exists already"), "{line}");
    assert_eq!(vm.get("/")["state"], "Running");
}

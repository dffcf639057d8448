//! Both kinds of host peers, with the test in the device's place.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::thread;

use devices::virtio::vsock::VsockHost;
use tempfile::TempDir;

use super::*;

const SOON: Duration = Duration::from_secs(60);

fn in_process() -> (Vsock, Host) {
    let exchange = Exchange::new().unwrap();
    let host = Host::new(exchange.clone(), None);
    (Vsock { exchange }, host)
}

fn with_files() -> (TempDir, PathBuf, Vsock, Host) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("v");
    let files = Files::listen(&path).unwrap();
    let exchange = Exchange::new().unwrap();
    let host = Host::new(exchange.clone(), Some(files));
    (directory, path, Vsock { exchange }, host)
}

/// The line that the caller says.
fn line(stream: &mut UnixStream) -> String {
    let mut line = String::new();
    while !line.ends_with('\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        line.push(char::from(byte[0]));
    }
    line
}

/// Waits for a caller as the device does.
fn accept(host: &mut Host) -> UnixStream {
    loop {
        match host.accept() {
            Ok(stream) => return stream,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_guest_reaches_a_listener_here() {
    let (vsock, mut host) = in_process();
    let refused = host.connect(1024).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    let listener = vsock.listen(1024).unwrap();
    assert_eq!(listener.port(), 1024);
    let mut guest = host.connect(1024).unwrap();
    let mut ours = listener.accept(Some(SOON)).unwrap();
    guest.write_all(b"hello").unwrap();
    let mut heard = [0; 5];
    ours.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"hello");
    assert!(matches!(
        listener.accept(Some(Duration::ZERO)),
        Err(VsockError::TimedOut(1024))
    ));
    assert!(matches!(vsock.listen(1024), Err(VsockError::InUse(1024))));
    drop(listener);
    assert!(host.connect(1024).is_err());
    vsock.listen(1024).unwrap();
}

#[test]
fn a_listener_that_accepts_nobody_has_no_time_for_more() {
    let (vsock, mut host) = in_process();
    let listener = vsock.listen(1).unwrap();
    let waiting: Vec<_> = (0..64).map(|_| host.connect(1).unwrap()).collect();
    assert_eq!(host.connect(1).unwrap_err().kind(), ErrorKind::WouldBlock);
    listener.accept(None).unwrap();
    host.connect(1).unwrap();
    drop(waiting);
}

#[test]
fn this_process_reaches_the_guest() {
    let (vsock, mut host) = in_process();
    let caller = thread::spawn(move || vsock.connect(22, SOON));
    let mut guest = accept(&mut host);
    assert_eq!(line(&mut guest), "CONNECT 22\n");
    guest.write_all(b"OK 1073741824\nwelcome").unwrap();
    let mut stream = caller.join().unwrap().unwrap();
    let mut heard = [0; 7];
    stream.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"welcome");
    assert_eq!(stream.read_timeout().unwrap(), None);
}

#[test]
fn a_guest_may_refuse_or_stay_silent() {
    let (vsock, mut host) = in_process();
    let caller = vsock.clone();
    let caller = thread::spawn(move || caller.connect(22, SOON));
    drop(accept(&mut host));
    assert!(matches!(
        caller.join().unwrap(),
        Err(VsockError::Refused(22))
    ));
    let silent = vsock.connect(22, Duration::ZERO);
    assert!(matches!(silent, Err(VsockError::TimedOut(22))));
    // The call is taken back, and the door is closed behind it.
    assert_eq!(host.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    assert!(!is_readable(host.doors()[0]));
}

#[test]
fn whoever_waits_learns_that_the_vm_is_over() {
    let (vsock, mut host) = in_process();
    let listener = vsock.listen(1).unwrap();
    let waiting = thread::spawn(move || listener.accept(None));
    let caller = vsock.clone();
    let caller = thread::spawn(move || caller.connect(2, SOON));
    let guest = accept(&mut host);
    drop(host);
    drop(guest);
    for result in [waiting.join().unwrap(), caller.join().unwrap()] {
        assert!(matches!(result, Err(VsockError::Over)));
    }
    assert!(matches!(vsock.listen(3), Err(VsockError::Over)));
    assert!(matches!(vsock.connect(3, SOON), Err(VsockError::Over)));
}

#[test]
fn a_guest_reaches_programs_by_port() {
    let (_directory, path, vsock, mut host) = with_files();
    let at = |port: u32| PathBuf::from(format!("{}_{port}", path.display()));
    assert!(host.connect(52).is_err());
    let program = UnixListener::bind(at(52)).unwrap();
    let _guest = host.connect(52).unwrap();
    program.accept().unwrap();
    // A file that is no socket, and a socket that nobody listens at.
    fs::write(at(53), "").unwrap();
    assert!(host.connect(53).is_err());
    drop(program);
    assert!(host.connect(52).is_err());
    // This process comes first.
    let _program = UnixListener::bind(at(54)).unwrap();
    let listener = vsock.listen(54).unwrap();
    let _guest = host.connect(54).unwrap();
    listener.accept(Some(Duration::ZERO)).unwrap();
    assert!(host.connect(u32::MAX).is_err());
}

#[test]
fn a_program_with_too_many_callers_has_no_time() {
    let (_directory, path, _vsock, mut host) = with_files();
    let program = UnixListener::bind(format!("{}_7", path.display())).unwrap();
    rustix::net::listen(&program, 1).unwrap();
    let mut connected = Vec::new();
    let error = loop {
        match host.connect(7) {
            Ok(stream) => connected.push(stream),
            Err(error) => break error,
        }
        assert!(connected.len() < 100);
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
}

#[test]
fn programs_and_this_process_come_through_doors_of_their_own() {
    let (_directory, path, vsock, mut host) = with_files();
    let mut program = UnixStream::connect(&path).unwrap();
    program.write_all(b"CONNECT 1\n").unwrap();
    assert!(is_readable(host.doors()[1]) && !is_readable(host.doors()[0]));
    let caller = thread::spawn(move || vsock.connect(2, SOON));
    let mut lines = [0, 1].map(|_| line(&mut accept(&mut host)));
    lines.sort();
    assert_eq!(lines, ["CONNECT 1\n", "CONNECT 2\n"]);
    assert!(caller.join().unwrap().is_err());
    drop(host);
    assert!(!path.exists(), "the socket is removed");
}

fn is_readable(door: std::os::fd::RawFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    // SAFETY: the host that it is of lives through the call.
    let door = unsafe { std::os::fd::BorrowedFd::borrow_raw(door) };
    let mut polled = [PollFd::from_borrowed_fd(door, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec::default())).unwrap() > 0
}

//! mvm at a terminal: raw while the guest has it, as before however mvm ends, and its own keys.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::thread;

use common::{Files, Running, SHOUT, has_kvm, mvm, text, until};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, OutputModes, tcgetattr};

const PATIENCE: Timespec = Timespec {
    tv_sec: 30,
    tv_nsec: 0,
};

/// mvm on a terminal of its own, and a person at it.
struct Session {
    running: Running,
    /// What the person types and sees.
    person: File,
    /// The terminal itself, kept open to look at its modes.
    terminal: OwnedFd,
    before: String,
    _files: Files,
}

impl Session {
    fn start() -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let person = openpt(flags).unwrap();
        grantpt(&person).unwrap();
        unlockpt(&person).unwrap();
        let name = ptsname(&person, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let terminal = open(name, flags, Mode::empty()).unwrap();
        let before = modes(&terminal);
        let files = Files::new();
        let end = || Stdio::from(terminal.try_clone().unwrap());
        let mut command = mvm();
        command
            .arg("--kernel")
            .arg(files.kernel(SHOUT))
            .stdin(end())
            .stdout(end())
            .stderr(end());
        let running = Running::start(&mut command);
        let mut session = Self {
            running,
            person: File::from(person),
            terminal,
            before,
            _files: files,
        };
        // The guest's prompt: it runs, so the terminal is its.
        session.see(">");
        assert!(session.is_raw());
        session
    }

    fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.terminal).unwrap();
        !modes
            .local_modes
            .intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
            && !modes.output_modes.contains(OutputModes::OPOST)
    }

    fn is_as_before(&self) -> bool {
        modes(&self.terminal) == self.before
    }

    fn type_in(&mut self, keys: &str) {
        self.person.write_all(keys.as_bytes()).unwrap();
    }

    /// Reads what is shown up to and including `expected`.
    fn see(&mut self, expected: &str) -> String {
        let mut shown = Vec::new();
        while !shown.ends_with(expected.as_bytes()) {
            let mut byte = [0];
            let mut events = [PollFd::new(&self.person, PollFlags::IN)];
            let ready = poll(&mut events, Some(&PATIENCE)).unwrap();
            assert_eq!(ready, 1, "no '{expected}' after {:?}", text(&shown));
            self.person.read_exact(&mut byte).unwrap();
            shown.push(byte[0]);
        }
        text(&shown).to_owned()
    }

    fn end(mut self) -> Option<i32> {
        // Nothing is to wait for a reader.
        let mut person = self.person.try_clone().unwrap();
        thread::spawn(move || while person.read(&mut [0; 256]).is_ok_and(|len| len > 0) {});
        let status = self.running.wait().code();
        assert!(self.is_as_before(), "the terminal is as it was");
        status
    }
}

fn modes(terminal: &OwnedFd) -> String {
    format!("{:?}", tcgetattr(terminal).unwrap())
}

#[test]
fn the_guest_gets_what_is_typed_and_ctrl_a_x_ends() {
    if !has_kvm() {
        return;
    }
    let mut session = Session::start();
    session.type_in("abc");
    session.see("ABC");
    // In two reads, with an unknown key and a Ctrl-A for the guest between.
    session.type_in("\x01");
    session.type_in("zd");
    assert_eq!(session.see("D"), "D");
    session.type_in("\x01h");
    let help = session.see("send Ctrl-A to the guest\r\n");
    assert!(help.contains("Ctrl-A x       end the VM\r\n"), "{help:?}");
    session.type_in("\x01x");
    assert_eq!(session.end(), Some(0));
}

#[test]
fn signals_leave_the_terminal_as_it_was() {
    if !has_kvm() {
        return;
    }
    for (signals, status) in [
        (&[Signal::HUP][..], 129),
        (&[Signal::TERM, Signal::TERM], 143),
        (&[Signal::INT, Signal::INT], 130),
    ] {
        let mut session = Session::start();
        for (sent, signal) in signals.iter().enumerate() {
            session.running.signal(*signal);
            if sent == 0 && signals.len() > 1 {
                let line = session.see("\n");
                assert!(line.ends_with("\r\n"), "the carriage returns: {line:?}");
            }
        }
        assert_eq!(session.end(), Some(status));
    }
}

#[test]
fn a_stop_gives_the_terminal_back_and_a_continue_takes_it() {
    if !has_kvm() {
        return;
    }
    let mut session = Session::start();
    session.running.signal(Signal::TSTP);
    until("the terminal's return", || session.is_as_before());
    // It stops after that, and a continue that came before would be lost.
    let stat = format!("/proc/{}/stat", session.running.0.id());
    until("mvm's stop", || {
        let stat = std::fs::read_to_string(&stat).unwrap();
        stat.rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with('T'))
    });
    session.running.signal(Signal::CONT);
    until("the terminal's second capture", || session.is_raw());
    session.type_in("ok");
    session.see("OK");
    session.type_in("\x01x");
    assert_eq!(session.end(), Some(0));
}

//! The whole of it, in order; and the loop that carries streams, signals and ends until the command is
//! over.

use alloc::format;
use alloc::vec::Vec;
use core::time::Duration;

use init_lib::frame::VERSION;
use init_lib::spec::{self, key};
use init_lib::{Control, Mux, MuxError};
use rustix::event::{Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::CWD;
use rustix::io::read;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait};
use rustix::time::{ClockId, clock_gettime};

use crate::child::{self, Child, NotStarted};
use crate::modules::{Modules, read_at};
use crate::{Failure, devices, link, mounts, network, sys};

/// A bit for SIGCHLD.
const CHILD_ENDED: u64 = 1 << (17 - 1);
/// How long the host may take to say good-bye.
const FAREWELL: Duration = Duration::from_secs(10);
const SECOND: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// Runs the command of the spec and tells the host how it went.
pub fn run() -> Result<(), Failure> {
    mounts::kernel()?;
    child::occupy_stdio();
    let spec = read_at(CWD, &format!("/{}", spec::SPEC))
        .map_err(|errno| Failure::new("cannot read", spec::SPEC, errno))?;
    let modules = Modules::find();
    if let Some(modules) = &modules {
        modules.serve_kernel();
        devices::load_drivers(modules);
    }
    let mut mux = Mux::new(link::open(&spec)?);
    mux.say(Control::Hello { version: VERSION });
    let ended = prepare(&spec, modules.as_ref(), &mut mux)
        .and_then(|()| command(&spec, &mut mux))
        .unwrap_or_else(|failure| failure);
    mux.say(ended);
    farewell(&mut mux)
}

/// Everything between the channel and the command.
fn prepare(spec: &[u8], modules: Option<&Modules>, mux: &mut Mux) -> Result<(), Control> {
    let failed = |Failure(reason)| Control::Failed {
        status: 125,
        reason: reason.into_bytes(),
    };
    mounts::enter_root(spec, modules).map_err(failed)?;
    // The root file system may have modules where the initramfs has none.
    if modules.is_none()
        && let Some(modules) = Modules::find()
    {
        modules.serve_kernel();
        devices::load_drivers(&modules);
    }
    mounts::system();
    mounts::shares(spec).map_err(failed)?;
    let dhcp = spec::value(spec, key::DHCP).is_some();
    for warning in network::configure(dhcp) {
        mux.say(Control::Warning(warning.into_bytes()));
    }
    Ok(())
}

/// Runs the command to its end; how it ended.
fn command(spec: &[u8], mux: &mut Mux) -> Result<Control, Control> {
    let system = |errno| Control::Failed {
        status: 125,
        reason: format!("no signals for init: {errno}").into_bytes(),
    };
    let signals = sys::signal_fd(CHILD_ENDED).map_err(system)?;
    let child =
        child::start(spec, mux).map_err(|NotStarted { status, reason }| Control::Failed {
            status,
            reason: reason.into_bytes(),
        })?;
    let uptime = u64::try_from(uptime().as_nanos()).unwrap_or(u64::MAX);
    mux.say(Control::Started { uptime });
    Ok(
        carry(&child, mux, &signals).unwrap_or_else(|error| Control::Failed {
            status: 125,
            reason: format!("{error}").into_bytes(),
        }),
    )
}

fn carry(child: &Child, mux: &mut Mux, signals: &OwnedFd) -> Result<Control, MuxError> {
    loop {
        let obey = &mut |control| obey(child, &control);
        let [ended, _] = mux.step(&[signals.as_fd()], None, obey)?;
        if !ended {
            continue;
        }
        let _ = read(signals, &mut [0; 128]);
        if let Some(end) = reap(child.pid) {
            // What it wrote before its end is still to be carried; what its own children go on writing
            // is not waited for.
            while mux.has_input() {
                mux.step(&[], None, &mut |_| ())?;
            }
            mux.end_sources();
            return Ok(end);
        }
    }
}

/// Collects every process that has ended; how the command did, if it is among them.
fn reap(command: Pid) -> Option<Control> {
    let mut end = None;
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if pid == command {
            end = Some(judge(status));
        }
    }
    end
}

fn judge(status: WaitStatus) -> Control {
    let byte = |number: i32| u8::try_from(number).unwrap_or(u8::MAX);
    match (status.exit_status(), status.terminating_signal()) {
        (Some(status), _) => Control::Exited {
            status: byte(status),
        },
        (None, signal) => Control::Killed {
            signal: byte(signal.unwrap_or(0)),
        },
    }
}

fn obey(child: &Child, control: &Control) {
    match control {
        Control::Signal { signal } => {
            if let Some(signal) = Signal::from_named_raw((*signal).into()) {
                // The command's own affair what it passes on to its children.
                let _ = kill_process(child.pid, signal);
            }
        }
        Control::Resize { columns, rows } => {
            if let Some(terminal) = &child.terminal {
                child::resize(terminal, *columns, *rows);
            }
        }
        _ => {}
    }
}

/// Waits until the host has everything: what is still in a queue when the machine is off is lost.
fn farewell(mux: &mut Mux) -> Result<(), Failure> {
    let limit = uptime() + FAREWELL;
    let mut done = false;
    while !done && uptime() < limit {
        let hear = &mut |control| done |= control == Control::Bye;
        match mux.step(&[], Some(&SECOND), hear) {
            Ok(_) => {}
            Err(MuxError::Closed) => return Ok(()),
            Err(error) => return Err(Failure(format!("the channel to the host: {error}"))),
        }
    }
    Ok(())
}

fn uptime() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}

/// Waits.
pub fn sleep(time: Duration) {
    let time = Timespec::try_from(time).unwrap_or_default();
    let _ = poll(&mut Vec::new(), Some(&time));
}

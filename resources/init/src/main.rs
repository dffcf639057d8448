//! mvm's init: the first process of a guest that runs one command for its host.
//!
//! mvm appends it to the initramfs and has the kernel start it (`rdinit=`). It loads the drivers that the
//! devices need, mounts what a process expects, connects to its host, runs the command as its child,
//! carries the command's streams and its end to the host, and powers off. The kernel also calls it, as a
//! process of its own, when it wants a module (`/proc/sys/kernel/modprobe`).
//!
//! Without libc and with one thread; what it says before there is a channel goes to the kernel log.

#![no_std]
#![no_main]

extern crate alloc;

mod child;
mod devices;
mod link;
mod modules;
mod mounts;
mod network;
mod run;
mod sys;

use alloc::format;
use core::ffi::c_char;
use core::panic::PanicInfo;

use alloc::string::String;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::system::{RebootCommand, reboot};

/// Why there is no command: what was being done, on what, and why not.
pub struct Failure(pub String);

impl Failure {
    fn new(what: &str, on: &str, errno: Errno) -> Self {
        Self(format!("{what} {on}: {}", say(errno)))
    }
}

/// The error's usual words, of which there are none without a libc.
fn say(errno: Errno) -> String {
    match errno {
        Errno::NOENT => "no such file or directory".into(),
        Errno::NOTDIR => "not a directory".into(),
        Errno::ACCESS => "permission denied".into(),
        Errno::NOEXEC => "not a program for this machine".into(),
        Errno::ISDIR => "a directory".into(),
        Errno::NOMEM => "not enough memory".into(),
        Errno::TOOBIG => "arguments too long".into(),
        Errno::INVAL => "invalid argument".into(),
        Errno::NODEV => "no such device".into(),
        Errno::NXIO => "no such device or address".into(),
        Errno::IO => "input/output error".into(),
        Errno::ROFS => "read-only file system".into(),
        errno => format!("{errno}"),
    }
}

fn main(args: &[*const c_char]) -> ! {
    if rustix::process::getpid() != rustix::process::Pid::INIT {
        // modprobe -q -- NAME
        let name = sys::arg(args, 3).map_or(&b""[..], |name| name.to_bytes());
        sys::exit(u8::from(!modules::for_kernel(name)));
    }
    if let Err(Failure(reason)) = run::run() {
        log(&reason);
    }
    power_off()
}

/// One line into the kernel log, where the console shows it also if it is quiet.
fn log(text: &str) {
    let Ok(log) = openat(
        CWD,
        "/dev/kmsg",
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    ) else {
        return;
    };
    // "<3>" is KERN_ERR.
    let _ = rustix::io::write(&log, format!("<3>mvm-init: {text}\n").as_bytes());
}

/// Ends the guest, with all that was written on its disks.
fn power_off() -> ! {
    mounts::settle();
    let _ = reboot(RebootCommand::PowerOff);
    // A machine that has no power switch.
    let _ = reboot(RebootCommand::Restart);
    sys::exit(1)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    log(&format!("{info}"));
    if rustix::process::getpid() == rustix::process::Pid::INIT {
        power_off();
    }
    sys::exit(1)
}

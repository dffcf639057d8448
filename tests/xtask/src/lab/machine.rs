//! The software-emulated host: QEMU's TCG with AMD-V, on its smallest machine.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use rustix::io::{FdFlags, fcntl_setfd};

use super::image::Image;
use crate::debian::{self, Program};

/// The emulator and its package.
const QEMU: Program = Program("qemu-system-x86_64", "qemu-system-x86");

/// A CPU that emulates cheaply, and with it AMD-V with nested paging. `max` and `EPYC` have costlier exits, and
/// with the features of `max` both the lab's kernel and guests in it were seen to crash.
const CPU: &str = "qemu64,+svm,+npt";

/// How big the emulated host is.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// CPUs. QEMU 7.2 translates code without holding the lock of its page, so a kernel that patches its own text
    /// on one CPU can leave the others with the breakpoint that it patched over; with guests on two CPUs at once the
    /// emulator itself has been seen to end. One CPU is reliable, and two labs are as fast as one with two CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub mib: u32,
    /// Whether its clock counts instructions.
    pub counts: bool,
}

/// A running lab. Dropped, it is killed.
#[derive(Debug)]
pub struct Machine {
    child: Child,
    console: Option<JoinHandle<()>>,
}

impl Machine {
    /// Starts the emulator; the other end of the lab's port comes with it. The kernel's console is written to `log`.
    pub fn start(image: &Image, size: Size, log: &Path) -> Result<(Self, UnixStream)> {
        debian::require(&[QEMU])?;
        let (port, their_port) = UnixStream::pair()?;
        let (mut console, their_console) = UnixStream::pair()?;
        let mut command = Command::new(QEMU.0);
        command
            .args(["-M", "microvm,acpi=on,isa-serial=on,pit=on,pic=on,rtc=on"])
            .args(["-cpu", CPU])
            .args(match size.counts {
                // Counting wants one thread. Sixteen nanoseconds: as many a second as it about executes.
                true => [
                    "-accel",
                    "tcg,thread=single",
                    "-icount",
                    "shift=4,sleep=off",
                ]
                .as_slice(),
                false => &["-accel", "tcg,thread=multi"],
            })
            .args(["-smp", &size.cpus.to_string(), "-m", &size.mib.to_string()])
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
            ])
            .arg("-kernel")
            .arg(&image.kernel)
            .args(["-initrd", &inherited_path(&image.initrd)?])
            .args(["-append", &kernel_command_line()])
            .args([
                "-chardev",
                &inherited_socket("console", &their_console)?,
                "-serial",
                "chardev:console",
            ])
            .args(["-chardev", &inherited_socket("port", &their_port)?])
            .args(["-device", "virtio-serial-device"])
            .args([
                "-device",
                &format!("virtserialport,chardev=port,name={}", super::wire::PORT),
            ])
            .args(["-device", "virtio-rng-device"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C at the terminal is for this process, which ends the lab in its own way.
            .process_group(0);
        // SAFETY: prctl is a plain system call, which is safe between fork and exec.
        unsafe {
            command.pre_exec(|| {
                rustix::process::set_parent_process_death_signal(Some(
                    rustix::process::Signal::KILL,
                ))?;
                Ok(())
            });
        }
        let mut child = command.spawn().context(QEMU.0)?;
        // Only the emulator may hold its ends, or their closing would never be seen here.
        drop((their_port, their_console));
        let mut log = File::create(log).with_context(|| log.display().to_string())?;
        let mut stderr = child.stderr.take().context("no pipe")?;
        let console = thread::spawn(move || {
            // A log that cannot be written is no reason to stall the lab: read on.
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = console.read(&mut buffer) {
                let _ = log.write_all(&buffer[..count]);
            }
            let _ = std::io::copy(&mut stderr, &mut log);
        });
        let machine = Self {
            child,
            console: Some(console),
        };
        Ok((machine, port))
    }

    /// Waits for the emulator to end and for its console to be written out.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let status = self.child.wait()?;
        if let Some(console) = self.console.take() {
            let _ = console.join();
        }
        Ok(status)
    }

    /// Ends the emulator at once.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.wait();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A path by which the emulator finds a descriptor that it inherits.
fn inherited_path(file: &File) -> Result<String> {
    inherit(file)?;
    Ok(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn inherited_socket(id: &str, socket: &UnixStream) -> Result<String> {
    inherit(socket)?;
    Ok(format!("socket,id={id},fd={}", socket.as_raw_fd()))
}

fn inherit(fd: impl AsFd) -> Result<()> {
    Ok(fcntl_setfd(fd, FdFlags::empty())?)
}

fn kernel_command_line() -> String {
    // The emulated machine has neither HPET nor PM timer, and calibrating the TSC against a PIT that two busy
    // threads emulate sometimes fails, which leaves a kernel without a clock. It is the host's TSC: measure it here.
    let tsc = tsc_khz().map_or(String::new(), |khz| {
        format!(" tsc_early_khz={khz} tsc=reliable")
    });
    format!("console=ttyS0 quiet loglevel=4 panic=-1 reboot=t mitigations=off{tsc}")
}

#[cfg(target_arch = "x86_64")]
fn tsc_khz() -> Option<u64> {
    use std::time::{Duration, Instant};

    // SAFETY: every x86-64 CPU has RDTSC, and Linux lets user space execute it.
    let ticks = || unsafe { core::arch::x86_64::_rdtsc() };
    let (start, before) = (Instant::now(), ticks());
    thread::sleep(Duration::from_millis(50));
    let (took, after) = (start.elapsed(), ticks());
    let micros = u64::try_from(took.as_micros()).ok()?;
    after
        .checked_sub(before)?
        .checked_mul(1000)?
        .checked_div(micros)
}

#[cfg(not(target_arch = "x86_64"))]
fn tsc_khz() -> Option<u64> {
    None
}

//! The settings of a VM: one structure that flags and a configuration file both fill, and how the two
//! become what the library takes.
//!
//! A setting is declared once, in [`Settings`]; the name of its option is its key in the file.

mod command;
mod error;
mod file;
mod forms;
mod level;

use std::path::{Path, PathBuf};

use clap::Args;
use log::LevelFilter;
use serde::{Deserialize, Serialize};
use vmm::config::{
    BalloonConfig, DEFAULT_CMDLINE, DiskConfig, MemorySize, NetConfig, OnError, PmemConfig,
    RngConfig, ShareConfig, VIRTIO_CONSOLE_CMDLINE, VmConfig, VsockConfig,
};
use vmm::console::{ConsoleConfig, ConsoleEnd};

use crate::chart::ChartPath;
use crate::duration::Limit;
use crate::report::ReportPath;
use crate::script::Script;
use crate::watch::{KernelErrors, Pattern, Wanted};
pub use error::SettingsError;
pub use file::FileError;
pub use level::LogLevel;

/// Everything that can be set, none of it required yet.
#[derive(Debug, Default, PartialEq, Eq, Args, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// Kernel: ELF vmlinux, PVH ELF or bzImage, told apart by content
    #[arg(long, value_name = "PATH", help_heading = "Boot")]
    pub kernel: Option<PathBuf>,
    /// Initramfs
    #[arg(long, value_name = "PATH", help_heading = "Boot")]
    pub initrd: Option<PathBuf>,
    /// Replace the default kernel command line
    #[arg(long, value_name = "STRING", help_heading = "Boot", long_help = cmdline_help())]
    pub cmdline: Option<String>,
    /// Extend the kernel command line
    #[arg(long, value_name = "STRING", help_heading = "Boot")]
    pub append: Option<String>,
    /// Number of virtual CPUs [default: 1]
    #[arg(long, value_name = "N", help_heading = "Machine")]
    pub cpus: Option<u8>,
    /// Guest memory with a unit, such as 256M or 4G [default: 256M]
    #[arg(long, value_name = "SIZE", help_heading = "Machine")]
    pub mem: Option<MemorySize>,
    /// Threads that the devices' data paths are spread over [default: 1]
    #[arg(long, value_name = "N", help_heading = "Machine")]
    pub io_threads: Option<u8>,
    /// Give the guest no ACPI tables
    ///
    /// Such a guest is told of its devices on the kernel command line, has one CPU, and no power button.
    #[arg(long, help_heading = "Machine")]
    pub no_acpi: bool,
    /// Try to boot Linux also where KVM interprets guest kernels
    ///
    /// Such a KVM (kvm_pvm) runs a Linux that is made for it, and a stock one dies there after seconds, so
    /// Linux is refused without this.
    #[arg(long, help_heading = "Machine")]
    pub software_kvm: bool,
    /// First disk, the guest's root file system
    ///
    /// `root=/dev/vda` goes on the kernel command line, with `rw` or `ro`. Takes the same keys as
    /// `--disk`. Example: `--rootfs img.ext4,ro`.
    #[arg(long, value_name = "PATH[,ro][,KEY=VALUE]…", help_heading = "Disks")]
    #[serde(deserialize_with = "forms::optional_text_or_table")]
    pub rootfs: Option<DiskConfig>,
    /// Further disk, an image file or a block device; repeatable
    ///
    /// `ro` keeps the guest from writing it and lets several VMs share it. `overlay` keeps what the guest
    /// writes in memory, `overlay=FILE` in a file that is made if it is missing: the image stays as it is
    /// and may be shared. `format=raw|qcow2` says what it is, by default qcow2 where its name ends so and
    /// never because of what is in it.
    /// `A+B` is one disk of two files, one after the other or `layout=stripe:SIZE`. `cache=none` bypasses
    /// the host's page cache; `engine=sync` or `io_uring` says how data is moved, by default io_uring
    /// where the host has it; `serial=TEXT` is what the guest reads as its id. `on-error=stop` pauses the VM
    /// where the host fails a request (no space left, its own disk broken), which is tried again when the VM
    /// is resumed; by default the guest gets an I/O error. `queues=N` gives the guest's CPUs N queues, which
    /// `--io-threads` serve side by side [default: 1]. `bps=SIZE` and `iops=N` limit the bytes (`100M`; a bare number is bytes) and the requests a second; `burst=SIZE` is what may pass at
    /// once after a pause, in bytes, or in requests where only these are limited [default: a tenth of a
    /// second's worth]. Examples: `--disk data.img,ro,serial=data`, `--disk data.img,bps=100M,burst=20M`. A
    /// comma or a plus sign in a path is written twice.
    #[arg(
        long = "disk",
        value_name = "PATH[,ro][,KEY=VALUE]…",
        help_heading = "Disks"
    )]
    #[serde(rename = "disk", deserialize_with = "forms::list_of_text_or_table")]
    pub disks: Vec<DiskConfig>,
    /// File that the guest has as memory (virtio-pmem, /dev/pmem0); repeatable
    ///
    /// A file system on it that is mounted with `dax` is used where it is, in the host's page cache, without a
    /// copy in the guest's. `ro` lets several VMs share it, and its pages; `root` makes it the root file
    /// system. What is written needs a size that is a multiple of 2M. The kernel needs virtio_pmem and
    /// nd_pmem. Example: `--pmem img.ext4,root --append rootflags=dax`.
    #[arg(long = "pmem", value_name = "PATH[,ro][,root]", help_heading = "Disks")]
    #[serde(rename = "pmem", deserialize_with = "forms::list_of_text_or_table")]
    pub pmems: Vec<PmemConfig>,
    /// Source of entropy for the guest, from the host's kernel [default: on]
    ///
    /// `bps`, `iops` and `burst` limit what it gives, as for `--disk`. Example: `--rng bps=64K`, or
    /// `--rng off`.
    #[arg(
        long,
        value_name = "on|off|bps=SIZE[,KEY=VALUE]…",
        help_heading = "Machine"
    )]
    #[serde(deserialize_with = "forms::optional_text_or_table")]
    pub rng: Option<RngConfig>,
    /// Memory balloon: what the guest does without [default: size=0]
    ///
    /// `size` is taken out of the guest and can be changed while it runs; `deflate-on-oom=off` lets the
    /// guest run out of memory rather than take it back; with `free-page-reporting=off` the guest keeps
    /// freed memory; `stats-interval=TIME` asks it for statistics that often. Example:
    /// `--balloon size=512M,stats-interval=1s`, or `--balloon off`.
    #[arg(
        long,
        value_name = "size=SIZE[,KEY=VALUE]…|off",
        help_heading = "Machine"
    )]
    #[serde(deserialize_with = "forms::optional_text_or_table")]
    pub balloon: Option<BalloonConfig>,
    /// Sockets between guest and host; N is the guest's address, 3 or more
    ///
    /// A guest that connects to port P of the host reaches who listens at the unix socket PATH_P. A host
    /// program that connects to PATH, which mvm makes, and sends the line `CONNECT P` reaches port P of
    /// the guest, and reads the line `OK` with a port first. Example: `--vsock cid=3,uds=/run/vm.vsock`;
    /// then `socat - UNIX-LISTEN:/run/vm.vsock_52` on the host talks to `socat - VSOCK-CONNECT:2:52` in
    /// the guest.
    #[arg(long, value_name = "cid=N,uds=PATH", help_heading = "Machine")]
    #[serde(deserialize_with = "forms::optional_text_or_table")]
    pub vsock: Option<VsockConfig>,
    /// Network card: user mode, or on a tap of the host; repeatable
    ///
    /// `user` takes no privileges and no set-up: the guest gets an address by DHCP (10.0.2.15, gateway
    /// 10.0.2.2), resolves names, and reaches what this user reaches, except for the host's loopback;
    /// `host-loopback` opens that, at the gateway's address. `publish=8080:80` makes port 80 of the guest
    /// port 8080 of the host; `publish=127.0.0.1:8080:80` does so on one address, `publish=5353:53/udp`
    /// for UDP; repeatable. It needs the program passt. Example:
    /// `--net user,publish=8080:80,publish=[::1]:2222:22`.
    ///
    /// `tap=NAME` is made if it is missing and mvm may; it is then gone with the VM. `fd=N` is a tap that
    /// was opened already (`fd=3:4` for two queue pairs). `mac` is made from the tap's name by default;
    /// `mtu` is the tap's; `queues` spreads the card over several vCPUs; `bps`, `iops` and `burst` limit the
    /// bytes and packets that it receives, and as many that it sends, as for `--disk`. Example:
    /// `--net tap=tap0,mac=02:00:00:00:00:01,mtu=9000,queues=2`.
    #[arg(
        long = "net",
        value_name = "user[,publish=[ADDR:]HOST:GUEST[/udp]]…[,host-loopback]|tap=NAME|fd=N[,queues=N][,mac=MAC][,mtu=N][,KEY=VALUE]…",
        help_heading = "Network"
    )]
    #[serde(rename = "net", deserialize_with = "forms::list_of_text_or_table")]
    pub nets: Vec<NetConfig>,
    /// Directory of the host's in the guest, by virtio-fs; repeatable
    ///
    /// COMMAND finds it at /mnt/NAME; any other guest mounts it with `mount -t virtiofs NAME DIR`. With `ro`
    /// the guest can change nothing in it. What is mounted in it is shared too; nothing outside is. Files
    /// that the guest makes belong to the user who runs mvm, or, if that is root, to whom the guest says.
    /// Example: `--share .,tag=src -- ls /mnt/src`. A comma in the path is written twice.
    #[arg(
        long = "share",
        value_name = "PATH,tag=NAME[,ro]",
        help_heading = "Disks"
    )]
    #[serde(rename = "share", deserialize_with = "forms::list_of_text_or_table")]
    pub shares: Vec<ShareConfig>,
    /// Where the guest's console goes [default: stdio]
    ///
    /// `stdio` is standard input and output; `file=PATH` keeps the output, without input; `pty` is a
    /// pseudo-terminal for a terminal program to open; `unix=PATH` is a socket that one client at a time
    /// connects to; `none` drops the output. The console is the serial port; with `virtio,` before any of
    /// these, or `virtio` alone, it is a virtio-console, which takes output a page at a time, follows the size
    /// of the terminal, and needs its driver in the kernel (`console=hvc0`). Example: `--console virtio,file=boot.log`.
    #[arg(
        long,
        value_name = "[virtio,]stdio|file=PATH|pty|unix=PATH|none",
        help_heading = "Running"
    )]
    pub console: Option<ConsoleConfig>,
    /// Control the VM from outside through a unix socket: HTTP and JSON
    ///
    /// `mvm ctl PATH …` is a client of it; the resources are `/`, `/vm/config`, `/actions`, `/balloon`,
    /// `/balloon/statistics`, `/drives/N`, `/network-interfaces/N` and `/entropy`, as Firecracker has them. The socket is made at the start and removed at the
    /// end. Example: `--api vm.sock`, then `mvm ctl vm.sock status`.
    #[arg(long, value_name = "PATH", help_heading = "Running")]
    pub api: Option<PathBuf>,
    /// End the VM after this time, such as 500ms, 60s, 2m or 1h
    #[arg(long, value_name = "DURATION", help_heading = "Running")]
    pub timeout: Option<Limit>,
    /// Run COMMAND in the guest, and exit as it does
    ///
    /// An init of mvm's own, put into the initramfs, mounts the root file system (without --rootfs the
    /// initramfs is the root), brings up the network and starts COMMAND, whose standard streams are
    /// mvm's. The image's own init is not used. At a terminal COMMAND has one too. The serial console is
    /// not shown unless --console says where; but if the guest ends before COMMAND, its last lines are, on
    /// standard error. Example: `mvm --kernel bzImage --rootfs img.ext4 -- make
    /// check`. In a configuration file: `command = ["make", "check"]`.
    #[arg(last = true, value_name = "COMMAND", help_heading = "Command")]
    #[serde(rename = "command")]
    pub words: Vec<String>,
    /// Set an environment variable of COMMAND; repeatable
    ///
    /// A NAME without a value passes on mvm's own variable of that name. Example: `--env CI=1 --env HOME`.
    #[arg(long, value_name = "NAME[=VALUE]", help_heading = "Command")]
    pub env: Vec<String>,
    /// The guest's directory that COMMAND starts in [default: /]
    #[arg(long, value_name = "PATH", help_heading = "Command")]
    pub workdir: Option<PathBuf>,
    /// Bring the drivers along that the kernel has as modules
    ///
    /// DIR is the kernel's module directory on the host, such as /lib/modules/6.12.0-amd64. Not needed
    /// where the kernel has virtio built in, or the initramfs given with --initrd has its modules, as a
    /// distribution's has.
    #[arg(long, value_name = "DIR", help_heading = "Command")]
    pub modules: Option<PathBuf>,
    /// Succeed once a console line matches this regular expression; repeatable
    ///
    /// When each --expect has matched some line, in any order, the VM is ended with status 0. A guest
    /// that ends by itself before that has status 122. A line counts as soon as it matches, which for a
    /// prompt is before it ends; `$` matches a prompt that has stood for a moment. Colours and other
    /// escape sequences are left out. A COMMAND is not cut short: then it is its end that is waited for.
    /// Example: `--expect 'login: $'`.
    #[arg(long, value_name = "REGEX", help_heading = "Testing")]
    #[serde(deserialize_with = "forms::one_or_more")]
    pub expect: Vec<Pattern>,
    /// Fail as soon as a console line matches this regular expression; repeatable
    ///
    /// The VM is ended with status 122. Of two lines the first decides; on one line --fail-on wins, so a
    /// line then counts when it has ended, or has stood for a moment.
    /// Example: `--fail-on 'segfault at' --fail-on '^FAIL'`.
    #[arg(long, value_name = "REGEX", help_heading = "Testing")]
    #[serde(deserialize_with = "forms::one_or_more")]
    pub fail_on: Vec<Pattern>,
    /// Type into the console, and wait for what it shows, as a file says
    ///
    /// Each line of the file is a step: `expect 'REGEX'` waits for a match, `send "TEXT\n"` types, and
    /// `end` waits for the guest's own end, which is the last step. `expect` and `end` may be followed by
    /// a time limit; without one it is 30s, or what a line `limit 2m` before says. A step begins behind
    /// what the one before found; the guest repeats what is typed. A step that takes too long, or a guest
    /// that ends before, is status 122; when all steps are done and each --expect has matched, the VM is
    /// ended with status 0. A `#` begins a comment. The keyboard is not connected meanwhile.
    #[arg(long, value_name = "FILE", help_heading = "Testing")]
    pub script: Option<PathBuf>,
    /// What to make of a panic, oops, BUG, hung task, KASAN report or RCU stall on the console
    ///
    /// `fatal` ends the VM when the kernel's report is complete, with status 122, or 123 for a panic;
    /// `report` tells of it at the end; `ignore` does not look. The default is `report` where the
    /// console is looked at for something else too, and else `ignore`.
    #[arg(
        long,
        value_name = "fatal|report|ignore",
        hide_possible_values = true,
        help_heading = "Testing"
    )]
    pub kernel_errors: Option<KernelErrors>,
    /// Write down what happened: PATH.json, or PATH.xml for JUnit; repeatable
    ///
    /// How the VM ended and why, when its stages came, what became of each --expect, the kernel's errors
    /// with their text, the console's last lines where the run did not pass, CPU time and memory, and how
    /// often the guest was left for mvm; of --env only the names. The file is emptied at the start. Example: `--report boot.xml`.
    #[arg(
        long = "report",
        value_name = "PATH.json|PATH.xml",
        help_heading = "Testing"
    )]
    #[serde(rename = "report", deserialize_with = "forms::one_or_more")]
    pub reports: Vec<ReportPath>,
    /// Draw where the time of the boot went: mvm, the kernel's stages, init, the command
    ///
    /// A picture, SVG, from when things happened and from the kernel's log on the console (so without
    /// `quiet`): every stage as a bar, every line of the log as a tick, and the longest silences with what
    /// the kernel had said before. Example: `--boot-chart boot.svg`.
    #[arg(long, value_name = "FILE.svg", help_heading = "Testing")]
    pub boot_chart: Option<ChartPath>,
    /// How much mvm logs [default: warn]
    #[arg(long, value_name = "LEVEL", help_heading = "Running")]
    pub log_level: Option<LogLevel>,
    /// Append mvm's log to a file instead of standard error
    #[arg(long, value_name = "PATH", help_heading = "Running")]
    pub log_file: Option<PathBuf>,
}

fn cmdline_help() -> String {
    format!(
        "Replace the default kernel command line\n\nThe default is '{DEFAULT_CMDLINE}', and for \
         --console virtio '{VIRTIO_CONSOLE_CMDLINE}'. What the devices need (such as root=) is still \
         added."
    )
}

/// How the VM is run, apart from what it is.
#[derive(Debug, PartialEq, Eq)]
pub struct Run {
    /// What the VM is.
    pub vm: VmConfig,
    /// Where its serial console goes.
    pub console: ConsoleConfig,
    /// Where it can be controlled.
    pub api: Option<PathBuf>,
    /// When it is ended.
    pub timeout: Option<Limit>,
    /// Linux may try its luck on a KVM that interprets it.
    pub software_kvm: bool,
    /// What its console is looked at for.
    pub wanted: Wanted,
    /// Where to report.
    pub reports: Vec<ReportPath>,
    /// Where to draw.
    pub boot_chart: Option<ChartPath>,
    /// What is logged.
    pub log_level: LevelFilter,
    /// Where to, other than standard error.
    pub log_file: Option<PathBuf>,
}

impl Settings {
    /// Adds what the file says where the flags say nothing, and checks the whole.
    pub fn resolve(self, file: Option<&Path>) -> Result<Run, SettingsError> {
        let settings = match file {
            Some(path) => self.or(file::read(path)?),
            None => self,
        };
        let command = settings.command()?;
        let mut vm = VmConfig::new(settings.kernel.ok_or(SettingsError::NoKernel)?);
        vm.command = command;
        vm.initrd = settings.initrd;
        vm.cmdline = settings.cmdline;
        vm.append = settings.append;
        vm.cpus = settings.cpus.unwrap_or(vm.cpus);
        vm.io_threads = settings.io_threads.unwrap_or(vm.io_threads);
        vm.mem = settings.mem.unwrap_or(vm.mem);
        vm.acpi = !settings.no_acpi;
        vm.rootfs = settings.rootfs;
        vm.disks = settings.disks;
        vm.pmems = settings.pmems;
        vm.rng = settings.rng.unwrap_or(vm.rng);
        vm.balloon = settings.balloon.unwrap_or(vm.balloon);
        vm.vsock = settings.vsock;
        vm.nets = settings.nets;
        vm.shares = settings.shares;
        let console = match (&vm.command, settings.console) {
            (Some(_), None) => ConsoleEnd::None.into(),
            (Some(_), Some(console)) if console.end == ConsoleEnd::Stdio => {
                return Err(SettingsError::ConsoleTaken);
            }
            (_, console) => console.unwrap_or_default(),
        };
        vm.validate()?;
        let mut disks = vm.rootfs.iter().chain(&vm.disks);
        let stops = disks.find(|disk| disk.on_error == OnError::Stop);
        if let (Some(disk), None) = (stops, &settings.api) {
            return Err(SettingsError::NoApi(disk.path.display().to_string()));
        }
        let others_type = matches!(console.end, ConsoleEnd::Pty | ConsoleEnd::Unix(_));
        if settings.script.is_some() && others_type {
            return Err(SettingsError::ScriptConsole(console));
        }
        let script = settings.script.as_deref().map(Script::read).transpose()?;
        let has_command = vm.command.is_some();
        Ok(Run {
            vm,
            console,
            api: settings.api,
            timeout: settings.timeout,
            software_kvm: settings.software_kvm,
            wanted: Wanted {
                expect: settings.expect,
                fail_on: settings.fail_on,
                script,
                has_command,
                kernel_errors: settings.kernel_errors,
            },
            reports: settings.reports,
            boot_chart: settings.boot_chart,
            log_level: settings.log_level.unwrap_or(LogLevel::Warn).into(),
            log_file: settings.log_file,
        })
    }

    /// These settings, and the other's where these are silent.
    fn or(self, other: Self) -> Self {
        // Taken apart by name, so that a new setting cannot be forgotten here.
        let Self {
            kernel,
            initrd,
            cmdline,
            append,
            cpus,
            mem,
            io_threads,
            no_acpi,
            software_kvm,
            rootfs,
            disks,
            pmems,
            rng,
            balloon,
            vsock,
            nets,
            shares,
            console,
            api,
            timeout,
            words,
            env,
            workdir,
            modules,
            expect,
            fail_on,
            script,
            kernel_errors,
            reports,
            boot_chart,
            log_level,
            log_file,
        } = self;
        Self {
            kernel: kernel.or(other.kernel),
            initrd: initrd.or(other.initrd),
            cmdline: cmdline.or(other.cmdline),
            append: append.or(other.append),
            cpus: cpus.or(other.cpus),
            mem: mem.or(other.mem),
            io_threads: io_threads.or(other.io_threads),
            no_acpi: no_acpi || other.no_acpi,
            software_kvm: software_kvm || other.software_kvm,
            rootfs: rootfs.or(other.rootfs),
            rng: rng.or(other.rng),
            balloon: balloon.or(other.balloon),
            vsock: vsock.or(other.vsock),
            nets: some_or(nets, other.nets),
            shares: some_or(shares, other.shares),
            disks: some_or(disks, other.disks),
            pmems: some_or(pmems, other.pmems),
            console: console.or(other.console),
            api: api.or(other.api),
            timeout: timeout.or(other.timeout),
            words: some_or(words, other.words),
            env: some_or(env, other.env),
            workdir: workdir.or(other.workdir),
            modules: modules.or(other.modules),
            expect: some_or(expect, other.expect),
            fail_on: some_or(fail_on, other.fail_on),
            script: script.or(other.script),
            kernel_errors: kernel_errors.or(other.kernel_errors),
            reports: some_or(reports, other.reports),
            boot_chart: boot_chart.or(other.boot_chart),
            log_level: log_level.or(other.log_level),
            log_file: log_file.or(other.log_file),
        }
    }

    /// Takes relative paths to be relative to `base`.
    pub fn relative_to(&mut self, base: &Path) {
        let files = [
            &mut self.kernel,
            &mut self.initrd,
            &mut self.api,
            &mut self.modules,
            &mut self.script,
            &mut self.log_file,
        ];
        let disks = self.rootfs.iter_mut().chain(&mut self.disks);
        let console = match self.console.as_mut().map(|console| &mut console.end) {
            Some(ConsoleEnd::File(path) | ConsoleEnd::Unix(path)) => Some(path),
            _ => None,
        };
        let vsock = self.vsock.as_mut().and_then(|vsock| vsock.uds.as_mut());
        let reports = self.reports.iter_mut().map(ReportPath::path_mut);
        let paths = files
            .into_iter()
            .flatten()
            .chain(console)
            .chain(reports)
            .chain(self.boot_chart.as_mut().map(ChartPath::path_mut))
            .chain(self.shares.iter_mut().map(|share| &mut share.path))
            .chain(self.pmems.iter_mut().map(|pmem| &mut pmem.path))
            .chain(vsock);
        for path in paths.chain(disks.flat_map(DiskConfig::paths_mut)) {
            // An empty path is a mistake that joining would hide.
            if !path.as_os_str().is_empty() {
                *path = base.join(&*path);
            }
        }
    }
}

/// A repeatable option replaces the file's list.
fn some_or<T>(flags: Vec<T>, file: Vec<T>) -> Vec<T> {
    if flags.is_empty() { file } else { flags }
}

#[cfg(test)]
mod tests;

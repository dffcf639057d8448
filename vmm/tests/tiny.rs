//! The library on a real KVM_RUN, with guests of a few bytes: exits, dispatch, endings, and what is left
//! behind.

mod guest;

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;
use vmm::config::{DiskConfig, MemorySize, VmConfig};
use vmm::console::Console;
use vmm::events::{self, Event, EventKind};
use vmm::{ExitReason, PauseError, Running, VmBuilder, VmError, VmState};

/// Tests run one at a time: one of them counts this process's descriptors and threads.
static ALONE: Mutex<()> = Mutex::new(());

/// Whether VMs can be made here; says so where not.
fn has_kvm() -> bool {
    let open = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm");
    if let Err(error) = &open {
        println!("skipped: /dev/kvm does not open: {error}");
    }
    open.is_ok()
}

/// What a guest said.
#[derive(Debug, Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl Write for Said {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Said {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn config(kernel: &Path) -> VmConfig {
    let mut config = VmConfig::new(kernel);
    config.mem = MemorySize::mib(32);
    config
}

fn start(config: VmConfig) -> (Running, Said) {
    let said = Said::default();
    let console = Console::from_parts(None, Box::new(said.clone()));
    let vm = VmBuilder::new(config).console(console).build().unwrap();
    (vm.run().unwrap(), said)
}

fn ends(code: &[u8]) -> (Result<ExitReason, VmError>, String) {
    let kernel = file(&guest::elf(code));
    let (running, said) = start(config(kernel.path()));
    let exit = running.wait().map(|exit| exit.reason);
    (exit, said.text())
}

#[test]
fn each_way_to_end_is_told_apart() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    if !has_kvm() {
        return;
    }
    for (code, reason, text) in [
        (guest::GREET_AND_POWER_OFF, ExitReason::PoweredOff, "hi"),
        (guest::RESET, ExitReason::Rebooted, ""),
        (guest::TRIPLE_FAULT, ExitReason::TripleFault, ""),
        (guest::HALT, ExitReason::Halted, "h"),
    ] {
        let (ended, said) = ends(code);
        assert_eq!(ended.unwrap(), reason);
        assert_eq!(said, text, "{reason:?}");
    }
}

#[test]
fn the_serial_port_interrupts() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    if !has_kvm() {
        return;
    }
    let (ended, said) = ends(guest::INTERRUPT);
    assert_eq!(ended.unwrap(), ExitReason::PoweredOff);
    assert_eq!(said, "hi");
}

#[test]
fn mmio_reaches_the_device_and_pvpanic_ends_the_vm() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    if !has_kvm() {
        return;
    }
    let kernel = file(&guest::elf(guest::READ_MMIO_AND_PANIC));
    let image = file(&[0; 4096]);
    let mut config = config(kernel.path());
    config.disks = vec![
        image
            .path()
            .to_str()
            .unwrap()
            .parse::<DiskConfig>()
            .unwrap(),
    ];
    let (running, said) = start(config);
    assert_eq!(running.wait().unwrap().reason, ExitReason::Panicked);
    assert_eq!(
        said.text(),
        "vi",
        "the magic value of a virtio-mmio device is 'virt'"
    );
}

#[test]
fn two_vms_live_in_one_process() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    if !has_kvm() {
        return;
    }
    let (spin, greet) = (
        file(&guest::elf(guest::GREET)),
        file(&guest::elf(guest::GREET_AND_POWER_OFF)),
    );
    let (first, first_said) = start(config(spin.path()));
    let (second, second_said) = start(config(greet.path()));
    assert_eq!(second.wait().unwrap().reason, ExitReason::PoweredOff);
    assert_eq!(second_said.text(), "hi");
    // The first one goes on until it is told to stop, from another thread.
    let handle = first.handle();
    let stopper = std::thread::spawn(move || handle.stop());
    assert_eq!(first.wait().unwrap().reason, ExitReason::Stopped);
    stopper.join().unwrap();
    assert!(matches!(first_said.text().as_str(), "" | "h" | "hi"));
}

#[test]
fn events_tell_the_start_the_console_and_the_end() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    if !has_kvm() {
        return;
    }
    let kernel = file(&guest::elf(guest::GREET_AND_POWER_OFF));
    let (sender, events) = events::channel().unwrap();
    // Without a console, and taken only when all is over: nothing waits for anybody.
    let vm = VmBuilder::new(config(kernel.path()))
        .events(sender)
        .build()
        .unwrap();
    let running = vm.run().unwrap();
    let handle = running.handle();
    assert_eq!(running.wait().unwrap().reason, ExitReason::PoweredOff);
    let events: Vec<Event> = events.collect();
    assert!(events.is_sorted_by_key(|event| event.at), "{events:?}");
    let (mut texts, mut states) = (Vec::new(), Vec::new());
    for event in events {
        match event.kind {
            EventKind::Line(text) => texts.push(text),
            EventKind::Unfinished(text) => assert!("hi".starts_with(&text), "{text}"),
            state => states.push(state),
        }
    }
    let ended = EventKind::Ended(Some(ExitReason::PoweredOff));
    assert_eq!(states, [EventKind::Started, ended]);
    assert_eq!(texts, ["hi"]);
    let exits = handle.exits();
    assert_eq!(
        (exits.port_writes, exits.port_reads, exits.mmio_writes),
        (3, 0, 0)
    );
}

#[test]
fn events_that_nobody_takes_hold_nobody_up() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    if !has_kvm() {
        return;
    }
    let kernel = file(&guest::elf(guest::GREET_AND_POWER_OFF));
    let (sender, events) = events::channel().unwrap();
    drop(events);
    let said = Said::default();
    let console = Console::from_parts(None, Box::new(said.clone()));
    let vm = VmBuilder::new(config(kernel.path()))
        .console(console)
        .events(sender)
        .build()
        .unwrap();
    assert_eq!(
        vm.run().unwrap().wait().unwrap().reason,
        ExitReason::PoweredOff
    );
    assert_eq!(said.text(), "hi");
}

#[test]
fn a_paused_guest_does_nothing_until_it_goes_on() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    if !has_kvm() {
        return;
    }
    let kernel = file(&guest::elf(guest::TICK));
    let (sender, mut events) = events::channel().unwrap();
    let mut config = config(kernel.path());
    // The second one waits to be started, inside KVM.
    config.cpus = 2;
    let vm = VmBuilder::new(config).events(sender).build().unwrap();
    let handle = vm.handle();
    let ticks = || handle.exits().port_writes;
    assert_eq!(handle.state(), VmState::Ready);
    handle.pause().unwrap();
    assert_eq!(handle.state(), VmState::Paused);
    let running = vm.run().unwrap();
    for _ in 0..20 {
        handle.pause().unwrap();
        let before = ticks();
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(ticks(), before, "a paused guest went on");
        handle.resume();
        assert_eq!(handle.state(), VmState::Running);
        let start = Instant::now();
        while ticks() == before {
            assert!(start.elapsed() < Duration::from_secs(60));
            std::thread::yield_now();
        }
    }
    // A paused VM can be ended.
    handle.pause().unwrap();
    handle.stop();
    assert_eq!(running.wait().unwrap().reason, ExitReason::Stopped);
    assert_eq!(handle.state(), VmState::Over);
    assert_eq!(handle.pause(), Err(PauseError::Over));
    handle.resume();
    assert_eq!(handle.state(), VmState::Over);
    let mut kinds = Vec::new();
    while let Some(event) = events.try_next() {
        kinds.push(event.kind);
    }
    assert_eq!(kinds[..2], [EventKind::Paused(None), EventKind::Started]);
    let pauses = kinds
        .iter()
        .filter(|kind| **kind == EventKind::Paused(None));
    assert_eq!(pauses.count(), 21);
}

/// Halted with interrupts off is over, but not while somebody has paused it: nobody could look.
#[test]
fn a_halt_is_noticed_after_a_pause() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    if !has_kvm() {
        return;
    }
    let kernel = file(&guest::elf(guest::HALT));
    let vm = VmBuilder::new(config(kernel.path())).build().unwrap();
    let handle = vm.handle();
    handle.pause().unwrap();
    let running = vm.run().unwrap();
    // Longer than the watch waits.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(handle.state(), VmState::Paused);
    handle.resume();
    assert_eq!(running.wait().unwrap().reason, ExitReason::Halted);
}

/// Descriptors and threads of this process.
fn counts() -> (usize, usize) {
    let count = |path| fs::read_dir(path).unwrap().count();
    (count("/proc/self/fd"), count("/proc/self/task"))
}

/// Memory of this process that is resident, in KiB.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.unwrap().trim().trim_end_matches(" kB");
    number.parse().unwrap()
}

/// Mappings of this process.
fn mappings() -> usize {
    fs::read_to_string("/proc/self/maps")
        .unwrap()
        .lines()
        .count()
}

#[test]
fn nothing_is_left_behind() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    if !has_kvm() {
        return;
    }
    let (spin, image) = (file(&guest::elf(guest::SPIN)), file(&[0; 4096]));
    let round = || {
        let mut config = config(spin.path());
        config.cpus = 2;
        config.disks = vec![
            image
                .path()
                .to_str()
                .unwrap()
                .parse::<DiskConfig>()
                .unwrap(),
        ];
        drop(start(config));
    };
    // Allocators and the like take what they keep at first.
    (0..20).for_each(|_| round());
    let (before, memory, mapped) = (counts(), resident(), mappings());
    (0..200).for_each(|_| round());
    // A joined thread may be seen in /proc for a moment longer.
    let start = Instant::now();
    while counts() != before && start.elapsed() < Duration::from_secs(5) {
        std::thread::yield_now();
    }
    assert_eq!(counts(), before, "descriptors, threads");
    let grown = resident().saturating_sub(memory);
    // A page a VM would be 800 KiB.
    assert!(grown < 800, "{grown} KiB more after 200 VMs");
    // An allocator has a few more or less; a VM has several.
    let more = mappings().saturating_sub(mapped);
    assert!(more < 100, "{more} mappings more after 200 VMs");
}

#[test]
fn the_example_boots_a_kernel() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    if !has_kvm() {
        return;
    }
    // cargo builds examples beside the directory of the test binaries.
    let example = std::env::current_exe()
        .unwrap()
        .with_file_name("../examples/boot");
    if !example.exists() {
        println!(
            "skipped: {} is not built; run all of 'cargo test'",
            example.display()
        );
        return;
    }
    let kernel = file(&guest::elf(guest::GREET_AND_POWER_OFF));
    let output = Command::new(example).arg(kernel.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, b"hi");
    assert_eq!(output.stderr, b"the guest ended: PoweredOff\n");
}

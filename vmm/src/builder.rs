//! From settings to a machine that is ready to run.
//!
//! Everything the user may have got wrong is found before KVM is opened: the settings first, then the
//! images, then the kernel, which is read straight into guest memory. Runs on the embedder's thread.

mod make;

use std::sync::Arc;

use arch::board::{Board, MmioSlot};
use arch::x86_64::layout;
use devices::bus::Bus;
use devices::io::{IoHandle, IoTask};
use devices::legacy::i8042::{self, I8042};
use devices::legacy::power::{self, PowerBlock, PowerButton};
use devices::legacy::pvpanic::{self, PvPanic};
use devices::legacy::{MachineEvents, serial};
use devices::mem::GuestMemory;
use devices::virtio::VirtioDevice;
use devices::virtio::transport::mmio::{self, MmioTransport};

use crate::catalog::{self, Controls, Opened, Windows};
use crate::command::{self, CommandIo, CommandLine};
use crate::config::{DEFAULT_CMDLINE, VIRTIO_CONSOLE_CMDLINE, VmConfig};
use crate::console::{AttachedConsole, Console, PreparedConsole};
use crate::error::BuildError;
use crate::events::{EventNotes, EventSender};
use crate::halt::HaltWatcher;
use crate::kvm::vm::refused;
use crate::lifecycle::{IdleIo, Lifecycle, Machine, Vm};
use crate::net::Starting;
use crate::threads::{ThreadHooks, Threads};
use crate::vcpu::thread::{Observed, VcpuThread};
use crate::vcpu::{Buses, Cpus, ExitCounter, kick};
use crate::windows;
use make::{Images, Made, Space};

/// Assembles a VM.
#[derive(Debug)]
pub struct VmBuilder {
    config: VmConfig,
    console: Console,
    devices: Vec<Box<dyn VirtioDevice>>,
    events: Option<EventSender>,
    command_io: Option<CommandIo>,
    threads: Threads,
}

impl VmBuilder {
    /// A builder for the VM that `config` describes, without a console.
    #[must_use]
    pub fn new(config: VmConfig) -> Self {
        Self {
            config,
            console: Console::none(),
            devices: Vec::new(),
            events: None,
            command_io: None,
            threads: Threads::default(),
        }
    }

    /// A virtio device of the embedder's own, behind those that the settings name; repeatable.
    #[must_use]
    pub fn device(mut self, device: Box<dyn VirtioDevice>) -> Self {
        self.devices.push(device);
        self
    }

    /// The guest's console.
    #[must_use]
    pub fn console(mut self, console: Console) -> Self {
        self.console = console;
        self
    }

    /// Where to tell what happens to the VM; see [`crate::events::channel`].
    #[must_use]
    pub fn events(mut self, events: EventSender) -> Self {
        self.events = Some(events);
        self
    }

    /// Where the streams of the guest's command are; by default this process's own.
    #[must_use]
    pub fn command_io(mut self, streams: CommandIo) -> Self {
        self.command_io = Some(streams);
        self
    }

    /// Who is told of the VM's threads as they start.
    #[must_use]
    pub fn hooks(mut self, hooks: Arc<dyn ThreadHooks>) -> Self {
        self.threads = Threads(Some(hooks));
        self
    }

    /// Checks everything, loads the kernel, and assembles the machine. No vCPU runs yet.
    ///
    /// # Errors
    /// What is wrong, on which file or device, and the remedy.
    pub fn build(self) -> Result<Vm, BuildError> {
        let Self {
            config,
            console,
            devices: own,
            events,
            command_io,
            threads,
        } = self;
        config.validate()?;
        let acpi = uses_acpi(&config);
        let Opened {
            mut devices,
            mut controls,
            windows,
            helpers,
        } = catalog::open(&config)?;
        devices.extend(own);
        let notes = events.as_ref().map(EventSender::notes);
        let mut console = console.prepare(events)?;
        let default_cmdline = match console.device.take() {
            None => DEFAULT_CMDLINE,
            Some(device) => {
                controls.console = Some(device.control());
                devices.push(Box::new(device));
                VIRTIO_CONSOLE_CMDLINE
            }
        };
        let slots: Vec<MmioSlot> = (0..devices.len()).filter_map(layout::virtio_slot).collect();
        if slots.len() < devices.len() {
            return Err(BuildError::TooManyDevices(devices.len()));
        }
        let cmdline = cmdline(&config, default_cmdline, acpi, &slots);
        let appended = match &config.command {
            Some(command) => command::initramfs(&config, command)?,
            None => Vec::new(),
        };
        let images = Images::open(&config)?;
        let memory = images.memory()?;
        let board = Board {
            cpus: config.cpus,
            acpi,
            second_serial_port: config.command.is_some(),
            virtio_mmio: slots,
        };
        let space = Space {
            memory: &memory,
            windows: &windows,
        };
        let made = images.make(space, &board, &cmdline, &appended)?;
        let command = match &config.command {
            Some(_) => Some(CommandLine::new(command_io, controls.vsock.as_ref())?),
            None => None,
        };
        helpers.iter().try_for_each(Starting::ready)?;
        if let Some(hint) = made.loaded.memory_hint(config.mem.as_bytes()) {
            log::warn!("{hint}");
        }
        Assembly {
            board,
            memory,
            made,
            devices,
            controls,
            windows,
            io_threads: config.io_threads,
            console,
            notes,
            command,
            threads,
        }
        .assemble()
    }
}

/// The parts of a machine, checked and waiting to be wired.
struct Assembly {
    board: Board,
    memory: GuestMemory,
    made: Made,
    devices: Vec<Box<dyn VirtioDevice>>,
    controls: Controls,
    windows: Windows,
    io_threads: u8,
    console: PreparedConsole,
    notes: Option<EventNotes>,
    command: Option<CommandLine>,
    threads: Threads,
}

impl Assembly {
    fn assemble(self) -> Result<Vm, BuildError> {
        let Self {
            board,
            memory,
            made,
            devices,
            controls,
            windows,
            io_threads,
            console,
            notes,
            mut command,
            threads,
        } = self;
        let Made {
            loaded,
            kvm,
            vcpus,
            processor,
        } = made;
        let kvm = Arc::new(kvm);
        kick::install().map_err(refused("a signal handler for its vCPUs"))?;
        let lifecycle = Arc::new(Lifecycle::new(memory.clone(), notes).map_err(device("event"))?);
        let mut io: Vec<IdleIo> = (0..io_threads)
            .map(|number| IdleIo::new(format!("io{number}")))
            .collect::<Result<_, _>>()?;
        let handles: Vec<IoHandle> = io.iter().map(|it| it.prepared.handle()).collect();

        let mut pio = Bus::new();
        let AttachedConsole { port, input, guard } =
            console.attach(kvm.line(layout::SERIAL_GSI)?)?;
        pio.insert(layout::SERIAL_PORT.into(), serial::LEN, port)?;
        let mut inputs: Vec<IoTask> = input.into_iter().collect();
        if let Some(command) = &mut command {
            let (port, input) = command.attach(kvm.line(layout::SECOND_SERIAL_GSI)?)?;
            pio.insert(layout::SECOND_SERIAL_PORT.into(), serial::LEN, port)?;
            inputs.extend(input);
        }
        let power_button = Arc::new(PowerButton::new(kvm.line(layout::POWER_BUTTON_GSI)?));
        add_legacy(&mut pio, &lifecycle)?;

        let mut mmio = Bus::new();
        for (index, (face, slot)) in devices.into_iter().zip(&board.virtio_mmio).enumerate() {
            let line = kvm.line(slot.gsi)?;
            let serving: Vec<IoHandle> = if face.blocks() {
                let own = IdleIo::new(format!("dev{index}"))?;
                let handle = own.prepared.handle();
                io.push(own);
                vec![handle]
            } else {
                // Each device begins at another thread, so that those of one lane are spread as well.
                let first = index % handles.len();
                [&handles[first..], &handles[..first]].concat()
            };
            let transport = MmioTransport::new(face, memory.clone(), serving.into(), line)
                .map_err(device("virtio device"))?;
            for (queue, event) in (0..).zip(transport.doorbells()) {
                kvm.doorbell(slot.base + mmio::QUEUE_NOTIFY, queue, event)?;
            }
            mmio.insert(slot.base, mmio::LEN, Arc::new(transport))?;
        }

        Cpus {
            processor: &processor,
            count: board.cpus,
            loaded: &loaded,
        }
        .set_up(&vcpus)?;
        let observed: Vec<Arc<Observed>> = vcpus.iter().map(|_| Arc::default()).collect();
        let exits: Arc<[Arc<ExitCounter>]> = vcpus.iter().map(|_| Arc::default()).collect();
        let watcher = HaltWatcher::new(observed.clone(), lifecycle.clone());
        let [first, ..] = io.as_mut_slice() else {
            unreachable!("validated: at least one I/O thread")
        };
        first.prepared.add(Box::new(watcher));
        windows::watch(&windows, &lifecycle, &mut first.prepared);
        inputs
            .into_iter()
            .for_each(|input| first.prepared.add(input));

        // Everything has been checked: from here on images may change.
        windows
            .iter()
            .try_for_each(|placed| placed.window.begin())?;
        controls.disks.iter().try_for_each(|disk| disk.begin())?;
        let buses = Arc::new(Buses { pio, mmio, windows });
        let vcpus = vcpus
            .into_iter()
            .zip(observed)
            .zip(exits.iter())
            .map(|((vcpu, observed), exits)| VcpuThread {
                vcpu,
                buses: buses.clone(),
                memory: memory.clone(),
                vm: kvm.clone(),
                lifecycle: lifecycle.clone(),
                observed,
                exits: exits.clone(),
            })
            .collect();
        for disk in &controls.disks {
            let paused = Arc::downgrade(&lifecycle);
            disk.on_trouble(move |trouble| {
                if let Some(lifecycle) = paused.upgrade() {
                    lifecycle.pause(Some(trouble));
                }
            });
        }
        let machine = Machine {
            io: Vec::new(),
            controls: Arc::new(controls),
            console: Some(guard),
            command,
            threads,
            power_button,
            exits,
            lifecycle,
            _kvm: kvm,
        };
        Ok(Vm { vcpus, io, machine })
    }
}

fn device(what: &'static str) -> impl FnOnce(std::io::Error) -> BuildError {
    move |source| BuildError::Device { what, source }
}

/// The chips every machine has.
fn add_legacy(pio: &mut Bus, lifecycle: &Arc<Lifecycle>) -> Result<(), BuildError> {
    let events: Arc<dyn MachineEvents> = lifecycle.clone();
    let power_block = PowerBlock::new(events.clone());
    pio.insert(layout::POWER_PORT.into(), power::LEN, Arc::new(power_block))?;
    pio.insert(
        i8042::BASE,
        i8042::LEN,
        Arc::new(I8042::new(events.clone())),
    )?;
    pio.insert(pvpanic::PORT, pvpanic::LEN, Arc::new(PvPanic::new(events)))?;
    Ok(())
}

/// Whether the guest gets ACPI tables: not if the settings or the command line say otherwise.
fn uses_acpi(config: &VmConfig) -> bool {
    let off = |words: &Option<String>| {
        words
            .iter()
            .flat_map(|words| words.split_whitespace())
            .any(|word| word == "acpi=off")
    };
    config.acpi && !off(&config.cmdline) && !off(&config.append)
}

/// The kernel command line: the user's or the default, what the machine needs, and the user's last word.
fn cmdline(config: &VmConfig, default: &str, acpi: bool, slots: &[MmioSlot]) -> String {
    let start = config.cmdline.as_deref().unwrap_or(default);
    let mut words = vec![start.to_owned()];
    if let Some((device, read_only)) = config.root() {
        let mode = if read_only { "ro" } else { "rw" };
        words.push(format!("root={device} {mode}"));
    }
    if !acpi {
        // Documentation/admin-guide/kernel-parameters.txt, virtio_mmio.device.
        words.extend(slots.iter().map(|slot| {
            format!(
                "virtio_mmio.device={}K@{:#x}:{}",
                slot.len >> 10,
                slot.base,
                slot.gsi
            )
        }));
    }
    if config.command.is_some() {
        words.push(command::kernel_words());
    }
    words.extend(config.append.clone());
    words.retain(|word| !word.is_empty());
    words.join(" ")
}

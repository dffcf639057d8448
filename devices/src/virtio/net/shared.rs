//! What the face of a card, its workers and whoever controls it share: the state of the link, the MAC
//! address, and counters.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::virtio::VirtioInterrupt;

/// What went through one queue pair.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PairCounters {
    /// To the guest.
    pub received: Traffic,
    /// From the guest.
    pub sent: Traffic,
}

/// What went one way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Frames. One that is to be segmented later counts once.
    pub frames: u64,
    /// Their bytes, without the virtio header.
    pub bytes: u64,
    /// Frames that were lost here: there was no link, the host refused them, or they were larger than
    /// what the driver had for them.
    pub dropped: u64,
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            frames,
            bytes,
            dropped,
        } = self;
        write!(f, "{frames} frames of {bytes} bytes")?;
        match dropped {
            0 => Ok(()),
            _ => write!(f, " and {dropped} dropped"),
        }
    }
}

/// [`Traffic`] as its one writer counts it.
#[derive(Debug, Default)]
pub(super) struct Meter {
    frames: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
}

impl Meter {
    /// A frame of so many bytes went through.
    pub(super) fn pass(&self, bytes: usize) {
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A frame was lost.
    pub(super) fn drop_one(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> Traffic {
        Traffic {
            frames: self.frames.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
        }
    }
}

/// What belongs to one queue pair.
#[derive(Debug)]
pub(super) struct PairShared {
    pub(super) received: Meter,
    pub(super) sent: Meter,
    /// Wakes the pair's worker: the cable was plugged in.
    pub(super) wake: EventFd,
}

/// What belongs to the card.
pub(super) struct Shared {
    /// How the log calls it.
    pub(super) name: String,
    /// Whether the cable is in; whoever controls the VM pulls it.
    plugged: AtomicBool,
    /// Whether there is a link behind the cable.
    link: AtomicBool,
    mac: Mutex<[u8; 6]>,
    interrupt: OnceLock<Arc<dyn VirtioInterrupt>>,
    /// Wakes the control worker: the link is to be looked at.
    pub(super) look: EventFd,
    pub(super) pairs: Vec<PairShared>,
}

impl Shared {
    pub(super) fn new(name: String, mac: [u8; 6], pairs: usize) -> io::Result<Self> {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let pair = |_| {
            Ok(PairShared {
                received: Meter::default(),
                sent: Meter::default(),
                wake: event()?,
            })
        };
        Ok(Self {
            name,
            plugged: AtomicBool::new(true),
            link: AtomicBool::new(true),
            mac: Mutex::new(mac),
            interrupt: OnceLock::new(),
            look: event()?,
            pairs: (0..pairs).map(pair).collect::<io::Result<_>>()?,
        })
    }

    pub(super) fn connect(&self, interrupt: Arc<dyn VirtioInterrupt>) {
        // A card is connected once.
        let _ = self.interrupt.set(interrupt);
    }

    pub(super) fn mac(&self) -> [u8; 6] {
        *self.mac.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_mac(&self, mac: [u8; 6]) {
        *self.mac.lock().unwrap_or_else(PoisonError::into_inner) = mac;
    }

    pub(super) fn is_plugged(&self) -> bool {
        self.plugged.load(Ordering::Acquire)
    }

    pub(super) fn has_link(&self) -> bool {
        self.link.load(Ordering::Acquire)
    }

    /// What the driver sees.
    pub(super) fn is_up(&self) -> bool {
        self.is_plugged() && self.has_link()
    }

    /// The link is as it is; says so to the driver if that is new.
    pub(super) fn set_link(&self, up: bool) {
        if self.link.swap(up, Ordering::AcqRel) != up {
            let state = if up { "up" } else { "down" };
            log::info!("{}: the link is {state}", self.name);
            self.tell_driver();
        }
    }

    /// Sending or receiving says otherwise than what is known of the link.
    pub(super) fn doubt_link(&self) {
        // A counter at its limit is a wake-up already pending.
        let _ = self.look.write(1);
    }

    fn tell_driver(&self) {
        if let Some(interrupt) = self.interrupt.get()
            && let Err(error) = interrupt.config()
        {
            log::warn!("{}: interrupt lost: {error}", self.name);
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("name", &self.name)
            .field("plugged", &self.is_plugged())
            .field("link", &self.has_link())
            .finish_non_exhaustive()
    }
}

/// Controls a card while its VM runs, from any thread.
#[derive(Debug, Clone)]
pub struct NetControl(pub(super) Arc<Shared>);

impl NetControl {
    /// Pulls the cable or plugs it in. While it is out the driver sees no link, and frames are lost.
    pub fn set_plugged(&self, plugged: bool) {
        let shared = &self.0;
        if shared.plugged.swap(plugged, Ordering::AcqRel) == plugged {
            return;
        }
        shared.tell_driver();
        for pair in &shared.pairs {
            let _ = pair.wake.write(1);
        }
    }

    /// Whether the driver sees a link: the cable is plugged in, and the other end is up.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.0.is_up()
    }

    /// What went through each queue pair so far.
    #[must_use]
    pub fn counters(&self) -> Vec<PairCounters> {
        let read = |pair: &PairShared| PairCounters {
            received: pair.received.read(),
            sent: pair.sent.read(),
        };
        self.0.pairs.iter().map(read).collect()
    }
}

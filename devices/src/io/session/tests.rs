//! A session and a driver that kicks when it is asked to, and only then.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard};

use virtio_queue::QueueT;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Session, SessionParts};
use crate::io::{IoLoop, QueueIo};
use crate::virtio::testing::{Descriptor, Driver, memory};
use crate::virtio::{
    DeviceFault, Features, QueueIndex, QueueWorker, Source, VirtioInterrupt, Wake,
};

const RECEIVE: QueueIndex = QueueIndex(0);
const SEND: QueueIndex = QueueIndex(1);
const SIZE: u16 = 16;

/// The driver's half of the queue it sends with, with VIRTIO_F_EVENT_IDX.
struct Sender {
    driver: Driver,
    kick: EventFd,
    sent: u16,
}

impl Sender {
    fn send(&mut self) {
        self.driver.publish(self.sent % SIZE);
        self.sent += 1;
        let event = self.driver.used_ring() + 4 + 8 * u64::from(SIZE);
        let event = self.driver.read(event, 2);
        // §2.7.10.1: the index has passed the one that a kick is for.
        if self.sent.wrapping_sub(1) == u16::from_le_bytes([event[0], event[1]]) {
            self.kick.write(1).unwrap();
        }
    }
}

/// Has something for the driver when its source wakes and there is a buffer for it. The driver answers before that
/// event is over.
struct Worker {
    source: EventFd,
    sender: Arc<Mutex<Sender>>,
    heard: Arc<Mutex<u16>>,
}

impl QueueWorker for Worker {
    fn sources(&self) -> Vec<Source> {
        vec![Source {
            fd: self.source.as_raw_fd(),
            token: 0,
            wake: Wake::Readable,
        }]
    }

    fn on_kick(&mut self, _queue: QueueIndex, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        while let Some(chain) = io.pop(SEND)? {
            io.complete(SEND, chain.head, 0)?;
            *self.heard.lock().unwrap() += 1;
        }
        Ok(())
    }

    fn on_source(&mut self, _token: u32, io: &mut QueueIo<'_>) -> Result<(), DeviceFault> {
        self.source.read().unwrap();
        if let Some(chain) = io.pop(RECEIVE)? {
            io.complete(RECEIVE, chain.head, 1)?;
            self.sender.lock().unwrap().send();
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Silent;

impl VirtioInterrupt for Silent {
    fn queue(&self, _queue: QueueIndex) -> io::Result<()> {
        Ok(())
    }
    fn config(&self) -> io::Result<()> {
        Ok(())
    }
    fn needs_reset(&self) {
        panic!("a fault");
    }
}

/// A session, and both ends of what it serves.
struct Bench {
    io: IoLoop,
    receiver: Driver,
    received: u16,
    source: EventFd,
    sender: Arc<Mutex<Sender>>,
    heard: Arc<Mutex<u16>>,
}

impl Bench {
    fn new() -> Self {
        let memory = memory();
        let receiver = Driver::new(&memory, 0x1000, SIZE);
        let sender = Driver::new(&memory, 0x4000, SIZE);
        for head in 0..SIZE {
            receiver.set_descriptor(head, Descriptor::writable(0x8000, 1));
            sender.set_descriptor(head, Descriptor::readable(0x8000, 1));
        }
        let mut queues = vec![receiver.queue(), sender.queue()];
        queues
            .iter_mut()
            .for_each(|queue| queue.set_event_idx(true));
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let kicks: Arc<[EventFd]> = [event(), event()].into();
        let source = event();
        let sender = Arc::new(Mutex::new(Sender {
            driver: sender,
            kick: kicks[1].try_clone().unwrap(),
            sent: 0,
        }));
        let heard = Arc::default();
        let worker = Worker {
            source: source.try_clone().unwrap(),
            sender: Arc::clone(&sender),
            heard: Arc::clone(&heard),
        };
        let parts = SessionParts {
            queues,
            kicks,
            memory,
            features: Features::VERSION_1 | Features::EVENT_IDX,
            interrupt: Arc::new(Silent),
        };
        let io = IoLoop::new().unwrap();
        let session = Session::new(Box::new(worker), parts);
        io.handle().add(Box::new(session)).unwrap();
        Self {
            io,
            receiver,
            received: 0,
            source,
            sender,
            heard,
        }
    }

    fn sender(&self) -> MutexGuard<'_, Sender> {
        self.sender.lock().unwrap()
    }

    /// Something comes for the driver, which has a buffer for it.
    fn arrive(&mut self) {
        self.receiver.publish(self.received % SIZE);
        self.received += 1;
        self.source.write(1).unwrap();
    }

    /// Lets the session have its events until there are no more; all that was sent has been heard then.
    fn settle(&self) {
        while self.io.turn().unwrap() > 0 {}
        assert_eq!(*self.heard.lock().unwrap(), self.sender().sent);
    }
}

#[test]
fn what_a_driver_sends_is_heard_whether_it_was_waited_for_or_not() {
    let mut bench = Bench::new();
    for _ in 0..1000 {
        bench.arrive();
        bench.settle();
        // Nothing comes, and so no answer.
        bench.source.write(1).unwrap();
        bench.settle();
        bench.sender().send();
        bench.settle();
    }
}
